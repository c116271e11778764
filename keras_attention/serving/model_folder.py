"""The folder of an exported model: what it may be, and the exports in it that are not complete yet."""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

# What an export finds or leaves in a model's folder. Hidden files, such as .gitignore, may be there too.
EXPORTED = re.compile(r"\d+|unfinished-[0-9a-f]{32}|(models|batching|monitoring)\.config|README\.md|\..*", re.ASCII)
# What shows that an export was there.
PROOF = re.compile(r"\d+|models\.config", re.ASCII)


def check_model_folder(folder: str | os.PathLike) -> None:
    """Checks that a folder can hold the versions of a model, before the work of an export.

    Args:
        folder: The model's folder; its name is the model's.

    Raises:
        ValueError: If it is a file, a version or inside one, holds something else, or has a name that servers refuse.
    """
    if os.path.islink(folder) and not os.path.isdir(folder):
        _refuse(folder, "must be a folder, not a link to nowhere; give another")
    path = Path(os.path.realpath(folder))
    for version in (path, *path.parents):
        if (version / "saved_model.pb").exists():
            _refuse(folder, f"must be a model's, not that of one version or in one; give {version.parent}")
    if path.name.isdecimal():
        _refuse(folder, f"must be a model's, as the export numbers the versions itself; give {path.parent}")
    if not path.name or ":" in path.name or not path.name.isprintable():
        _refuse(folder, "must have a name that clients can ask for, without : and control characters")
    for place in (path, *path.parents):
        if place.exists():
            if not place.is_dir():
                _refuse(folder, f"must be a folder, and {place} is a file; give another")
            break
    names = sorted(os.listdir(path)) if path.is_dir() else []
    other = [name for name in names if not EXPORTED.fullmatch(name)]
    if other and not any(PROOF.fullmatch(name) for name in names):
        _refuse(
            folder, f"must be new, or empty, or hold versions of one model; give {path / 'NAME'}. It has {other[0]!r}"
        )


@contextlib.contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Makes a folder for an export that is not complete, and removes it, and those whose writers are gone.

    It is locked as long as its writer lives: the system unlocks it when a process is killed.

    Args:
        folder: The model's folder.

    Yields:
        The new folder.
    """
    with contextlib.ExitStack() as held:
        with _locked(folder):  # so that no other export removes the new one before it is locked
            _remove_abandoned(folder)
            path = folder / f"unfinished-{uuid.uuid4().hex}"
            path.mkdir()
            held.callback(shutil.rmtree, path, ignore_errors=True)
            held.enter_context(_locked(path))
        yield path


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob("unfinished-*"):
        if EXPORTED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError), _locked(path, wait=False):  # an error: its writer lives
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Locks a folder; raises OSError where another has locked it, or, unless it waits, where there are no locks."""
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
