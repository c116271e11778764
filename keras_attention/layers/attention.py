"""Multi-head attention.

Shapes: B batch, T query length, S key length, M model width, H heads, G heads of keys and values, D head width.
"""

from typing import Any

import keras

from keras_attention.layers.arguments import (
    integer_or_none,
    integers,
    own_copy,
    positive_integer,
    positive_integers,
    probability,
)
from keras_attention.layers.cache import FixedKeyValueCache, KeyValueCache
from keras_attention.layers.call_checks import check_attention_call
from keras_attention.layers.heads import ProjectedHeads
from keras_attention.layers.visible_pairs import visible_pairs
from keras_attention.ops.mask_values import checked_masks, nan_unless


@keras.saving.register_keras_serializable("keras_attention")
class MultiHeadAttention(ProjectedHeads):
    """MultiHead(Q, K, V) = Concat(head_1, …, head_h) W_O, head_i = Attention(Q W_Q, K W_K, V W_V).

    Takes the place of `keras.layers.MultiHeadAttention` with the same weights in the same order, and
    leaves the masks of its inputs alone: they flow on, so that a stack of layers stays correct.

    Args:
        num_heads: h, the number of heads.
        key_dim: d_k, the width of a head's queries and keys.
        value_dim: d_v, the width of a head's values; d_k by default.
        dropout: Dropout on the attention weights.
        use_bias: Whether the projections have a bias (the paper writes none).
        output_shape: Width of the output, or several sizes; that of the query by default.
        attention_axes: The axes of positions, where inputs have more than one; all of them by default.
        sliding_window: A query sees keys at a distance below this alone.
        flash_attention: True for the flash kernel of the backend, an error where it has none; False for never.
        kernel_initializer: Of the projections.
        bias_initializer: Of their biases.
        kernel_regularizer: Of the projections.
        bias_regularizer: Of their biases.
        activity_regularizer: Of what the projections make.
        kernel_constraint: Of the projections.
        bias_constraint: Of their biases.
        use_gate: Whether sigmoid(Q W_G) scales what the heads make (Qiu et al. 2025).
        seed: Of the dropout.
        num_kv_heads: G, heads of keys and values, each shared by h/G query heads; h by default.
        qk_norm: Whether queries and keys are brought to unit root mean square, times a learned scale.
        position: How positions enter the scores: `RotaryPosition()`, `AlibiBias()`, `RelativePositionBias()`.
        **kwargs: `name`, `dtype` and the like.

    Raises:
        ValueError: A size that is not a positive integer, a dropout outside [0, 1), heads that `num_kv_heads`
            does not divide, flash attention with dropout.

    Example:
        >>> attention = MultiHeadAttention(num_heads=2, key_dim=8)
        >>> query, value = keras.ops.ones((3, 5, 16)), keras.ops.ones((3, 7, 16))
        >>> output, weights = attention(query, value, return_attention_scores=True)
        >>> print(output.shape, weights.shape)
        (3, 5, 16) (3, 2, 5, 7)

    Where the lengths are known when the program is made and T · S is at least 2^24, no tensor of all pairs is: memory
    grows with the length. Weights that are asked for, a bias of each pair and a `position` that is no function of the
    distance take one nevertheless.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    value_mask_name = "value_mask"

    def __init__(
        self,
        num_heads: int,
        key_dim: int | None,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | tuple[int, ...] | None = None,
        attention_axes: int | tuple[int, ...] | None = None,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        use_gate: bool = False,
        seed: int | None = None,
        num_kv_heads: int | None = None,
        qk_norm: bool = False,
        position: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = positive_integer(num_heads, "num_heads")
        self.key_dim = self._check_key_dim(key_dim)
        self.value_dim = None if value_dim is None else positive_integer(value_dim, "value_dim")
        self.dropout = probability(dropout, "dropout")
        self.use_bias = use_bias
        self.output_dims = positive_integers(output_shape, "output_shape")
        self.attention_axes = attention_axes if attention_axes is None else integers(attention_axes, "attention_axes")
        self.sliding_window = None if sliding_window is None else positive_integer(sliding_window, "sliding_window")
        self.flash_attention = flash_attention
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.projection_regularizer = keras.regularizers.get(activity_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.use_gate = use_gate
        self.seed = integer_or_none(seed, "seed")
        self.num_kv_heads = self.num_heads if num_kv_heads is None else positive_integer(num_kv_heads, "num_kv_heads")
        self.qk_norm = qk_norm
        self.position = own_copy(position, "position", self.trainable, dtype=self.dtype_policy)
        self._check_options()

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
        attention_bias: Any = None,
        query_segment_ids: Any = None,
        value_segment_ids: Any = None,
        cache: KeyValueCache | FixedKeyValueCache | None = None,
    ) -> Any:
        """Attends from the query to the cached positions, if any, followed by those of the value.

        Args:
            query: (B, T, M).
            value: (B, S, M); None attends to the cache alone.
            key: (B, S, M); the value by default.
            query_mask: Boolean (B, T): a masked query attends to nothing.
            value_mask: Boolean (B, S), True at real tokens; S counts the cached positions too.
            key_mask: Boolean (B, S), combined with `value_mask`.
            attention_mask: Boolean (B, T, S), (B, H, T, S), or (T, S) where B is another number than T.
            return_attention_scores: Also returns the weights (B, H, T, S).
            training: Whether to drop out.
            use_causal_mask: A query sees the cached positions and the keys up to its own.
            attention_bias: Added to the scaled scores, broadcastable to (B, H, T, S).
            query_segment_ids: Integers (B, T), one number for each of the sequences packed into a row: a query
                sees its own alone, and positions start again in each.
            value_segment_ids: The same for the value (B, S); needed with the former and without a cache.
            cache: Keys and values of earlier positions, from `init_cache`, `project` or an earlier call.

        Returns:
            The output (B, T, M); then the weights if asked for; then, where a cache was given, the cache
            followed by the value's positions. A single item stands alone, several come as a tuple.

        Masks may also hold the numbers 0 and 1 in any dtype. Where a compiled function cannot raise (JAX, XLA), other
        numbers in a mask make the output NaN.

        Raises:
            TypeError: Ragged or integer inputs.
            ValueError: Neither a value nor a cache, a mask of the wrong rank or length, or one that holds other
                numbers than 0 and 1: those that add to the scores go to `attention_bias`.
        """
        query, value, key = check_attention_call(
            self.axes, query, value, key, cache, query_segment_ids, value_segment_ids
        )
        (query_mask, value_mask, key_mask, attention_mask), valid = checked_masks(
            **{"query_mask": query_mask, self.value_mask_name: value_mask, "key_mask": key_mask},
            attention_mask=attention_mask,
        )
        offset = 0 if cache is None else cache.length
        query_positions = self._positions(query, query_segment_ids, offset)  # (T,) or (B, T)
        memory = cache
        if value is not None:
            # Beside a cache the masks cover more than the new positions.
            real = self._real(value, value_mask, key_mask) if cache is None else None
            new = self.project(value, key, real, self._positions(value, value_segment_ids, offset))
            memory = new if cache is None else cache.update(*new)
        visible = visible_pairs(
            self.axes,
            query,
            value,
            memory,
            offset,
            query_mask=query_mask,
            value_mask=value_mask,
            key_mask=key_mask,
            attention_mask=attention_mask,
            query_segment_ids=query_segment_ids,
            value_segment_ids=value_segment_ids,
            use_causal_mask=use_causal_mask,
            sliding_window=self.sliding_window,
            num_heads=self.num_heads,
            value_mask_name=self.value_mask_name,
        )
        segments = query_segment_ids, value_segment_ids
        bias = self._bias(attention_bias, query, value, memory.key, query_positions, *segments, offset)

        queries = self._heads("query", query, query_positions)  # (B, H, T, D)
        context, weights = self._context(queries, memory, visible, bias, return_attention_scores, training)
        context = self.axes.join_heads(context, query)  # (B, T, H, D)
        if self.use_gate:
            context = context * self.gate_dense(query)
        output = nan_unless(valid, self.output_dense(context))  # (B, T, M)

        results = [output]
        if return_attention_scores:
            weights = nan_unless(valid, weights)
            results.append(self.axes.attention_weights(weights, query, value))  # (B, H, T, S)
        if cache is not None:
            results.append(memory)
        return output if len(results) == 1 else tuple(results)

    def compute_output_shape(
        self, query_shape: Any, value_shape: Any = None, key_shape: Any = None
    ) -> tuple[int | None, ...]:
        """The shape of the output, which needs no weights.

        Args:
            query_shape: (B, …, M).
            value_shape: (B, …, M); None where attention is only to a cache.
            key_shape: (B, …, M); that of the value by default.

        Returns:
            (B, …, M), or the sizes of the argument `output_shape` instead of M.

        Raises:
            ValueError: Shapes that the layer cannot be built for.
        """
        value_shape = value_shape or query_shape
        self._check_shapes(query_shape, value_shape, key_shape or value_shape)
        return (*query_shape[:-1], *(self.output_dims or query_shape[-1:]))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_shape": self.output_dims,
            "attention_axes": self.attention_axes,
            "sliding_window": self.sliding_window,
            "flash_attention": self.flash_attention,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.projection_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            "use_gate": self.use_gate,
            "seed": self.seed,
            "num_kv_heads": self.num_kv_heads,
            "qk_norm": self.qk_norm,
            "position": self.position and keras.saving.serialize_keras_object(self.position),
        }

    def _check_key_dim(self, key_dim: int | None) -> int | None:
        return positive_integer(key_dim, "key_dim")

    def _weights_dropout(self, training: bool | None) -> Any:
        if self.dropout == 0.0:
            return None
        return lambda weights: self.weights_dropout(weights, training=training)
