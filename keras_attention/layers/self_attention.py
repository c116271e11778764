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
    """Multi-head attention whose query, key and value are the same sequence.

    Args:
        num_heads: h, the number of heads.
        key_dim: d_k, the width of each head; M / h by default, where h must divide M.
        **kwargs: Other arguments of `MultiHeadAttention`.

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
        """Attends from each position of x to those of x, after those of the cache if one is given.

        Args:
            x: (B, T, M).
            padding_mask: Boolean (B, S), True at real tokens; with a cache, S includes the cached positions.
            attention_mask: Boolean (B, T, S), (B, H, T, S), or (T, S) where B differs from T.
            return_attention_scores: Whether to return the attention weights (B, H, T, S) as well.
            training: Whether to apply dropout.
            use_causal_mask: Whether a position attends only to itself and the positions before it.
            attention_bias: Added to the scaled scores, broadcastable to (B, H, T, S).
            segment_ids: Integers (B, T), one number for each sequence of a packed row: a position attends only to its
                own sequence, and positions restart in each.
            cache: Keys and values of earlier positions.
            mask: Implicit mask of x, which Keras passes; `padding_mask` has precedence.
            x_mask: Implicit mask of x, which Keras passes where x is not the only tensor.

        Returns:
            The output (B, T, M); or a tuple of the output, the attention weights and the cache, see
            `MultiHeadAttention`.

        Raises:
            ValueError: A mask of the wrong rank, a mask of other numbers than 0 and 1, or only an implicit mask with a
                cache.
        """
        implicit_mask = first_given(mask, x_mask)
        if cache is not None and padding_mask is None and implicit_mask is not None:
            raise ValueError(
                "The implicit mask of the inputs covers the new positions only. With a cache, give the padding mask "
                "(batch, cached and new positions) as an argument. "
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
                "`num_heads` must divide the width of x; or give `key_dim`. "
                f"Received: num_heads={self.num_heads}, width={width}"
            )
        return width // self.num_heads
