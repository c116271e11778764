"""The output folder of a conversion, written atomically."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_attention.files import folders_removed_on_error

TOKENIZER_FILE = "tokenizer.model"


@contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder, which is renamed to `folder` if the block ends without an error, else removed."""
    name, folder = folder, Path(os.path.realpath(folder))  # a link stays, and its target is written
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"`folder` must not exist: name another, or remove it first. Received: folder={name}")
    temporary = folder.with_name(f"unfinished-{uuid.uuid4().hex}")
    with folders_removed_on_error(folder.parent):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
