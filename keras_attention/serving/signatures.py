"""The signatures of an exported translator, each a function of tensors.

Every input and output has the batch axis B first, so that a server can join requests and split the results, and a
batch may be empty. Output strings are valid UTF-8. `truncated` (B,) marks the texts of which only the beginning was
read.
"""

from collections.abc import Callable

import tensorflow as tf

from keras_attention.decoding import score as score_pairs
from keras_attention.serving.graph_translator import IDS, SOURCE, GraphTranslator
from keras_attention.serving.tokenization import tokenize
from keras_attention.text import PAD_ID, UNK_ID, SubwordTokenizer

TARGET = tf.TensorSpec([None], tf.string, name="target")

# A signature: its function of the translator and tensors, and its inputs.
Signature = tuple[Callable[..., dict[str, tf.Tensor]], list[tf.TensorSpec]]


def translate(translator: GraphTranslator, source: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the best translation of each text (B,)."""
    return translator.serve(source)


def translate_nbest(translator: GraphTranslator, source: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns as many translations of each text (B,) as there are beams."""
    return translator.serve_nbest(source)


def score(translator: GraphTranslator, source: tf.Tensor, target: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the log probabilities of given translations (B,), truncated to the tokens that the search can write."""
    equal = tf.debugging.assert_equal(tf.size(source), tf.size(target), "There must be one target for each source. ")
    with tf.control_dependencies([equal]):  # before any operation whose error would not say why
        source, target = tf.identity(source), tf.identity(target)
    sources = translator.read(source)
    targets = tokenize(translator.tokenizer, target, translator.max_target_length)
    scored = score_pairs(translator.model, sources.ids, targets.ids)
    return {
        "score": tf.reduce_sum(scored.token_log_probs, axis=1),  # (B,), of the whole translation
        "tokens": scored.lengths,  # (B,), the end of sentence included
        "truncated": sources.truncated | targets.truncated,
    }


def align(translator: GraphTranslator, source: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the best translation of each text (B,) and the attention weights between their pieces."""
    sources = translator.read(source)
    best = translator.best(sources.ids)
    target_ids = best.ids[:, 0]  # (B, T)
    return {
        "text": translator.texts(best)[:, 0],
        "score": best.scores[:, 0],
        "source_pieces": pieces(translator.tokenizer, sources.ids),  # (B, S)
        "target_pieces": pieces(translator.tokenizer, target_ids),  # (B, T)
        "alignment": score_pairs(translator.model, sources.ids, target_ids).alignment,  # (B, T, S)
        "truncated": sources.truncated,
    }


def encode_ids(translator: GraphTranslator, source: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the token ids (B, S) that the model reads of texts (B,), for another runtime."""
    tokens = translator.read(source)
    return {"ids": tokens.ids, "truncated": tokens.truncated}


def decode_ids(translator: GraphTranslator, ids: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the texts (B,) of token ids (B, T) from another runtime; an unknown id is shown as ``⁇``."""
    most = max(translator.max_source_length, translator.max_target_length)
    rule = f"A row of ids must have at most {most}, as many as the model reads or writes; split it. Received: a row of"
    with tf.control_dependencies([tf.debugging.Assert(tf.shape(ids)[1] <= most, [rule, tf.shape(ids)[1]])]):
        ids = tf.identity(ids)
    known = (ids >= 0) & (ids < translator.tokenizer.vocabulary_size)
    return {"text": translator.tokenizer.detokenize(tf.where(known, ids, UNK_ID))}


SIGNATURES: dict[str, Signature] = {
    "serving_default": (translate, [SOURCE]),
    "translate_nbest": (translate_nbest, [SOURCE]),
    "score": (score, [SOURCE, TARGET]),
    "align": (align, [SOURCE]),
    "encode_ids": (encode_ids, [SOURCE]),
    "decode_ids": (decode_ids, [IDS]),
}
# Those that need no more than the search.
SEARCH_SIGNATURES = {name: SIGNATURES[name] for name in SIGNATURES if name not in ("score", "align")}


def pieces(tokenizer: SubwordTokenizer, ids: tf.Tensor) -> tf.Tensor:
    """Returns the pieces of ids, "" for padding, from a constant table: that needs no custom op on a server."""
    table = tokenizer.pieces(range(tokenizer.vocabulary_size))
    table[PAD_ID] = ""
    return tf.gather(tf.constant(table), ids)
