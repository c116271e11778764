"""A model as a search uses it: its inputs, its step function and its initial state.

Shapes: B inputs, S source length, K beams, V vocabulary.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_attention.decoding.beam_search import Step
from keras_attention.decoding.search_state import reorder, select
from keras_attention.decoding.tensors import is_tensorflow, rows_of_each


class CachedState(NamedTuple):
    """The cache of a model without a fused decoder.

    Its `layers` are the caches of self-attention, B·K rows, reordered with the beams; `cross` those of cross-attention,
    B rows, which a sentence's beams share. `mask` is the padding mask of the source (B, S), without a source (B, 0).
    """

    cache: Any
    mask: Any

    def reordered(self, parents: Any) -> "CachedState":
        """Returns the state in which each beam continues another of its sentence, `parents` (B, K)."""
        return self._replace(cache=self.cache._replace(layers=reorder(self.cache.layers, parents)))

    def selected(self, sentences: Any) -> "CachedState":
        """Returns the state of only the sentences at the indices `sentences` (B',)."""
        rows = ops.shape(keras.tree.flatten(self.cache.layers)[0])[0]
        beams = rows_of_each(rows, ops.shape(self.mask)[0])
        cross, mask = select((self.cache.cross, self.mask), sentences, 1)
        return CachedState(self.cache._replace(layers=select(self.cache.layers, sentences, beams), cross=cross), mask)


def with_source(model: Any, source: Any, beams: int, capacity: int | None = None) -> tuple[Step, Any]:
    """Returns the step of a model with a source (B, S), and the state before the first token.

    With a `capacity`, the state has room for that number of tokens; otherwise it grows.
    """
    if capacity is None and getattr(model, "can_fuse", False):
        decoder = _fused_decoder(model, beams)
        return decoder.step, decoder.read(source, beams)
    memory, mask = model.encode(source)  # (B, S, M), (B, S)
    sizes = () if capacity is None else (capacity,)
    cache = model.init_cache(memory, ops.shape(source)[0] * beams, *sizes)
    return cached_step(model, cache), CachedState(cache, mask)


def language_model(
    model: Any, prompts: Any, beams: int, capacity: int | None = None, length: Any = None
) -> tuple[Step, Any]:
    """Returns the step of a decoder-only model, and the state after the prompts (B, t), which have no padding.

    With a `capacity`, the state has room for that number of tokens, and is that after the first `length` of a prompt.
    """
    if capacity is None and getattr(model, "can_fuse", False):
        decoder = _fused_decoder(model, beams)
        return decoder.step, decoder.start(prompts, beams)
    rows = ops.repeat(prompts, beams, axis=0)  # (B·K, t)
    sizes = () if capacity is None else (capacity,)
    cache = model.init_cache(ops.shape(rows)[0], *sizes)
    if prompts.shape[1] != 0:
        _, cache = model.decode_step(rows, cache)
    if capacity is not None:  # what is in the caches after their length does not count
        length = ops.cast(length, "int32")
        cache = cache._replace(layers=tuple(layer._replace(length=length) for layer in cache.layers))
    return cached_step(model, cache), CachedState(cache, ops.zeros((ops.shape(prompts)[0], 0), "bool"))


def cached_step(model: Any, initial: Any = None) -> Step:
    """Returns the step of a model whose state is a `CachedState`, with the shapes of an initial cache."""

    def step(ids: Any, state: CachedState) -> tuple[Any, CachedState]:
        masks = (state.mask,) if hasattr(model, "encode") else ()
        cache = state.cache
        if is_tensorflow():
            import tensorflow as tf

            # The loop loses the static number of heads.
            cross = tf.nest.map_structure(
                lambda x, y: tf.ensure_shape(x, [None, *y.shape[1:]]), cache.cross, initial.cross
            )
            cache = cache._replace(cross=cross)
        logits, cache = model.decode_step(ids[:, None], cache, *masks)
        return logits[:, 0], state._replace(cache=cache)

    return step


def _fused_decoder(model: Any, beams: int) -> Any:
    """Returns the fused decoder of a model on TensorFlow, with the attention for a search with K beams."""
    from keras_attention.decoding.small_attention import memory_dtype, select_attention  # imports TensorFlow

    return model.fused_decoder(select_attention(beams), memory_dtype(beams))


def learned_positions(model: Any) -> int | None:
    """Returns the number of positions that a model has learned, None where its sequences may have any length."""
    return getattr(getattr(model, "config", None), "max_length", None)


def check_ids(ids: Any, name: str) -> Any:
    """Returns token ids (B, T) as int32, after a check of their dtype and rank."""
    ids = ops.convert_to_tensor(ids)
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if "int" not in dtype:
        raise TypeError(f"`{name}` must be integers, as a tokenizer returns them. Received: {name}.dtype={dtype}")
    if len(ids.shape) != 2:
        raise ValueError(
            f"`{name}` must have shape (B, length): a row for each sentence, padded. "
            f"Received: {name}.shape={tuple(ids.shape)}"
        )
    return ops.cast(ids, "int32")


def known_ids(ids: Any, name: str, model: Any) -> np.ndarray:
    """Returns token ids as an array, after a check that the model knows them: JAX computes with any id."""
    ids = ops.convert_to_numpy(ids)
    vocabulary = getattr(getattr(model, "config", None), "vocabulary_size", None)
    if ids.size and (ids.min() < 0 or (vocabulary is not None and ids.max() >= vocabulary)):
        raise ValueError(
            f"`{name}` must be ids of the vocabulary, from 0 to below {vocabulary}. "
            f"Received: {name} from {ids.min()} to {ids.max()}"
        )
    return ids
