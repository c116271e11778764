"""Multi-head attention.

Shapes: B batch, T query length, S key length, M model width, H heads, D head width.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import initializer_for, positive_integer, probability
from keras_attention.layers.cache import KeyValueCache
from keras_attention.ops import masks
from keras_attention.ops.attention import dot_product_attention


@keras.saving.register_keras_serializable("keras_attention")
class MultiHeadAttention(keras.layers.Layer):
    """MultiHead(Q, K, V) = Concat(head_1, …, head_h) W_O, head_i = Attention(Q W_Q, K W_K, V W_V).

    Takes the place of `keras.layers.MultiHeadAttention` with the same weights in the same order, and
    leaves the masks of its inputs alone: they flow on, so that a stack of layers stays correct.

    Args:
        num_heads: h, the number of heads.
        key_dim: d_k, the width of a head's queries and keys.
        value_dim: d_v, the width of a head's values; d_k by default.
        dropout: Dropout on the attention weights.
        use_bias: Whether the four projections have a bias (the paper writes none).
        output_shape: Width of the output; that of the query by default.
        kernel_initializer: Of the projections.
        bias_initializer: Of their biases.
        kernel_regularizer: Of the projections.
        bias_regularizer: Of their biases.
        kernel_constraint: Of the projections.
        bias_constraint: Of their biases.
        seed: Of the dropout.
        **kwargs: `name`, `dtype` and the like.

    Raises:
        ValueError: A size that is not a positive integer, or a dropout outside [0, 1).

    Example:
        >>> attention = MultiHeadAttention(num_heads=2, key_dim=8)
        >>> query, value = keras.ops.ones((3, 5, 16)), keras.ops.ones((3, 7, 16))
        >>> output, weights = attention(query, value, return_attention_scores=True)
        >>> print(output.shape, weights.shape)
        (3, 5, 16) (3, 2, 5, 7)

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int | None,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = positive_integer(num_heads, "num_heads")
        self.key_dim = self._check_key_dim(key_dim)
        self.value_dim = None if value_dim is None else positive_integer(value_dim, "value_dim")
        self.output_dim = None if output_shape is None else positive_integer(output_shape, "output_shape")
        self.dropout = probability(dropout, "dropout")
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.seed = seed

    def build(self, query_shape: Any, value_shape: Any = None, key_shape: Any = None) -> None:
        value_shape = value_shape or query_shape
        key_shape = key_shape or value_shape
        for name, shape in (("query", query_shape), ("value", value_shape), ("key", key_shape)):
            if len(shape) != 3:
                raise ValueError(
                    f"`{name}` must have shape (batch, length, width). Received: {name}.shape={tuple(shape)}"
                )
        head_dim = self._head_dim(query_shape[-1])
        value_dim = self.value_dim or head_dim
        output_dim = self.output_dim or query_shape[-1]
        # Positions of all sequences stand in one row axis n: a single matrix product, and a single one for
        # the gradient of the kernel, where (b, s, m) would make a small one for each sequence.
        split, join = "nm,mhd->nhd", "nhd,hdm->nm"
        self.query_dense = self._projection("query", split, (self.num_heads, head_dim))
        self.key_dense = self._projection("key", split, (self.num_heads, head_dim))
        self.value_dense = self._projection("value", split, (self.num_heads, value_dim))
        self.output_dense = self._projection("attention_output", join, (output_dim,))
        self.query_dense.build((None, query_shape[-1]))
        self.key_dense.build((None, key_shape[-1]))
        self.value_dense.build((None, value_shape[-1]))
        self.output_dense.build((None, self.num_heads, value_dim))
        self.weights_dropout = keras.layers.Dropout(self.dropout, seed=self.seed, dtype=self.dtype_policy)

    def call(
        self,
        query: Any,
        value: Any = None,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Any:
        """Attends from the query to the cached positions, if any, followed by those of the value.

        Args:
            query: (B, T, M).
            value: (B, S, M); None attends to the cache alone.
            key: (B, S, M); the value by default.
            query_mask: Boolean (B, T): a masked query attends to nothing.
            value_mask: Boolean (B, S), True at real tokens; S counts the cached positions too.
            key_mask: Boolean (B, S), combined with `value_mask`.
            attention_mask: Boolean (B, T, S) or (B, H, T, S).
            return_attention_scores: Also returns the weights (B, H, T, S).
            training: Whether to drop out.
            use_causal_mask: A query sees the cached positions and the keys up to its own.
            cache: Keys and values of earlier positions, from `project` or an earlier call.

        Returns:
            The output (B, T, M); then the weights if asked for; then, where a cache was given, the cache
            followed by the value's positions. A single item stands alone, several come as a tuple.

        Raises:
            TypeError: A float mask.
            ValueError: Neither a value nor a cache, or a mask of the wrong rank.
        """
        if value is None and cache is None:
            raise ValueError("Give `value`, `cache` or both. Received: value=None, cache=None")
        keys_mask = masks.combine_masks(
            None if value_mask is None else masks.key_mask(value_mask, "value_mask"),
            None if key_mask is None else masks.key_mask(key_mask, "key_mask"),
        )  # (B, 1, 1, S)
        memory = cache
        if value is not None:
            memory = self.project(value, key, None if keys_mask is None or cache is not None else keys_mask[:, 0, 0])
            memory = memory if cache is None else cache.append(memory)
        queries = _split_heads(self.query_dense, query)  # (B, H, T, D)

        mask = masks.combine_masks(
            keys_mask,
            None if query_mask is None else masks.query_mask(query_mask),  # (B, 1, T, 1)
            None if attention_mask is None else masks.pair_mask(attention_mask),  # (B, H, T, S)
        )
        if use_causal_mask:
            offset = 0 if cache is None else cache.length
            causal = masks.causal_mask(ops.shape(queries)[2], memory.length, offset)  # (T, S)
            mask = masks.combine_masks(mask, causal)

        context, weights = dot_product_attention(
            queries, memory.key, memory.value, mask, self._weights_dropout(training)
        )  # (B, H, T, D), (B, H, T, S)
        output = _join_heads(self.output_dense, context)  # (B, T, M)

        results = [output]
        if return_attention_scores:
            results.append(weights)
        if cache is not None:
            results.append(memory)
        return output if len(results) == 1 else tuple(results)

    def project(self, value: Any, key: Any = None, padding_mask: Any = None) -> KeyValueCache:
        """Projects keys and values, once for any number of queries.

        Args:
            value: (B, S, M).
            key: (B, S, M); the value by default.
            padding_mask: Boolean (B, S). Masked positions are zeroed, since a NaN would survive a
                weight of zero.

        Returns:
            K and V as a cache.

        Example:
            >>> attention = MultiHeadAttention(num_heads=2, key_dim=8)
            >>> memory = keras.ops.ones((3, 7, 16))
            >>> _ = attention(memory, memory)
            >>> print(attention.project(memory).key.shape)
            (3, 2, 7, 8)
        """
        key = value if key is None else key
        if padding_mask is not None:
            real = masks.key_mask(padding_mask)[:, 0, 0, :, None]  # (B, S, 1)
            cleaned = ops.where(real, value, ops.zeros_like(value))
            key = cleaned if key is value else ops.where(real, key, ops.zeros_like(key))
            value = cleaned
        return KeyValueCache(_split_heads(self.key_dense, key), _split_heads(self.value_dense, value))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_shape": self.output_dim,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            "seed": self.seed,
        }

    def _check_key_dim(self, key_dim: int | None) -> int | None:
        return positive_integer(key_dim, "key_dim")

    def _head_dim(self, width: int) -> int:
        return self.key_dim

    def _projection(self, name: str, equation: str, output_shape: tuple) -> keras.layers.EinsumDense:
        return keras.layers.EinsumDense(
            equation,
            output_shape=output_shape,
            bias_axes=equation[-len(output_shape) :] if self.use_bias else None,
            kernel_initializer=initializer_for(name, self.kernel_initializer),
            bias_initializer=initializer_for(name, self.bias_initializer),
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            kernel_constraint=self.kernel_constraint,
            bias_constraint=self.bias_constraint,
            dtype=self.dtype_policy,
            name=name,
        )

    def _weights_dropout(self, training: bool | None) -> Any:
        if self.dropout == 0.0:
            return None
        return lambda weights: self.weights_dropout(weights, training=training)


def _split_heads(dense: keras.layers.Layer, x: Any) -> Any:
    batch, length, width = ops.shape(x)
    heads = dense(ops.reshape(x, (batch * length, width)))  # (B·S, H, D)
    heads = ops.reshape(heads, (batch, length, *heads.shape[1:]))  # (B, S, H, D)
    return ops.transpose(heads, (0, 2, 1, 3))  # (B, H, S, D)


def _join_heads(dense: keras.layers.Layer, context: Any) -> Any:
    batch, heads, length, width = ops.shape(context)
    rows = ops.reshape(ops.transpose(context, (0, 2, 1, 3)), (batch * length, heads, width))  # (B·T, H, D)
    rows = dense(rows)  # (B·T, M)
    return ops.reshape(rows, (batch, length, rows.shape[-1]))  # (B, T, M)
