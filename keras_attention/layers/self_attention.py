"""Multi-head attention of a sequence to itself.

Shapes: B batch, T query length, S key length, M model width, H heads.
"""

from typing import Any

import keras

from keras_attention.layers.arguments import first_given, positive_integer
from keras_attention.layers.attention import MultiHeadAttention
from keras_attention.layers.cache import FixedKeyValueCache, KeyValueCache


@keras.saving.register_keras_serializable("keras_attention")
class MultiHeadSelfAttention(MultiHeadAttention):
    """Multi-head attention in which query, key and value are the same sequence.

    Args:
        num_heads: h, the number of heads.
        key_dim: d_k, the width of a head; M / h by default, which must then be whole.
        **kwargs: See `MultiHeadAttention`.

    Example:
        >>> attention = MultiHeadSelfAttention(num_heads=4)
        >>> x, padding_mask = keras.ops.ones((2, 5, 32)), keras.ops.ones((2, 5), dtype="bool")
        >>> print(attention(x, padding_mask=padding_mask).shape)
        (2, 5, 32)

    Source: Vaswani et al. 2017, section 3.2.3.
    """

    value_mask_name = "padding_mask"

    def __init__(self, num_heads: int, key_dim: int | None = None, **kwargs: Any):
        super().__init__(num_heads, key_dim, **kwargs)

    def build(self, x_shape: Any) -> None:
        super().build(x_shape)

    def compute_output_shape(self, x_shape: Any) -> tuple[int | None, ...]:
        return super().compute_output_shape(x_shape)

    def call(
        self,
        x: Any,
        padding_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        attention_bias: Any = None,
        segment_ids: Any = None,
        cache: KeyValueCache | FixedKeyValueCache | None = None,
        mask: Any = None,
        x_mask: Any = None,
    ) -> Any:
        """Attends from each position of x to the cached positions, if any, and to those of x.

        Args:
            x: (B, T, M).
            padding_mask: Boolean (B, S), True at real tokens; S counts the cached positions too.
            attention_mask: Boolean (B, T, S), (B, H, T, S), or (T, S) where B is another number than T.
            return_attention_scores: Also returns the weights (B, H, T, S).
            training: Whether to drop out.
            use_causal_mask: A position sees only itself and what is before it.
            attention_bias: Added to the scaled scores, broadcastable to (B, H, T, S).
            segment_ids: Integers (B, T), one number for each of the sequences packed into a row: a position sees
                its own sequence alone, and positions start again in each.
            cache: Keys and values of earlier positions.
            mask: The implicit mask of x, which Keras fills in; `padding_mask` beats it.
            x_mask: The same, where x is not the only tensor given.

        Returns:
            As `MultiHeadAttention`: the output (B, T, M), then the weights, then the cache.

        Raises:
            ValueError: A mask of the wrong rank, one that holds other numbers than 0 and 1, or only an implicit mask
                next to a cache.
        """
        implicit_mask = first_given(mask, x_mask)
        if cache is not None and padding_mask is None and implicit_mask is not None:
            raise ValueError(
                "The mask that comes with the inputs covers the new positions only. Beside a cache, give the padding "
                "mask (batch, cached and new positions) as an argument. "
                f"Received: mask.shape={tuple(implicit_mask.shape)}, x.shape={tuple(x.shape)}"
            )
        return super().call(
            x,
            x,
            value_mask=first_given(padding_mask, implicit_mask),
            attention_mask=attention_mask,
            return_attention_scores=return_attention_scores,
            training=training,
            use_causal_mask=use_causal_mask,
            attention_bias=attention_bias,
            query_segment_ids=segment_ids,
            value_segment_ids=segment_ids,
            cache=cache,
        )

    def _weights_shapes(self, x_shape: Any) -> tuple[Any, ...]:
        return super()._weights_shapes(x_shape, x_shape)

    def _check_key_dim(self, key_dim: int | None) -> int | None:
        return None if key_dim is None else positive_integer(key_dim, "key_dim")

    def _head_dim(self, width: int) -> int:
        if self.key_dim is not None:
            return self.key_dim
        if width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width of x, or `key_dim` be given. "
                f"Received: num_heads={self.num_heads}, width={width}"
            )
        return width // self.num_heads
