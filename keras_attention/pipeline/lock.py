"""One training at a time in a folder."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """Makes the folder, sees that it can be written, and holds it for this process until the block ends.

    The system releases the lock when the process ends, however it does. Where the file system has no locks, none is
    held. Folders that were made for this and are still empty at the end are removed again.

    Args:
        folder: The folder of a run.

    Yields:
        Nothing.

    Raises:
        ValueError: Another process trains in the folder.
        OSError: The folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with training_lock(folder):
        ...     folder.exists()
        True
        >>> folder.exists()
        False
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            _hold(lock, folder)
            _check_writable(folder)
            yield
        finally:
            os.close(lock)
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def _hold(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"Another process trains in {folder}: wait until it ends, or take another folder. Received: folder={folder}"
        ) from None
    except OSError:
        pass  # a file system without locks


def _check_writable(folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
