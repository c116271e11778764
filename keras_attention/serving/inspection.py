"""The signature `inspect` of an export: a translation with changed attention, and the weights of every head.

Shapes: B batch, S source length, T target length, N layers, H heads.
"""

from dataclasses import replace
from typing import Any

import tensorflow as tf

from keras_attention.decoding import generate
from keras_attention.decoding.task import EXTRA_LENGTH
from keras_attention.models import InspectedTransformer, Transformer
from keras_attention.models.inspected_transformer import MAX_SCALE, NO_WINDOW
from keras_attention.serving.graph_translator import SOURCE, GraphTranslator
from keras_attention.serving.signatures import Signature, pieces
from keras_attention.serving.tokenization import tokenize
from keras_attention.text import BOS_ID, EOS_ID, PAD_ID

# The weights of a text grow with the square of its length, and nobody reads those of a page.
MAX_INSPECTED_LENGTH = 64


def inspect(
    translator: GraphTranslator,
    source: tf.Tensor,
    encoder_head_mask: tf.Tensor,
    decoder_head_mask: tf.Tensor,
    cross_head_mask: tf.Tensor,
    window: tf.Tensor,
    scale: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Returns the best translation of each text (B,) by an `InspectedTransformer`, and its attention weights.

    Each text has its own masks of heads (B, N, H), window (B,), -1 for none, and factor of the scale (B,).
    """
    rows = [tf.shape(each)[0] for each in (encoder_head_mask, decoder_head_mask, cross_head_mask, window, scale)]
    checks = [
        _check(
            tf.reduce_all(tf.stack(rows) == tf.shape(source)[0]), "Each input must have a row for each source", rows
        ),
        _check((window == -1) | (window >= 1), "`window` must be 1 or more, or -1 for no window", window),
        _check((scale >= 0) & (scale <= MAX_SCALE), f"`scale` must be a number from 0 to {MAX_SCALE:g}", scale),
    ]
    with tf.control_dependencies(checks):
        window = tf.where(window == -1, NO_WINDOW, window)
        source = tf.identity(source)
    model = InspectedTransformer(
        translator.model, encoder_head_mask, decoder_head_mask, cross_head_mask, window=window, scale=scale
    )
    sources = tokenize(translator.tokenizer, source, inspected_lengths(translator)["max_source_length"])
    options = replace(translator.options, num_return=1)
    best = generate(model, sources.ids, options, bos_id=BOS_ID, eos_id=EOS_ID, pad_id=PAD_ID)
    target_ids = best.ids[:, 0]  # (B, T)
    weights = model.attention_weights(sources.ids, target_ids, bos_id=BOS_ID)
    return {
        "text": translator.texts(best)[:, 0],
        "score": best.scores[:, 0],
        "source_pieces": pieces(translator.tokenizer, sources.ids),  # (B, S)
        "target_pieces": pieces(translator.tokenizer, target_ids),  # (B, T)
        "encoder_weights": weights.encoder,  # (B, N, H, S, S)
        "decoder_weights": weights.decoder,  # (B, N, H, T, T)
        "cross_weights": weights.cross,  # (B, N, H, T, S)
        "truncated": sources.truncated,
    }


def inspect_signature(translator: GraphTranslator) -> Signature:
    """Returns the signature `inspect` for the numbers of layers and heads of a translator's model."""
    if not isinstance(translator.model, Transformer):
        raise ValueError(
            "`inspect=True` needs the translator of a `Transformer`; leave it out for other models. "
            f"Received: inspect=True, translator.model={translator.model!r:.200}"
        )
    if translator.shortlist is not None:
        raise ValueError(
            "`inspect=True` searches the whole vocabulary: export without a shortlist, or without `inspect`. "
            f"Received: inspect=True, translator.shortlist of {translator.shortlist.size}"
        )
    config = translator.model.config
    depths = {"encoder": config.num_layers, "decoder": config.decoder_depth, "cross": config.decoder_depth}
    masks = [
        tf.TensorSpec([None, depth, config.num_heads], tf.bool, name=f"{kind}_head_mask")
        for kind, depth in depths.items()
    ]
    changes = [tf.TensorSpec([None], tf.int32, name="window"), tf.TensorSpec([None], tf.float32, name="scale")]
    return inspect, [SOURCE, *masks, *changes]


def inspected_lengths(translator: GraphTranslator) -> dict[str, int | None]:
    """Returns the maximum numbers of tokens that `inspect` reads and writes, and the option `max_length`."""
    most, max_length = min(MAX_INSPECTED_LENGTH, translator.max_source_length), translator.options.max_length
    target = min(max_length or most - 1 + EXTRA_LENGTH, translator.max_target_length)
    return {"max_source_length": most, "max_target_length": target, "max_length": max_length}


def _check(is_right: tf.Tensor, rule: str, received: Any) -> tf.Operation:
    return tf.debugging.Assert(tf.reduce_all(is_right), [f"{rule}. Received:", received])
