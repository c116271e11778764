"""Checks of the tensors that layers are called with.

Shapes: B batch, T query length, S key length, M model width, H heads. Unknown sizes are not checked.
"""

import numbers
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.layers.arguments import concrete_integer, first_given
from keras_attention.layers.axes import AttentionAxes
from keras_attention.layers.cache import FixedKeyValueCache, KeyValueCache
from keras_attention.ops import masks


def check_sequence(x: Any, name: str, rank: int | None = 3) -> Any:
    """Checks for a padded batch of vectors and returns it dense: Keras treats a symbolic `x * 2` as sparse."""
    if hasattr(x, "row_splits"):
        raise TypeError(
            f"`{name}` must be a padded tensor: give {name}.to_tensor() with its padding mask. "
            f"Received: a ragged tensor of shape {tuple(x.shape)}"
        )
    dtype = keras.backend.standardize_dtype(x.dtype)
    if "float" not in dtype:
        raise TypeError(
            f"`{name}` must hold floats, such as the vectors that a TokenEmbedding makes of ids. "
            f"Received: {name}.dtype={dtype}"
        )
    check_shape(x.shape, name, rank)
    return ops.convert_to_tensor(x, sparse=False)


def check_shape(shape: Any, name: str, rank: int | None = 3, like: str | None = None) -> None:
    """Checks for (batch, …, width) with a known width; a rank of None allows three axes or more."""
    check_given(shape, name)
    if len(shape) < 3 if rank is None else len(shape) != rank:
        axes = "(batch, length, width)" if rank == 3 or rank is None else f"of {rank} axes"
        equal = f": the ranks of `{like}` and `{name}` must be equal" if like else ""
        vectors = "vectors, such as a TokenEmbedding makes of ids, in " if len(shape) == 2 else ""
        raise ValueError(f"`{name}` must have {vectors}shape {axes}{equal}. Received: {name}.shape={tuple(shape)}")
    if shape[-1] is None:
        raise ValueError(f"The last axis of `{name}`, its width, must be known. Received: {name}.shape={tuple(shape)}")


def check_given(shape: Any, name: str) -> None:
    """Refuses None where a tensor is required."""
    if shape is None:
        raise TypeError(f"`{name}` must be a tensor (batch, length, width). Received: {name}=None")


def check_built(layer: Any, method: str) -> None:
    """Refuses a method that needs weights, before the layer is built."""
    if not layer.built:
        raise ValueError(f"The layer must be built before `{method}`: call it once. Received: {layer.name}, not built")


def start_position(start_index: Any) -> Any:
    """Returns the position of the first token as a Python integer or a scalar int32 tensor."""
    if isinstance(start_index, numbers.Integral) and not isinstance(start_index, bool):
        start_index = int(start_index)
    else:
        dtype = getattr(start_index, "dtype", None)
        is_other = dtype is not None and "int" not in keras.backend.standardize_dtype(dtype)
        if is_other or start_index is None or isinstance(start_index, str | bool | float | list | tuple):
            raise TypeError(f"`start_index` is an integer. Received: start_index={start_index!r}")
        if dtype is None:
            return start_index  # a symbolic size, while a program is exported
        if len(start_index.shape):
            raise ValueError(
                "`start_index` is one position for all rows, a scalar. "
                f"Received: start_index.shape={tuple(start_index.shape)}"
            )
        start_index = ops.cast(start_index, "int32")
    known = concrete_integer(start_index)
    if known is not None and known < 0:
        raise ValueError(f"`start_index` counts from 0. Received: start_index={known}")
    return start_index


def check_batches_and_lengths(query_shape: Any, value_shape: Any, key_shape: Any = None) -> None:
    """Checks that query, value and key have the same batch size, and that there is a key for each value."""
    check_same("query", query_shape[:1], "value", value_shape[:1], "batch")
    if key_shape is not None:
        what = "batch and length, a key for each value: all sizes but the last must be equal"
        check_same("key", key_shape[:-1], "value", value_shape[:-1], what)


def check_same(name: str, shape: Any, other_name: str, other: Any, what: str) -> None:
    """Checks that two shapes of the same rank are equal."""
    if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(shape, other, strict=True)):
        raise ValueError(
            f"`{name}` and `{other_name}` must have the same {what}. "
            f"Received: {tuple(shape)} of {name}, {tuple(other)} of {other_name}"
        )


def check_attention_inputs(
    axes: AttentionAxes, query: Any, value: Any, key: Any, cache: Any, query_segment_ids: Any, value_segment_ids: Any
) -> list[Any]:
    """Checks that the inputs of attention fit together; returns query, value and key, dense."""
    rank = 3 if axes.is_sequence else None
    named = {"query": query, "value": value, "key": key}
    inputs = [x if x is None else check_sequence(x, name, rank) for name, x in named.items()]
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
    return inputs


class AttentionMasks(NamedTuple):
    """The masks of an attention call, checked and boolean; None allows everything.

    Attributes:
        queries: (B, T), False where a query attends to nothing.
        keys: (B, S), cached positions and those of the value.
        pairs: (B or 1, H or 1, T or 1, S or 1).
        padding: Padding of the value (B, …), with its axes; None with a cache, whose positions `keys` includes.
        valid: Scalar for `ops.masks.nan_unless`.
    """

    queries: Any
    keys: Any
    pairs: Any
    padding: Any
    valid: Any


def check_attention_masks(
    axes: AttentionAxes,
    query: Any,
    value: Any,
    cache: Any = None,
    num_heads: int = 1,
    query_mask: Any = None,
    attention_mask: Any = None,
    **key_masks: Any,
) -> AttentionMasks:
    """Checks all masks of an attention call; `key_masks` are those of the value and the key, by argument name."""
    (query_mask, attention_mask, *key_masks_by_order), valid = masks.checked_masks(
        query_mask=query_mask, attention_mask=attention_mask, **key_masks
    )
    key_masks = {name: x for name, x in zip(key_masks, key_masks_by_order, strict=True) if x is not None}
    key_length = _key_length(axes, value, cache)
    key_sizes = axes.sizes(value) if cache is None else {"batch": query.shape[0], "keys": key_length}
    keys = [_padding_mask(axes, mask, name, key_sizes) for name, mask in key_masks.items()]
    if query_mask is not None:
        query_mask = _padding_mask(axes, query_mask, "query_mask", axes.sizes(query))
    if attention_mask is not None:
        attention_mask = _pair_mask(axes, attention_mask, query, value, num_heads, key_length)
    return AttentionMasks(
        queries=query_mask,
        keys=masks.combine_masks(*keys),
        pairs=attention_mask,
        padding=masks.combine_masks(*key_masks.values()) if cache is None else None,
        valid=valid,
    )


def check_attention_bias(
    axes: AttentionAxes, bias: Any, query: Any, value: Any, cache: Any = None, num_heads: int = 1
) -> Any:
    """Checks that a bias broadcasts to the scores (B, H, T, S)."""
    bias = ops.convert_to_tensor(bias)
    dtype = keras.backend.standardize_dtype(bias.dtype)
    if dtype == "bool":
        raise TypeError(
            "`attention_bias` is added to the scores; a mask, True = attend, goes to `attention_mask`. "
            f"Received: attention_bias.dtype={dtype}"
        )
    bias = axes.attention_mask(bias, query, value)
    sizes = _pair_sizes(axes, query, num_heads, _key_length(axes, value, cache))
    sizes = dict(list(sizes.items())[-len(bias.shape) :]) if len(bias.shape) else {}
    masks.check_mask_fits(bias, "attention_bias", broadcast=True, **sizes)
    return bias


def _padding_mask(axes: AttentionAxes, mask: Any, name: str, sizes: dict[str, Any]) -> Any:
    """A mask of positions as (B, T), from a mask with the axes of its input."""
    flat = masks.key_mask(axes.padding_mask(mask, name), name)[:, 0, 0]  # checks the rank
    masks.check_mask_fits(mask, name, **sizes)
    return flat


def _pair_mask(axes: AttentionAxes, mask: Any, query: Any, value: Any, num_heads: int, key_length: Any) -> Any:
    """A mask of pairs as (B or 1, H or 1, T, S)."""
    sizes = _pair_sizes(axes, query, num_heads, key_length)
    if axes.is_sequence:
        mask = masks.same_pairs_for_all(mask, sizes["batch"], sizes["queries"], sizes["keys"])
    mask = masks.pair_mask(axes.attention_mask(mask, query, first_given(value, query)))
    masks.check_mask_fits(mask, "attention_mask", broadcast=True, **sizes)
    return mask


def _pair_sizes(axes: AttentionAxes, query: Any, num_heads: int, key_length: Any) -> dict[str, Any]:
    batch = query.shape[0] if axes.is_sequence else None  # other axes join the batch
    return {"batch": batch, "heads": num_heads, "queries": axes.length(query), "keys": key_length}


def _key_length(axes: AttentionAxes, value: Any, cache: Any) -> Any:
    """S, the number of cached positions and those of the value; None where it is unknown."""
    if cache is None:
        return axes.length(value)
    cached = cache.key.shape[2]
    if value is None or isinstance(cache, FixedKeyValueCache):  # its storage holds the value's positions too
        return cached
    return None if None in (cached, value.shape[1]) else cached + value.shape[1]


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
