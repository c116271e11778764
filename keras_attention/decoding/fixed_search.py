"""The loop of a beam search with fixed shapes, which JAX compiles once: it ends with the last sentence.

Shapes: B sentences, K beams, L positions of a hypothesis, t of them written.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_attention.decoding.hypotheses import Hypotheses
from keras_attention.decoding.search_state import Search
from keras_attention.decoding.tensors import is_tensorflow
from keras_attention.layers.arguments import concrete_integer


def fixed_search(advance: Callable[[Any, Any, Search], Search], search: Search, t: Any, batch_size: int) -> Hypotheses:
    """Runs the step `advance(t, sentences, search)` from t on until every sentence is done."""
    sentences = ops.arange(batch_size, dtype="int32")
    if batch_size:  # without sentences, some operations have no result
        t, search = ops.while_loop(
            lambda t, search: ~ops.all(search.done),
            lambda t, search: (t + 1, advance(t, sentences, search)),
            (ops.convert_to_tensor(t, "int32"), search),
        )
    length = concrete_integer(t)  # unknown in a compiled function, whose caller cuts the ids
    return search.finished._replace(ids=search.finished.ids[:, :, :length])


def written_ids(ids: Any, t: Any) -> Any:
    """Returns the tokens of ids (B, K, L) before index t as (B·K, t), or where t is unknown (B·K, L) after -1's."""
    beams, length = ids.shape[1:]
    if is_tensorflow():
        return ops.reshape(ids, (-1, t))
    known = concrete_integer(t)
    if known is not None:
        return ops.reshape(ids[:, :, :known], (ids.shape[0] * beams, known))
    sources = ops.arange(length) - (length - t)  # (L,)
    ids = ops.take(ids, ops.maximum(sources, 0), axis=2)  # (B, K, L)
    return ops.reshape(ops.where(sources >= 0, ids, -1), (ids.shape[0] * beams, length))


def number_written(ids: Any) -> Any:
    """Returns the number of tokens t in `written_ids`."""
    return ops.sum(ops.cast(ids[0] >= 0, "int32")) if keras.backend.backend() == "jax" else ops.shape(ids)[1]
