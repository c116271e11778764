"""How much of a text is read: a limit that no line, however long, can pass."""

from typing import NamedTuple

import tensorflow as tf

from keras_attention.text import EOS_ID, PAD_ID, SubwordTokenizer

# SentencePiece makes no piece longer than this, so the limit in tokens is reached first in all ordinary text.
CHARACTERS_PER_TOKEN = 16


class Tokens(NamedTuple):
    """Texts as token ids.

    Attributes:
        ids: (B, S) int32; each row ends in the end of sentence, then padding.
        lengths: How many of each row count, the end of sentence with them, (B,) int32.
        truncated: Whether a text was longer than the limit and only its beginning was read, (B,) boolean.

    Example:
        >>> Tokens(ids=tf.constant([[7, 3]]), lengths=tf.constant([2]), truncated=tf.constant([False])).ids.shape
        TensorShape([1, 2])
    """

    ids: tf.Tensor
    lengths: tf.Tensor
    truncated: tf.Tensor


def read(tokenizer: SubwordTokenizer, texts: tf.Tensor, max_length: int) -> Tokens:
    """Turns texts into ids, in the graph; of a text that is too long only the beginning is read.

    A text is cut twice: to `16 * max_length` characters before it is tokenised, so that the longest line costs no more
    than one of that length, and then to `max_length` tokens, the end of sentence counted.

    Args:
        tokenizer: The tokenizer.
        texts: Texts (B,).
        max_length: Tokens that are read of each, the end of sentence counted.

    Returns:
        `Tokens`.

    Example:
        >>> tokens = read(getfixture("tokenizer"), tf.constant(["", "abba" * 999]), max_length=7)
        >>> tokens.lengths.numpy().tolist(), tokens.truncated.numpy().tolist()
        ([1, 7], [False, True])
    """
    beginnings, cut = _beginnings(texts, CHARACTERS_PER_TOKEN * max_length)
    pieces = tokenizer.tokenize(beginnings)  # (B, None)
    truncated = cut | (pieces.row_lengths() > max_length - 1)
    ids = tf.concat([pieces[:, : max_length - 1], tf.fill([tf.size(texts), 1], EOS_ID)], axis=1)
    return Tokens(ids.to_tensor(PAD_ID), tf.cast(ids.row_lengths(), tf.int32), truncated)


def _beginnings(texts: tf.Tensor, characters: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the first characters of each text as valid UTF-8, and which texts (B,) had more."""
    # In bytes first, as counting characters reads every byte. A character has at most four, and one more is kept to
    # tell a text that is longer.
    texts = tf.strings.substr(texts, 0, 4 * (characters + 1))
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    longer = tf.strings.length(texts, unit="UTF8_CHAR") > characters
    return tf.strings.substr(texts, 0, characters, unit="UTF8_CHAR"), longer
