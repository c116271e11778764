"""What a call of multi-head attention is given, checked before anything is computed.

Shapes: B batch, T query length, S key length, M model width.
"""

from typing import Any

import keras

from keras_attention.layers.axes import AttentionAxes
from keras_attention.layers.cache import FixedKeyValueCache, KeyValueCache
from keras_attention.layers.input_checks import check_batches_and_lengths, check_same, check_sequence
from keras_attention.ops import masks


def check_attention_call(
    axes: AttentionAxes, query: Any, value: Any, key: Any, cache: Any, query_segment_ids: Any, value_segment_ids: Any
) -> list[Any]:
    """Refuses inputs that do not fit together. Sizes that are not known yet are not looked at.

    Args:
        axes: Of the inputs.
        query: (B, …, M).
        value: (B, …, M), or None.
        key: (B, …, M), or None.
        cache: A cache, or None.
        query_segment_ids: Integers (B, T), or None.
        value_segment_ids: Integers (B, S), or None.

    Returns:
        Query, value and key, dense.

    Raises:
        TypeError: Inputs that are no floats, or something else in the place of a cache.
        ValueError: Inputs of the wrong rank, of different batches or lengths, segment ids that lack their other half.
    """
    rank = 3 if axes.is_sequence else None
    named = {"query": query, "value": value, "key": key}
    given = {name: x if x is None else check_sequence(x, name, rank) for name, x in named.items()}
    if value is None and cache is None:
        raise ValueError("Give `value`, `cache` or both. Received: value=None, cache=None")
    if value is not None:
        check_batches_and_lengths(query.shape, value.shape, None if key is None else key.shape)
    if cache is not None:
        _check_cache(axes, query, cache, query_segment_ids)
    if (query_segment_ids is None) != (value_segment_ids is None):
        raise ValueError(
            "`query_segment_ids` and `value_segment_ids` go together. "
            f"Received: query_segment_ids={_shown(query_segment_ids)}, value_segment_ids={_shown(value_segment_ids)}"
        )
    if query_segment_ids is not None:
        for x, ids, name in ((query, query_segment_ids, "query"), (value, value_segment_ids, "value")):
            masks.check_segments_fit(ids, f"segment ids of the {name}", *x.shape[:2])
    return list(given.values())


def check_attention_bias(bias: Any, batch: Any, heads: int, queries: Any, keys: Any) -> None:
    """Refuses a bias that cannot be added to the scores.

    Args:
        bias: Broadcastable to (B, H, T, S).
        batch: B.
        heads: H.
        queries: T.
        keys: S.

    Raises:
        TypeError: A boolean bias.
        ValueError: Another size.
    """
    dtype = keras.backend.standardize_dtype(bias.dtype)
    if dtype == "bool":
        raise TypeError(
            "`attention_bias` is added to the scores; a mask, True = attend, goes to `attention_mask`. "
            f"Received: attention_bias.dtype={dtype}"
        )
    sizes = {"batch": batch, "heads": heads, "queries": queries, "keys": keys}
    sizes = dict(list(sizes.items())[-len(bias.shape) :]) if len(bias.shape) else {}
    masks.check_mask_fits(bias, "attention_bias", broadcast=True, **sizes)


def _check_cache(axes: AttentionAxes, query: Any, cache: Any, query_segment_ids: Any) -> None:
    if not isinstance(cache, KeyValueCache | FixedKeyValueCache):
        raise TypeError(
            "`cache` is a KeyValueCache or FixedKeyValueCache, from `init_cache`, `project` or an earlier call; a "
            f"stack takes one for each layer. Received: cache of type {type(cache).__name__}"
        )
    if not axes.is_sequence or query_segment_ids is not None:
        raise ValueError(
            "A cache holds one sequence a row, (batch, length, width), without segment ids. Received: cache with "
            f"query.shape={tuple(query.shape)}, query_segment_ids={_shown(query_segment_ids)}"
        )
    check_same("query", query.shape[:1], "cache", cache.key.shape[:1], "batch")


def _shown(ids: Any) -> str:
    return "None" if ids is None else f"ids of shape {tuple(getattr(ids, 'shape', ()))}"
