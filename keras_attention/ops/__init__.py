"""Pure functions of tensors: attention, masks, positions. They run on every Keras backend."""

from keras_attention.ops.attention import dot_product_attention, fused_attention, masked_softmax
from keras_attention.ops.blockwise import blockwise_attention
from keras_attention.ops.masks import (
    as_mask,
    causal_mask,
    check_mask_fits,
    check_segments_fit,
    combine_masks,
    key_mask,
    pair_mask,
    query_mask,
    segment_mask,
    segment_positions,
    window_mask,
)
from keras_attention.ops.positions import alibi_slopes, distance_buckets, rotate, sinusoids
from keras_attention.ops.visible_pairs import VisiblePairs

__all__ = [
    "VisiblePairs",
    "alibi_slopes",
    "as_mask",
    "blockwise_attention",
    "causal_mask",
    "check_mask_fits",
    "check_segments_fit",
    "combine_masks",
    "distance_buckets",
    "dot_product_attention",
    "fused_attention",
    "key_mask",
    "masked_softmax",
    "pair_mask",
    "query_mask",
    "rotate",
    "segment_mask",
    "segment_positions",
    "sinusoids",
    "window_mask",
]
