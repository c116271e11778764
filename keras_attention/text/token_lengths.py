"""The numbers of tokens of sharded text, in a file: all that decides which batches there are."""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_attention.files import make_folder, write_atomically
from keras_attention.text.pair_batches import pair_lengths
from keras_attention.text.ragged_ids import RaggedIds
from keras_attention.text.shards import Piece, ShardedPairs, is_usable
from keras_attention.text.subword_sampling import subword_sampler
from keras_attention.text.tokenizer import SubwordTokenizer

# Pairs that are tokenized at a time: a call of SentencePiece lets no other thread run.
SLICE = 1024
_DTYPE = np.dtype(np.uint32)
_BITS = 32
_ROWS = 2**15  # that are read at a time
# Sets the seeds of these samples apart from the others of a run.
_PURPOSE = 3


class TokenLengths:
    """The numbers of tokens of each line of sharded text, EOS included, in the order of the files; 0 for a blank line.

    The constructor tokenizes the text once, and writes the numbers into a file. With the same text and tokenizer, the
    next one only reads that file.

    Args:
        pairs: The text.
        tokenizer: Tokenizer of both sides.
        folder: Folder of the file; None for a temporary one.
        subword_dropout: Dropout of `SubwordTokenizer.sample`; above 0, the lengths of one sample are kept too.
        seed: Seed of the sample.

    Attributes:
        checksum: Checksum of the token ids and the numbers of lines.
    """

    def __init__(
        self,
        pairs: ShardedPairs,
        tokenizer: SubwordTokenizer,
        folder: str | os.PathLike[str] | None = None,
        subword_dropout: float = 0.0,
        seed: int = 1,
    ):
        if folder is None:
            folder = tempfile.mkdtemp()
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        index, count = pairs.shard
        part = f"-{index}-of-{count}" if count > 1 else ""  # hosts may share a folder
        self._file, about_file = (Path(folder, f"token-lengths{part}.{kind}") for kind in ("bin", "json"))
        self._dropout, self._seed = subword_dropout, seed
        self._starts = np.cumsum([0, *pairs.num_lines])
        key = self._key(pairs, tokenizer)
        about = _read_json(about_file)
        if about.get("key") != key or not self._file.exists() or self._file.stat().st_size != self._size:
            about_file.unlink(missing_ok=True)
            about = {"key": key, "checksum": self._write(pairs, tokenizer)}
            text = json.dumps(about) + "\n"
            write_atomically(about_file, lambda path: Path(path).write_text(text, encoding="utf-8"))
        self.checksum: str = about["checksum"]

    def read(self, pieces: Iterable[Piece]) -> np.ndarray:
        """Reads the lengths of pieces (N, 2), or (N, 4) with those of a sample."""
        return np.concatenate(
            [self._rows(self._starts[each.shard] + each.first_line, each.num_lines) for each in pieces]
        )

    def counts(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """Counts the pairs within a length: their different lengths (K, 2), and the number of pairs of each (K,)."""
        keys, counts = np.array([], np.int64), np.array([], np.int64)
        for start in range(0, int(self._starts[-1]), _ROWS):
            usual, first = first_lengths(self._rows(start, _ROWS), longest)
            source, target = np.maximum(usual, first)[is_within(usual, longest)].T
            new, index = np.unique(np.concatenate([keys, (source << _BITS) | target]), return_inverse=True)
            counts = np.bincount(index, np.concatenate([counts, np.ones(len(source))])).astype(np.int64)
            keys = new
        return np.stack([keys >> _BITS, keys & (2**_BITS - 1)], axis=1), counts

    @property
    def _columns(self) -> int:
        return 4 if self._dropout else 2

    @property
    def _size(self) -> int:
        """The bytes of the file."""
        return int(self._starts[-1]) * self._columns * _DTYPE.itemsize

    def _rows(self, start: int, count: int) -> np.ndarray:
        offset = int(start) * self._columns * _DTYPE.itemsize
        return (
            np.fromfile(self._file, _DTYPE, count * self._columns, offset=offset)
            .reshape(-1, self._columns)
            .astype(np.int64)
        )

    def _write(self, pairs: ShardedPairs, tokenizer: SubwordTokenizer) -> str:
        """Writes the lengths of all lines, and returns a checksum of the ids."""
        sampler = subword_sampler(tokenizer.model, self._dropout) if self._dropout else None
        checksum = zlib.crc32(np.array(pairs.num_lines))
        make_folder(self._file)
        with open(self._file, "wb") as file:
            lines = pairs.lines(pairs.shards())
            for number in itertools.count():
                if not (part := list(itertools.islice(lines, SLICE))):
                    break
                usable = np.array([is_usable(pair) for pair in part])
                source, target = encode(tokenizer, list(itertools.compress(part, usable)))
                columns = [pair_lengths(source, target)]
                if sampler is not None:
                    seeds = ((self._seed, _PURPOSE, number, side) for side in (0, 1))
                    columns.append(pair_lengths(*map(sampler.sample, (source, target), seeds)))
                rows = np.zeros((len(part), self._columns), _DTYPE)
                rows[usable] = np.concatenate(columns, axis=1)
                file.write(rows.tobytes())
                for side in (source, target):
                    checksum = zlib.crc32(np.ascontiguousarray(side.ids), checksum)
        return f"{checksum:08x}"

    def _key(self, pairs: ShardedPairs, tokenizer: SubwordTokenizer) -> str:
        """A checksum of what the lengths depend on; files are the same if their names, sizes and times are."""
        files = [(Path(path), os.stat(path)) for of_shard in pairs.files for path in of_shard]
        about = {
            "tokenizer": hashlib.sha256(tokenizer.model).hexdigest(),
            "sample": (self._dropout, self._seed) if self._dropout else None,
            "files": [(path.name, stat.st_size, stat.st_mtime_ns) for path, stat in files],
            "num_lines": pairs.num_lines,
        }
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def encode(tokenizer: SubwordTokenizer, pairs: Sequence[tuple[str, str]]) -> tuple[RaggedIds, RaggedIds]:
    """The token ids of the sources and of the targets."""
    source, target = (RaggedIds.from_lists(tokenizer.encode([pair[side] for pair in pairs])) for side in (0, 1))
    return source, target


def first_lengths(rows: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """The usual lengths (N, 2), and those of the first epoch: of the sample, where it is within a length."""
    usual, sampled = rows[:, :2], rows[:, -2:]
    return usual, np.where((sampled <= longest).all(axis=1, keepdims=True), sampled, usual)


def is_within(lengths: np.ndarray, longest: int) -> np.ndarray:
    """Whether each pair has text, and at most this number of tokens on both sides."""
    return ((lengths > 0) & (lengths <= longest)).all(axis=1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
