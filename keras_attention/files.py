"""Writing files atomically, and into devices, pipes and open descriptors."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike[str], write: Callable[[str], Any], size: int = 0) -> None:
    """Writes a file next to its place and renames it; if that fails, the file from before remains.

    A file keeps its permissions; a symbolic link remains, and the file behind it is written. A pipe, a device or
    /dev/stdout is written into.

    Args:
        path: The file's place.
        write: Called with a path of the same endings.
        size: Bytes that must be free on the disk before anything is written. For files that HDF5 writes: a disk that
            becomes full in the middle of one crashes the process when it ends.

    Raises:
        OSError: The file cannot be written; the error names its place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "note.txt"
        ...     write_atomically(path, lambda temporary: Path(temporary).write_text("whole"))
        ...     path.read_text()
        'whole'
    """
    place = _place(Path(path))
    if isinstance(place, int) or _is_special(place):
        with _naming(path):
            _write_into(place, Path(path).name, write)
        return
    # Two processes may write the same file; the end of a name that is nearly too long still has the file's endings.
    temporary = place.with_name(f".writing-{uuid.uuid4().hex[:8]}-{place.name[-50:]}")
    try:
        with _naming(path, temporary):
            if size:
                _reserve(temporary, size)
            write(str(temporary))
            if place.exists():
                shutil.copymode(place, temporary)
            _to_disk(temporary)
            os.replace(temporary, place)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # some file systems have no folders to write to the disk
        _to_disk(place.parent)


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Checks, before hours of work, that `write_atomically` will be able to write.

    Args:
        path: The file's place. Of folders on the way that are missing, the first must be possible to make.
        inputs: Files that the work reads; "-" is standard input.

    Raises:
        ValueError: It is a folder or a socket, one of the inputs, or may not be written.

    Example:
        >>> check_output("no/such/folder/de.txt")
        >>> check_output(".")
        Traceback (most recent call last):
        ValueError: The output must be a file, but this is a folder: name a file in it. Received: .
    """
    place = _place(Path(path))
    if isinstance(place, int):
        if not _is_open_for_writing(place):
            raise ValueError(f"The output must be open for writing: name another. Received: {path}")
        return
    if place.is_dir() or os.fspath(path).endswith("/"):
        raise ValueError(f"The output must be a file, but this is a folder: name a file in it. Received: {path}")
    if place.is_socket():
        raise ValueError(f"The output must be a file, but this is a socket: name another. Received: {path}")
    for given in inputs:
        read = "/dev/stdin" if given == "-" else given
        if place.is_file() and os.path.exists(read) and os.path.samefile(place, read):
            raise ValueError(
                f"The output would replace {os.fspath(given)}, which is read: name another. Received: {path}"
            )
    if place.exists() and not os.access(place, os.W_OK):
        raise ValueError(f"The output may not be written: change its permissions, or name another. Received: {path}")
    if not _is_special(place):
        check_folder(place.parent)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Checks that files can be written in a folder, or that it can be made.

    Args:
        folder: The folder.

    Raises:
        ValueError: There is a file in its place, or the folder that would hold it may not be written.

    Example:
        >>> check_folder("no/such/folder")
    """
    folder = Path(folder)
    existing = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not existing.is_dir():
        raise ValueError(f"{existing} must be a folder, but it is a file: name another. Received: {folder}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"The folder {existing} may not be written: change its permissions, or name another. Received: {folder}"
        )


def make_folder(path: str | os.PathLike[str]) -> None:
    """Makes the folder in which `write_atomically` writes a file, behind symbolic links.

    Args:
        path: The file's place.

    Example:
        >>> make_folder("new/folder/a.txt")
        >>> write_atomically("new/folder/a.txt", lambda temporary: Path(temporary).write_text("text"))
    """
    place = _place(Path(path))
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def folders_removed_on_error(folder: Path) -> Iterator[None]:
    """Removes the folders that an unsuccessful block created: `folder` and its parents, where they are empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()
        raise


def is_standard_output(path: str | os.PathLike[str]) -> bool:
    """Whether a file's place is standard output, such as /dev/stdout.

    Args:
        path: The file's place.

    Returns:
        Whether it is.

    Example:
        >>> is_standard_output("a.txt")
        False
    """
    return _place(Path(path)) == 1


def _place(path: Path) -> Path | int:
    """The path behind symbolic links; of a name like /dev/stdout, the number of the open file."""
    for _ in range(40):  # as many links as the system follows
        folder = os.path.realpath(path.parent)
        if re.fullmatch(r"/proc/\d+(/task/\d+)?/fd|/dev/fd", folder) and path.name.isdecimal():
            return int(path.name)
        path = Path(folder, path.name)
        if not path.is_symlink():
            return path
        path = Path(folder, os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _is_open_for_writing(descriptor: int) -> bool:
    import fcntl  # not on Windows, where no name means a descriptor

    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        return False


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str], temporary: Path | None = None) -> Iterator[None]:
    """Gives errors that name no file, or the one that is renamed afterwards, the name that the caller knows."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def _is_special(path: Path) -> bool:
    """Whether there is something that cannot be replaced: a pipe, a device, a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _write_into(place: Path | int, name: str, write: Callable[[str], Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, name)
        write(str(temporary))
        # The open file itself: opening it by name once more would begin at its start.
        target = os.dup(place) if isinstance(place, int) else os.open(place, os.O_WRONLY)
        with open(temporary, "rb") as whole, open(target, "wb") as into:
            shutil.copyfileobj(whole, into)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reserve(path: Path, size: int) -> None:
    """Raises the error of a full disk where there is no room for so many bytes."""
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # the file system cannot tell
                raise
