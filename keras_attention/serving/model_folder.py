"""The folder of an exported model: which folders are accepted, and the unfinished exports in it."""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

# The names in a model's folder. Hidden files, such as .gitignore, are accepted too.
EXPORTED = re.compile(r"\d+|unfinished-[0-9a-f]{32}|(models|batching|monitoring)\.config|README\.md|\..*", re.ASCII)
# The names that only an export writes.
PROOF = re.compile(r"\d+|models\.config", re.ASCII)


def check_model_folder(folder: str | os.PathLike) -> None:
    """Checks, before the work of an export, that a folder can hold the versions of a model."""
    if os.path.islink(folder) and not os.path.isdir(folder):
        _refuse(folder, "must be a folder, not a broken link; give another")
    path = Path(os.path.realpath(folder))
    for version in (path, *path.parents):
        if (version / "saved_model.pb").exists():
            _refuse(folder, f"must be a model's, not that of a version or inside one; give {version.parent}")
    if path.name.isdecimal():
        _refuse(folder, f"must be a model's, as the export numbers the versions itself; give {path.parent}")
    if not path.name or ":" in path.name or not path.name.isprintable():
        _refuse(folder, "must have a name that clients can ask for, without : and control characters")
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        _refuse(folder, f"must be a folder, and {existing} is a file; give another")
    names = sorted(os.listdir(path)) if path.is_dir() else []
    other = [name for name in names if not EXPORTED.fullmatch(name)]
    if other and not any(PROOF.fullmatch(name) for name in names):
        _refuse(
            folder,
            f"must be new, or empty, or hold versions of one model; give {path / 'NAME'}. It contains {other[0]!r}",
        )


@contextlib.contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Makes a folder in a model's folder for the block, and removes those that killed processes left."""
    # It is locked while its process lives: the system unlocks it when the process is killed.
    with contextlib.ExitStack() as cleanup:
        with _locked(folder):  # so that no other export removes the new one before it is locked
            _remove_abandoned(folder)
            path = folder / f"unfinished-{uuid.uuid4().hex}"
            path.mkdir()
            cleanup.callback(shutil.rmtree, path, ignore_errors=True)
            cleanup.enter_context(_locked(path))
        yield path


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob("unfinished-*"):
        if EXPORTED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError), _locked(path, wait=False):  # an error: its process lives
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Locks a folder; with `wait=False` raises OSError if it is locked already or the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        if not wait:
            raise OSError("no locks") from None
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            if not wait:
                raise
        yield
    finally:
        os.close(descriptor)


def _refuse(folder: str | os.PathLike, rule: str) -> None:
    raise ValueError(f"folder {rule}. Received: folder={os.fspath(folder)!r}")
