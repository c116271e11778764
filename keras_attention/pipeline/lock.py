"""A lock that lets only one process train in a folder."""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """Creates the folder of a run, checks that it is writable, and locks it for this process during the block."""
    # The system releases the lock when the process ends, in whatever way. A file system without locks is not locked.
    # Folders that this creates and that are still empty at the end are removed.
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            _acquire(lock, folder)
            _check_writable(folder)
            yield
        finally:
            os.close(lock)
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in created:
                path.rmdir()


def is_training(folder: Path) -> bool:
    """Returns True if a process trains in the folder."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks
    finally:
        os.close(lock)
    return False


def _acquire(lock: int, folder: Path) -> None:
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)  # `is_training` may have held it for a moment
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"Another process trains in {folder}: wait until it ends, or choose another folder. "
            f"Received: folder={folder}"
        ) from None
    except OSError:
        pass  # a file system without locks


def _check_writable(folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
