"""The folder of a conversion: written beside its place, renamed when it is complete and checked."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOKENIZER_FILE = "tokenizer.model"


@contextmanager
def written_whole(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder to write into, which takes its place when the block ends without an error.

    Args:
        folder: Its place; folders on the way are made.

    Yields:
        An empty folder beside that place. After an error it is removed.

    Raises:
        ValueError: The place is taken.

    Example:
        >>> import pathlib
        >>> with written_whole("models/en-de") as beside:
        ...     _ = (beside / "model.bin").write_text("weights")
        >>> [path.as_posix() for path in pathlib.Path("models").rglob("*")]
        ['models/en-de', 'models/en-de/model.bin']
    """
    given, folder = folder, Path(os.path.realpath(folder))  # a link remains, and what it leads to is written
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"`folder` is there already: name another, or remove it first. Received: folder={given}")
    made = [path for path in folder.parents if not path.exists()]
    beside = folder.with_name(f"unfinished-{uuid.uuid4().hex}")
    try:
        beside.mkdir(parents=True)
        yield beside
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        for path in made:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()
        raise
