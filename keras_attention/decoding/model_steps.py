"""A model as a search uses it: its inputs, its step function and its initial state.

Shapes: B inputs, S source length, K beams, V vocabulary.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_attention.decoding.beam_search import Step, reorder, select
from keras_attention.decoding.small_attention import memory_dtype, select_attention


class CachedState(NamedTuple):
    """The caches of a model without a fused decoder.

    `layers` are the caches of self-attention, B·K rows, reordered with the beams; `cross` those of cross-attention, B
    rows, which the beams of a sentence share; `mask` is the padding mask of the source, B rows.
    """

    layers: Any
    cross: Any
    mask: Any

    def reordered(self, parents: tf.Tensor) -> "CachedState":
        """Returns the state in which each beam continues another of its sentence, `parents` (B, K)."""
        return self._replace(layers=reorder(self.layers, parents))

    def selected(self, sentences: tf.Tensor) -> "CachedState":
        """Returns the state of only the sentences at the indices `sentences` (B',)."""
        rows = tf.shape(tf.nest.flatten(self.layers)[0])[0]
        beams = rows // tf.maximum(tf.shape(self.mask)[0], 1)
        cross, mask = select((self.cross, self.mask), sentences, 1)
        return CachedState(select(self.layers, sentences, beams), cross, mask)


def with_source(model: Any, source: tf.Tensor, beams: int) -> tuple[Step, Any]:
    """Returns the step of a model with a source (B, S), and the state before the first token."""
    if getattr(model, "can_fuse", False):
        decoder = model.fused_decoder(select_attention(beams), memory_dtype(beams))
        return decoder.step, decoder.read(source, beams)
    memory, mask = model.encode(source)  # (B, S, M), (B, S)
    cache = model.init_cache(memory, tf.shape(source)[0] * beams)

    def step(ids: tf.Tensor, state: CachedState) -> tuple[tf.Tensor, CachedState]:
        # The loop loses the static number of heads.
        cross = tf.nest.map_structure(
            lambda x, initial: tf.ensure_shape(x, [None, *initial.shape[1:]]), state.cross, cache.cross
        )
        logits, grown = model.decode_step(ids[:, None], cache._replace(layers=state.layers, cross=cross), state.mask)
        return logits[:, 0], state._replace(layers=grown.layers)

    return step, CachedState(cache.layers, cache.cross, mask)


def language_model(model: Any, prompts: tf.Tensor, beams: int) -> tuple[Step, Any]:
    """Returns the step of a decoder-only model, and the state after the prompts (B, t), which have no padding."""
    if getattr(model, "can_fuse", False):
        decoder = model.fused_decoder(select_attention(beams), memory_dtype(beams))
        return decoder.step, decoder.start(prompts, beams)
    rows = tf.repeat(prompts, beams, axis=0)  # (B·K, t)
    _, cache = model.decode_step(rows, model.init_cache(tf.shape(rows)[0]))

    def step(ids: tf.Tensor, layers: Any) -> tuple[tf.Tensor, Any]:
        logits, grown = model.decode_step(ids[:, None], cache._replace(layers=layers))
        return logits[:, 0], grown.layers

    return step, cache.layers


def learned_positions(model: Any) -> int | None:
    """Returns the number of positions that a model has learned, None where its sequences may have any length."""
    return getattr(getattr(model, "config", None), "max_length", None)


def check_ids(ids: Any, name: str) -> tf.Tensor:
    """Returns token ids (B, T) as int32, after a check of their dtype and rank."""
    ids = tf.convert_to_tensor(ids)
    if not ids.dtype.is_integer:
        raise TypeError(
            f"`{name}` must be integers, as a tokenizer returns them. Received: {name}.dtype={ids.dtype.name}"
        )
    if ids.shape.rank != 2:
        raise ValueError(
            f"`{name}` must have shape (B, length): a row for each sentence, padded. Received: {name}.shape={ids.shape}"
        )
    return tf.cast(ids, tf.int32)
