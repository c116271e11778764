"""Texts as token ids of a limited length: no line, however long, exceeds the limit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_attention.text import EOS_ID, PAD_ID

if TYPE_CHECKING:
    from keras_attention.text import SubwordTokenizer

# SentencePiece makes no piece longer than this, so ordinary text reaches the limit in tokens first.
CHARACTERS_PER_TOKEN = 16


class Tokens(NamedTuple):
    """Token ids (B, S) int32 with eos, then padding; lengths (B,) int32 with eos; whether texts were truncated (B,)."""

    ids: Any
    lengths: Any
    truncated: Any


def tokenize_in_python(tokenizer: "SubwordTokenizer", texts: Sequence[bytes], max_length: int) -> Tokens:
    """Computes `tokenize` in Python, as arrays."""
    characters = CHARACTERS_PER_TOKEN * max_length
    decoded = [text[: 4 * (characters + 1)].decode("utf-8", "replace") for text in texts]
    pieces = tokenizer.encode([text[:characters] for text in decoded])
    lengths = np.array([min(len(row), max_length - 1) + 1 for row in pieces], "int32")
    ids = np.full((len(pieces), lengths.max(initial=0)), PAD_ID, "int32")
    for row, length, each in zip(ids, lengths, pieces, strict=True):
        row[:length] = [*each[: length - 1], EOS_ID]
    truncated = [
        len(text) > characters or len(each) > max_length - 1 for text, each in zip(decoded, pieces, strict=True)
    ]
    return Tokens(ids, lengths, np.array(truncated, bool))


def tokenize(tokenizer: "SubwordTokenizer", texts: Any, max_length: int) -> Tokens:
    """Tokenizes texts (B,) in the graph and truncates each to `max_length` tokens, the end of sentence included."""
    import tensorflow as tf

    # First to characters, so that the longest line costs no more to tokenize than one of the limit's length.
    beginnings, cut = _beginnings(texts, CHARACTERS_PER_TOKEN * max_length)
    pieces = tokenizer.tokenize(beginnings)  # (B, None)
    truncated = cut | (pieces.row_lengths() > max_length - 1)
    ids = tf.concat([pieces[:, : max_length - 1], tf.fill([tf.size(texts), 1], EOS_ID)], axis=1)
    return Tokens(ids.to_tensor(PAD_ID), tf.cast(ids.row_lengths(), tf.int32), truncated)


def _beginnings(texts: Any, characters: int) -> tuple[Any, Any]:
    """Returns the first characters of each text as valid UTF-8, and which texts (B,) had more."""
    import tensorflow as tf

    # In bytes first, as counting characters reads every byte. A character has at most four, and one more is kept to
    # detect a text that is longer.
    texts = tf.strings.substr(texts, 0, 4 * (characters + 1))
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    longer = tf.strings.length(texts, unit="UTF8_CHAR") > characters
    return tf.strings.substr(texts, 0, characters, unit="UTF8_CHAR"), longer
