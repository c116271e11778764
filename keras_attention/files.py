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
    """Writes a temporary file in the same folder and renames it; if that fails, the earlier file remains.

    A file keeps its permissions. A symbolic link remains, and the file behind it is written. A pipe, a device or
    /dev/stdout is written into.

    Args:
        path: Path of the file.
        write: Called with the path of the temporary file, which has the same suffixes.
        size: Bytes that must be free on the disk before anything is written. For HDF5 files: if the disk becomes full
            while HDF5 writes one, the process crashes at its end.

    Raises:
        OSError: If the file cannot be written; the error names `path`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "note.txt"
        ...     write_atomically(path, lambda temporary: Path(temporary).write_text("complete"))
        ...     path.read_text()
        'complete'
    """
    target = _resolve(Path(path))
    if isinstance(target, int) or _is_special(target):
        with _error_path(path):
            _write_into(target, Path(path).name, write)
        return
    # Two processes may write the same file. The end of a name close to the longest possible keeps its suffixes.
    temporary = target.with_name(f".writing-{uuid.uuid4().hex[:8]}-{target.name[-50:]}")
    try:
        with _error_path(path, temporary):
            if size:
                _reserve(temporary, size)
            write(str(temporary))
            if target.exists():
                shutil.copymode(target, temporary)
            _to_disk(temporary)
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        _to_disk(target.parent)


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Checks, before hours of work, that `write_atomically` can write a file, and that it replaces no input."""
    target = _resolve(Path(path))
    if isinstance(target, int):
        if not _is_open_for_writing(target):
            raise ValueError(f"The output must be open for writing: name another. Received: {path}")
        return
    if target.is_dir() or os.fspath(path).endswith("/"):
        raise ValueError(f"The output must be a file, but this is a folder: name a file in it. Received: {path}")
    if target.is_socket():
        raise ValueError(f"The output must be a file, but this is a socket: name another. Received: {path}")
    for name in inputs:
        source = "/dev/stdin" if name == "-" else name
        if target.is_file() and os.path.exists(source) and os.path.samefile(target, source):
            raise ValueError(f"The output would replace the input {os.fspath(name)}: name another. Received: {path}")
    if target.exists() and not os.access(target, os.W_OK):
        raise ValueError(f"The output is not writable: change its permissions, or name another. Received: {path}")
    if not _is_special(target):
        check_folder(target.parent)


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Checks that files can be written in a folder, or that the folder can be created."""
    folder = Path(folder)
    existing = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not existing.is_dir():
        raise ValueError(f"{existing} must be a folder, but it is a file: name another. Received: {folder}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"The folder {existing} is not writable: change its permissions, or name another. Received: {folder}"
        )


def make_folder(path: str | os.PathLike[str]) -> None:
    """Creates the folder in which `write_atomically` writes a file, behind symbolic links."""
    target = _resolve(Path(path))
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)


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
    """Returns True for standard output, such as /dev/stdout."""
    return _resolve(Path(path)) == 1


def _resolve(path: Path) -> Path | int:
    """The path behind symbolic links, or the descriptor that a name like /dev/stdout stands for."""
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
    import fcntl  # missing on Windows, where no name stands for a descriptor

    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        return False


@contextlib.contextmanager
def _error_path(path: str | os.PathLike[str], temporary: Path | None = None) -> Iterator[None]:
    """Puts the caller's path into errors that name no file, or the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def _is_special(path: Path) -> bool:
    """Returns True for an existing path that cannot be replaced: a pipe, a device, a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _write_into(target: Path | int, name: str, write: Callable[[str], Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, name)
        write(str(temporary))
        # A duplicate of an open descriptor: opened again by its name, the file would be written from its start.
        descriptor = os.dup(target) if isinstance(target, int) else os.open(target, os.O_WRONLY)
        with open(temporary, "rb") as source, open(descriptor, "wb") as sink:
            shutil.copyfileobj(source, sink)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reserve(path: Path, size: int) -> None:
    """Raises the error of a full disk if fewer bytes than `size` are free."""
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # the file system cannot tell
                raise
