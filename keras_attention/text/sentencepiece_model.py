"""SentencePiece's models: the ids this library fixes, training without noise, errors that can be acted on."""

import io
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from keras_attention.extras import needed_by

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
MIN_VOCABULARY_SIZE = 5  # one piece next to the special ones
MODEL_TYPES = ("bpe", "unigram")

# A vocabulary is settled long before this many lines; a seeded sample bounds time and memory.
MAX_TRAINING_LINES = 2_000_000
_ERRORS_ONLY = 2
# SentencePiece leaves out lines of more bytes, and lines with the character that it marks unknown ones with.
_MAX_LINE_BYTES = 4192
_RESERVED = "\u2585"


def check_vocabulary_size(vocabulary_size: int) -> None:
    """Raises a ValueError unless the vocabulary has room for a piece next to the four special ones."""
    if vocabulary_size < MIN_VOCABULARY_SIZE:
        raise ValueError(
            f"`vocabulary_size` must be at least {MIN_VOCABULARY_SIZE}, since four pieces are special. "
            f"Received: vocabulary_size={vocabulary_size}"
        )


def train_model(lines: Iterable[str], vocabulary_size: int, model_type: str, split_digits: bool, seed: int) -> bytes:
    """Learns a vocabulary: the same arguments give the same bytes.

    Args:
        lines: The text.
        vocabulary_size: How many pieces, the four special ones included.
        model_type: One of `MODEL_TYPES`.
        split_digits: Whether each digit is a piece of its own.
        seed: Seeds the sample of lines.

    Returns:
        The serialised model.

    Raises:
        ValueError: If the text cannot give `vocabulary_size` pieces.
    """
    with needed_by("SubwordTokenizer"):
        import sentencepiece

    check_vocabulary_size(vocabulary_size)
    buffer = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_parts(lines),
            model_writer=buffer,
            model_type=model_type,
            vocab_size=vocabulary_size,
            split_digits=split_digits,
            normalization_rule_name="identity",
            character_coverage=1.0,
            input_sentence_size=MAX_TRAINING_LINES,
            max_sentence_length=_MAX_LINE_BYTES,
            shuffle_input_sentence=True,
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
    """Reads a serialised model and checks that its special ids are this library's.

    Args:
        model: The bytes.

    Returns:
        SentencePiece's processor.

    Raises:
        ValueError: If the bytes are no model, or its special ids are others.
    """
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
            "Not a SentencePiece model: the bytes are damaged or of another kind. "
            f"Received: {len(model)} bytes that start with {model[:16]!r}"
        )
    expected = {"pad": PAD_ID, "unk": UNK_ID, "bos": BOS_ID, "eos": EOS_ID}
    found = {name: getattr(processor, f"{name}_id")() for name in expected}
    if found != expected:
        raise ValueError(
            f"A SentencePiece model must be trained with the special ids {expected} (pad_id=0, unk_id=1, bos_id=2, "
            f"eos_id=3). Received: {found}"
        )
    return processor


def _parts(lines: Iterable[str]) -> Iterator[str]:
    """The lines, cut so that SentencePiece leaves none of them out."""
    for line in lines:
        for text in line.split(_RESERVED):
            # In nearly all lines the number of characters shows that the bytes are few enough.
            if 4 * len(text) <= _MAX_LINE_BYTES or len(text.encode()) <= _MAX_LINE_BYTES:
                yield text
            else:
                yield from _cut(text)


def _cut(text: str) -> Iterator[str]:
    """Parts of a long line, which end before a space where there is one."""
    most = _MAX_LINE_BYTES // 4  # characters, of which each has at most four bytes
    start = 0
    while start < len(text):
        space = text.rfind(" ", start + 1, start + most + 1)
        end = space if space > 0 and start + most < len(text) else start + most
        yield text[start:end]
        start = end


def _explain(error: str, vocabulary_size: int) -> str:
    """Says in this library's words why SentencePiece gave up, with the size that would have worked."""
    received = f"Received: vocabulary_size={vocabulary_size}"
    if largest := re.search(r"value <= (\d+)", error):
        return (
            f"`vocabulary_size` is too large for this text, which gives at most {largest[1]} pieces: pass "
            f"{largest[1]} or less, or more text. {received}"
        )
    if smallest := re.search(r"required_chars\. -?\d+ vs (\d+)", error):
        return (
            "`vocabulary_size` is too small: the characters of this text and the special pieces alone are "
            f"{smallest[1]}, so pass {smallest[1]} or more. {received}"
        )
    return f"SentencePiece could not learn a vocabulary: {error.strip()} {received}"
