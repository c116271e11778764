"""Pure functions of tensors: attention, masks, positions. They run on every Keras backend."""

from keras_attention.ops.attention import dot_product_attention, masked_softmax
from keras_attention.ops.masks import as_mask, causal_mask, combine_masks, key_mask, pair_mask, query_mask
from keras_attention.ops.sinusoids import sinusoids

__all__ = [
    "as_mask",
    "causal_mask",
    "combine_masks",
    "dot_product_attention",
    "key_mask",
    "masked_softmax",
    "pair_mask",
    "query_mask",
    "sinusoids",
]
