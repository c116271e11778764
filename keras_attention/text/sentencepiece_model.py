"""SentencePiece models: their special ids, quiet training, and errors that say what to change."""

import io
import re
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from keras_attention.extras import needed_by

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
MIN_VOCABULARY_SIZE = 5  # one piece next to the special ones
MODEL_TYPES = ("bpe", "unigram")
# Of the recommended size: 8,000 pieces for 160,000 pairs, and the paper's 37,000 from 3.4 million pairs on.
PIECES_PER_ROOT, MAX_RECOMMENDED_SIZE = 20, 37_000

# More lines hardly change a vocabulary; a seeded sample of this size limits time and memory.
MAX_TRAINING_LINES = 2_000_000
_ERRORS_ONLY = 2
# SentencePiece ignores lines of more bytes, and lines with the character that it uses for unknown ones.
_MAX_LINE_BYTES = 4192
_RESERVED = "\u2585"


def check_vocabulary_size(vocabulary_size: int) -> None:
    """Raises a ValueError unless the vocabulary has room for a piece next to the four special ones."""
    if vocabulary_size < MIN_VOCABULARY_SIZE:
        raise ValueError(
            f"`vocabulary_size` must be at least {MIN_VOCABULARY_SIZE}, since four pieces are special. "
            f"Received: vocabulary_size={vocabulary_size}"
        )


def recommended_vocabulary_size(pairs: Collection[tuple[str, str]]) -> int:
    """Returns 20 √N for N pairs, rounded to hundreds, at most 37,000: the size of a vocabulary that both sides share.

    A large vocabulary has pieces that a small text shows too rarely to learn them. There are at least two pieces for
    each character of the text, for languages with thousands of characters.

    Args:
        pairs: `(source, target)` texts, such as `ParallelCorpus.pairs`.

    Returns:
        A `vocabulary_size` for `SubwordTokenizer.train`.

    Example:
        >>> from keras_attention.text import recommended_vocabulary_size
        >>> recommended_vocabulary_size([("one", "eins"), ("two", "zwei")] * 5_000)
        2000
    """
    characters: set[str] = set()
    for pair in pairs:
        characters.update(*pair)
    size = round(PIECES_PER_ROOT * len(pairs) ** 0.5, -2)
    return int(max(100, min(size, MAX_RECOMMENDED_SIZE), 2 * len(characters)))


def train_model(lines: Iterable[str], vocabulary_size: int, model_type: str, split_digits: bool, seed: int) -> bytes:
    """Trains a SentencePiece model, and returns it serialised: the same arguments give the same bytes."""
    with needed_by("SubwordTokenizer"):
        import sentencepiece

    check_vocabulary_size(vocabulary_size)
    buffer = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_split_long(lines),
            model_writer=buffer,
            model_type=model_type,
            vocab_size=vocabulary_size,
            split_digits=split_digits,
            normalization_rule_name="identity",
            character_coverage=1.0,
            max_sentence_length=_MAX_LINE_BYTES,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            minloglevel=_ERRORS_ONLY,
        )
    except RuntimeError as error:
        raise ValueError(_explain(str(error), vocabulary_size)) from error
    return buffer.getvalue()


def load_processor(model: bytes) -> "SentencePieceProcessor":
    """Loads a serialised model, and checks that its special ids are those of this library."""
    with needed_by("SubwordTokenizer"):
        import sentencepiece

    sentencepiece.set_min_log_level(_ERRORS_ONLY)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = bool(model) and processor.load_from_serialized_proto(model)
    except RuntimeError:
        loaded = False
    if not loaded:
        raise ValueError(
            "`model` must be a SentencePiece model, but it is damaged or of another kind. "
            f"Received: {len(model)} bytes that start with {model[:16]!r}"
        )
    expected = {"pad": PAD_ID, "unk": UNK_ID, "bos": BOS_ID, "eos": EOS_ID}
    ids = {name: getattr(processor, f"{name}_id")() for name in expected}
    if ids != expected:
        raise ValueError(
            "`model` must be trained with pad_id=0, unk_id=1, bos_id=2 and eos_id=3. Received: a model with "
            f"{', '.join(f'{name}_id={value}' for name, value in ids.items())}"
        )
    return processor


def _split_long(lines: Iterable[str]) -> Iterator[str]:
    """Splits lines so that SentencePiece ignores none of them."""
    for line in lines:
        for text in line.split(_RESERVED):
            # For nearly all lines, the number of characters is enough to know that the bytes are few enough.
            if 4 * len(text) <= _MAX_LINE_BYTES or len(text.encode()) <= _MAX_LINE_BYTES:
                yield text
            else:
                yield from _split(text)


def _split(text: str) -> Iterator[str]:
    """Splits a long line, before spaces where possible."""
    most = _MAX_LINE_BYTES // 4  # characters, each with at most four bytes
    start = 0
    while start < len(text):
        space = text.rfind(" ", start + 1, start + most + 1)
        end = space if space > 0 and start + most < len(text) else start + most
        yield text[start:end]
        start = end


def _explain(error: str, vocabulary_size: int) -> str:
    """The message for an error of SentencePiece, with a vocabulary size that works."""
    received = f"Received: vocabulary_size={vocabulary_size}"
    if largest := re.search(r"value <= (\d+)", error):
        return (
            f"`vocabulary_size` is too large for this text, which gives at most {largest[1]} pieces: pass "
            f"{largest[1]} or less, or more text. {received}"
        )
    if smallest := re.search(r"required_chars\. -?\d+ vs (\d+)", error):
        return (
            f"`vocabulary_size` is too small: the characters of this text and the special pieces are {smallest[1]}, so "
            f"pass {smallest[1]} or more. {received}"
        )
    return f"SentencePiece could not learn a vocabulary: {error.strip()} {received}"
