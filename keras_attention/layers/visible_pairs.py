"""Which query may attend to which key, from everything a caller can say about it.

Shapes: B batch, T query length, S key length, H heads.
"""

from typing import Any

from keras import ops

from keras_attention.layers.arguments import first_given
from keras_attention.layers.axes import AttentionAxes
from keras_attention.ops import masks
from keras_attention.ops.visible_pairs import VisiblePairs


def visible_pairs(
    axes: AttentionAxes,
    query: Any,
    value: Any,
    memory: Any,
    offset: Any,
    query_mask: Any = None,
    value_mask: Any = None,
    key_mask: Any = None,
    attention_mask: Any = None,
    query_segment_ids: Any = None,
    value_segment_ids: Any = None,
    use_causal_mask: bool = False,
    sliding_window: int | None = None,
    num_heads: int | None = None,
    value_mask_name: str = "value_mask",
) -> VisiblePairs:
    """The conjunction of all masks.

    Args:
        axes: Of the inputs.
        query: (B, …, M).
        value: (B, …, M), or None.
        memory: The cache of all keys, (B, H, S, D).
        offset: Position of the first query among the keys.
        query_mask: Boolean (B, T).
        value_mask: Boolean (B, S).
        key_mask: Boolean (B, S).
        attention_mask: Boolean (B, T, S), (B, H, T, S), or (T, S) where B is another number than T.
        query_segment_ids: Integers (B, T).
        value_segment_ids: Integers (B, S).
        use_causal_mask: Whether a query sees the keys up to its own position alone.
        sliding_window: A query sees keys at a distance below this alone; None for any.
        num_heads: H, where it is to be checked.
        value_mask_name: What the caller calls the value's mask, for messages.

    Returns:
        Which pairs are visible, without a mask of all of them.

    Raises:
        ValueError: A mask of the wrong rank or length.
    """
    batch, keys, queries = memory.key.shape[0], memory.key.shape[2], axes.length(query)
    of_keys, of_queries, of_pairs = [memory.filled()], None, None
    for mask, name in ((value_mask, value_mask_name), (key_mask, "key_mask")):
        if mask is not None:
            mask = masks.key_mask(axes.padding_mask(mask, name), name)  # (B, 1, 1, S)
            masks.check_mask_fits(mask, name, batch=batch, heads=1, queries=1, keys=keys)
            of_keys.append(mask[:, 0, 0])
    if query_mask is not None:
        mask = masks.query_mask(axes.padding_mask(query_mask, "query_mask"))  # (B, 1, T, 1)
        masks.check_mask_fits(mask, "query_mask", batch=batch, heads=1, queries=queries, keys=1)
        of_queries = mask[:, 0, :, 0]
    if attention_mask is not None:
        mask = attention_mask
        if axes.is_sequence:
            mask = masks.same_pairs_for_all(mask, batch, queries, keys)
        of_pairs = masks.pair_mask(axes.attention_mask(mask, query, first_given(value, query)))  # (B, H or 1, T, S)
        sizes = {"batch": batch, "heads": num_heads, "queries": queries, "keys": keys}
        masks.check_mask_fits(of_pairs, "attention_mask", broadcast=True, **sizes)
    return VisiblePairs(
        keys=masks.combine_masks(*of_keys),
        queries=of_queries,
        pairs=of_pairs,
        query_segments=None if query_segment_ids is None else ops.cast(query_segment_ids, "int32"),
        key_segments=None if query_segment_ids is None else ops.cast(value_segment_ids, "int32"),
        is_causal=bool(use_causal_mask),
        window=sliding_window,
        offset=offset,
    )
