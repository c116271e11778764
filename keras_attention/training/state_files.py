"""Files with the whole state of a training: arrays and a manifest, written atomically, with checksums.

A file is an uncompressed `.npz`, that is a zip archive with a CRC-32 of each array. Its member `manifest` is JSON.
"""

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_attention.files import write_atomically

VERSION = 1
_MANIFEST = "manifest"
_PATTERN = "state-*.npz"


class State(NamedTuple):
    """The contents of a state file."""

    path: Path
    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]


def state_file(folder: Path, step: int) -> Path:
    """The path of the state at a step."""
    return folder / f"state-{step:08d}.npz"


def state_files(folder: Path) -> list[Path]:
    """Lists the state files of a folder, the oldest first."""
    return sorted(folder.glob(_PATTERN))


def write_state(path: Path, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray], keep: int) -> None:
    """Writes a state file, then removes all but the newest files."""
    text = json.dumps({"version": VERSION, **manifest})
    members = {_MANIFEST: np.frombuffer(text.encode(), np.uint8), **arrays}
    size = sum(array.nbytes + 1024 for array in members.values())  # with the headers of each member

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, **members)

    try:
        write_atomically(path, write, size)
    except OSError as error:
        earlier = [each.name for each in state_files(path.parent)]
        error.add_note(f"The state needs {size:,} bytes. Earlier states remain: {', '.join(earlier) or 'none'}")
        raise
    for each in state_files(path.parent)[:-keep]:
        each.unlink()


def remove_unreadable(folder: Path, newest: Path | None) -> None:
    """Removes what a process left that was killed while it wrote a state, and the damaged files after the newest."""
    later = [] if newest is None else [path for path in state_files(folder) if path > newest]
    for path in (*folder.glob(f".writing-*-{_PATTERN}"), *later):
        path.unlink(missing_ok=True)


def read_newest_state(folder: Path) -> State | None:
    """Reads the newest file that is complete, with a warning for each damaged one; None if there is no file."""
    paths = state_files(folder)
    for path in reversed(paths):
        try:
            return _read_state(path)
        except _DamagedError as error:
            warnings.warn(f"{path} is damaged, so training does not resume from it: {error}", stacklevel=3)
    if paths:
        raise ValueError(
            f"{folder} has no state to resume from, only damaged files: restore one of them, or remove them to train "
            f"without them. Received: {', '.join(path.name for path in paths)}"
        )
    return None


class _DamagedError(Exception):
    """The reason why a state file cannot be read."""


def _read_state(path: Path) -> State:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # reads every member and compares its CRC-32
        if damaged is not None:
            raise _DamagedError(f"the checksum of {damaged} does not match")
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        manifest = json.loads(arrays.pop(_MANIFEST).tobytes())
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise _DamagedError(" ".join(str(error).split())[:200]) from error
    if manifest["version"] != VERSION:
        raise ValueError(
            f"{path} was written by another version of keras_attention: resume with that version, or train in another "
            f"folder. Received: version={manifest['version']}, expected {VERSION}"
        )
    return State(path, manifest, arrays)
