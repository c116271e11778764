"""Attention over long sequences, block by block; the rest of the package enters through `blockwise_attention`."""

from keras_attention.ops.blockwise.attention import blockwise_attention, is_long

__all__ = ["blockwise_attention", "is_long"]
