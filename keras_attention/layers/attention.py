"""Multi-head attention.

Shapes: B batch, T query length, S key length, M model width, H heads, G heads of keys and values, D and E widths of a
head.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import (
    check_heads_share,
    clone_initializer,
    fraction,
    integer_or_none,
    integers,
    positive_integer,
    positive_integers,
)
from keras_attention.layers.axes import AttentionAxes
from keras_attention.layers.cache import FixedKeyValueCache, KeyValueCache, empty_cache
from keras_attention.layers.composite import Composite
from keras_attention.layers.dense import Projection
from keras_attention.layers.dropout import Dropout
from keras_attention.layers.inputs import (
    check_attention_bias,
    check_attention_inputs,
    check_attention_masks,
    check_batches_and_lengths,
    check_built,
    check_given,
    check_shape,
)
from keras_attention.layers.normalization import make_normalization
from keras_attention.layers.position_bias import ScoreBias, clone_position
from keras_attention.layers.replicas import ReplicaSeeds
from keras_attention.ops.attention import dot_product_attention, fused_attention, has_flash_kernel
from keras_attention.ops.blockwise import blockwise_attention, is_long
from keras_attention.ops.masks import checked_masks, combine_masks, nan_unless, segment_positions
from keras_attention.ops.visible_pairs import VisiblePairs


@keras.saving.register_keras_serializable("keras_attention")
class MultiHeadAttention(Composite):
    """MultiHead(Q, K, V) = Concat(head_1, …, head_h) W_O, head_i = Attention(Q W_Q, K W_K, V W_V).

    A drop-in replacement for `keras.layers.MultiHeadAttention`, with the same weights in the same order. It does
    not change the masks of its inputs, so that they reach the next layer of a stack.

    Args:
        num_heads: h, the number of heads.
        key_dim: d_k, the width of each head's queries and keys.
        value_dim: d_v, the width of each head's values; d_k by default.
        dropout: Dropout rate of the attention weights.
        use_bias: Whether the projections have biases (the paper writes none).
        output_shape: Width of the output, or several sizes; that of the query by default.
        attention_axes: Axes to attend over, where inputs have several axes of positions; all of them by default.
        sliding_window: A query attends only to keys at a distance below this number.
        flash_attention: True for the backend's flash attention kernel, an error where it has none; False for never;
            None for the kernel where a GPU has one for these inputs, without a bias, dropout or returned weights.
        kernel_initializer: Initializer for the projection kernels.
        bias_initializer: Initializer for the projection biases.
        kernel_regularizer: Regularizer for the projection kernels.
        bias_regularizer: Regularizer for the projection biases.
        activity_regularizer: Regularizer for the outputs of the projections.
        kernel_constraint: Constraint for the projection kernels.
        bias_constraint: Constraint for the projection biases.
        use_gate: Whether to multiply the heads by sigmoid(Q W_G) (Qiu et al. 2025).
        seed: Seed of the dropout.
        num_kv_heads: G, the number of heads of keys and values, each shared by h/G query heads; h by default.
        qk_norm: Whether to apply RMS normalization, with a learned scale, to queries and keys.
        position: Positions inside attention: `RotaryPosition()`, `AlibiBias()` or `RelativePositionBias()`.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Raises:
        ValueError: A size that is not a positive integer, a dropout outside [0, 1), a number of heads that
            `num_kv_heads` does not divide, or flash attention with dropout.

    Example:
        >>> attention = MultiHeadAttention(num_heads=2, key_dim=8)
        >>> query, value = ops.ones((3, 5, 16)), ops.ones((3, 7, 16))
        >>> output, weights = attention(query, value, return_attention_scores=True)
        >>> print(output.shape, weights.shape)
        (3, 5, 16) (3, 2, 5, 7)

    Memory grows linearly with the length where T · S is at least 2^24 and both lengths are known when the program is
    traced: the scores of all pairs are then never stored. This needs no weights to be returned, no bias of each
    pair, and a `position` that depends only on the distance.

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
        self.dropout = fraction(dropout, "dropout")
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
        self.position = clone_position(position, "position", self.trainable, dtype=self.dtype_policy)
        check_heads_share(self.num_heads, self.num_kv_heads)
        if self.flash_attention and self.dropout:
            raise ValueError(
                "Flash attention has no dropout: give dropout=0 or flash_attention=None. "
                f"Received: flash_attention=True, dropout={self.dropout}"
            )

    def build(self, query_shape: Any, value_shape: Any = None, key_shape: Any = None) -> None:
        value_shape = value_shape or query_shape
        key_shape = key_shape or value_shape
        self.axes = self._check_shapes(query_shape, value_shape, key_shape)
        rank, head_dim = len(query_shape), self._head_dim(query_shape[-1])
        value_dim = self.value_dim or head_dim
        queries, keys = (self.num_heads, head_dim), (self.num_kv_heads, head_dim)
        self.query_dense = self._projection("query", rank, queries)
        self.key_dense = self._projection("key", rank, keys)
        self.gate_dense = None
        if self.use_gate:
            self.gate_dense = self._projection("gate", rank, (self.num_heads, value_dim), activation="sigmoid")
            self.gate_dense.build(query_shape)
        self.value_dense = self._projection("value", rank, (self.num_kv_heads, value_dim))
        self.output_dense = self._projection(
            "attention_output", rank + 1, self.output_dims or (query_shape[-1],), input_axes=2
        )
        self.query_dense.build(query_shape)
        self.key_dense.build(key_shape)
        self.value_dense.build(value_shape)
        self.output_dense.build((*query_shape[:-1], self.num_heads, value_dim))
        base = {"trainable": self.trainable, "dtype": self.dtype_policy}
        self.weights_dropout = Dropout(self.dropout, seed=self.seed, **base)
        if self.qk_norm:
            self.query_norm = make_normalization("rms", name="query_norm", **base)
            self.key_norm = make_normalization("rms", name="key_norm", **base)
            self.query_norm.build((None, *queries))
            self.key_norm.build((None, *keys))
        if self.position is not None:
            self.position.build((None, self.num_heads, None, head_dim))

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
        """Attends from the query to the positions of the value, after those of the cache if one is given.

        Args:
            query: Q, (B, T, M).
            value: V, (B, S, M); None attends only to the cache.
            key: K, (B, S, M); the value by default.
            query_mask: Boolean (B, T), False where a query attends to nothing.
            value_mask: Boolean (B, S), True at real tokens; with a cache, S includes the cached positions.
            key_mask: Boolean (B, S), combined with `value_mask`.
            attention_mask: Boolean (B, T, S), (B, H, T, S), or (T, S) where B differs from T.
            return_attention_scores: Whether to return the attention weights (B, H, T, S) as well.
            training: Whether to apply dropout.
            use_causal_mask: Whether a query attends only to the cached positions and the keys up to its own position.
            attention_bias: Added to the scaled scores, broadcastable to (B, H, T, S).
            query_segment_ids: Integers (B, T), one number for each sequence of a packed row: a query attends only to
                its own sequence, and positions restart in each.
            value_segment_ids: Segment ids of the value (B, S), required with `query_segment_ids`; not with a cache.
            cache: Keys and values of earlier positions, from `init_cache`, `project` or an earlier call.

        Returns:
            The output (B, T, M); or a tuple of the output, the attention weights if they are returned, and, if a cache
            was given, the cache with the positions of the value appended.

        Masks may also be numbers 0 and 1 in any dtype. Where a compiled function cannot raise (JAX, XLA), other
        numbers in a mask make the output NaN.

        Raises:
            TypeError: Ragged or integer inputs.
            ValueError: Neither a value nor a cache, a mask of the wrong rank or length, or a mask of other numbers than
                0 and 1 (numbers to add to the scores go to `attention_bias`).
        """
        query, value, key = check_attention_inputs(
            self.axes, query, value, key, cache, query_segment_ids, value_segment_ids
        )
        masks = check_attention_masks(
            self.axes,
            query,
            value,
            cache,
            self.num_heads,
            query_mask=query_mask,
            attention_mask=attention_mask,
            **{self.value_mask_name: value_mask, "key_mask": key_mask},
        )
        if attention_bias is not None:
            attention_bias = check_attention_bias(self.axes, attention_bias, query, value, cache, self.num_heads)

        offset = 0 if cache is None else cache.length  # position of the first query
        query_positions = self._positions(query, query_segment_ids, offset)  # (T,) or (B, T)
        memory, key_positions = cache, None  # keys (B, G, S, D) and values (B, G, S, E); (S,) or (B, S)
        if value is not None:
            key_positions = self._positions(value, value_segment_ids, offset)
            memory = self.project(value, key, masks.padding, key_positions)
        if cache is not None:
            memory = cache if value is None else cache.update(*memory)
            key_positions = self.position and ops.arange(ops.shape(memory.key)[2], dtype="int32")

        visible = VisiblePairs(
            keys=combine_masks(masks.keys, memory.filled()),
            queries=masks.queries,
            pairs=masks.pairs,
            query_segments=query_segment_ids,
            key_segments=value_segment_ids,
            is_causal=bool(use_causal_mask),
            window=self.sliding_window,
            offset=offset,
        )
        bias = ScoreBias(
            attention_bias,
            self.position,
            query_positions,
            key_positions,
            # The distance of two tokens is that of their indices, unless queries and keys are packed differently.
            offset if value_segment_ids is query_segment_ids else None,
        )
        queries = self._heads("query", query, query_positions)  # (B, H, T, D)
        context, weights = self._attend(queries, memory, visible, bias, return_attention_scores, training)

        context = self.axes.join_heads(context, query)  # (B, T, H, E)
        if self.use_gate:
            context = context * self.gate_dense(query)
        results = [nan_unless(masks.valid, self.output_dense(context))]  # (B, T, M)
        if return_attention_scores:
            weights = nan_unless(masks.valid, weights)
            results.append(self.axes.attention_weights(weights, query, value))  # (B, H, T, S)
        if cache is not None:
            results.append(memory)
        return results[0] if len(results) == 1 else tuple(results)

    def project(self, value: Any, key: Any = None, padding_mask: Any = None, positions: Any = None) -> KeyValueCache:
        """Projects keys and values, once for any number of queries.

        Args:
            value: V, (B, S, M).
            key: K, (B, S, M); the value by default.
            padding_mask: Boolean (B, S). Masked positions are set to zero, since NaN times a weight of zero is NaN.
            positions: Positions of the keys, (S,) or (B, S); 0, 1, … by default.

        Returns:
            The projected keys and values, as a cache.

        Example:
            >>> attention = MultiHeadAttention(num_heads=2, key_dim=8)
            >>> memory = ops.ones((3, 7, 16))
            >>> _ = attention(memory, memory)
            >>> print(attention.project(memory).key.shape)
            (3, 2, 7, 8)
        """
        check_built(self, "project")
        key = value if key is None else key
        if padding_mask is not None:
            (padding_mask,), valid = checked_masks(padding_mask=padding_mask)
            is_real = padding_mask[..., None]  # (B, S, 1)
            real_value = nan_unless(valid, ops.where(is_real, value, ops.zeros_like(value)))
            key = real_value if key is value else ops.where(is_real, key, ops.zeros_like(key))
            value = real_value
        positions = self._positions(key, None, 0) if positions is None else positions
        return KeyValueCache(self._heads("key", key, positions), self._heads("value", value))

    def init_cache(self, batch_size: Any, capacity: int | None = None) -> KeyValueCache | FixedKeyValueCache:
        """Creates an empty cache, for decoding step by step.

        Args:
            batch_size: B.
            capacity: Largest number of positions, for storage of that fixed size; None for a cache that grows.

        Returns:
            A cache for the argument `cache` of `call`.

        Example:
            >>> attention = MultiHeadAttention(num_heads=2, key_dim=8)
            >>> x = ops.ones((3, 1, 16))
            >>> _ = attention(x, x)
            >>> output, cache = attention(x, x, cache=attention.init_cache(3, capacity=7))
            >>> int(cache.length), cache.key.shape[2]
            (1, 7)
        """
        check_built(self, "init_cache")
        if capacity is not None:
            positive_integer(capacity, "capacity")
        widths = self.key_dense.output_dims[-1], self.value_dense.output_dims[-1]
        return empty_cache(batch_size, self.num_kv_heads, *widths, capacity, self.compute_dtype)

    def compute_output_shape(
        self, query_shape: Any, value_shape: Any = None, key_shape: Any = None
    ) -> tuple[int | None, ...]:
        """Returns the shape of the output, before or after the layer is built.

        Args:
            query_shape: (B, …, M).
            value_shape: (B, …, M); None for attention to a cache only.
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

    def _heads(self, name: str, x: Any, positions: Any = None) -> Any:
        """x W for each head, (B, H, T, D), with the positions encoded in queries and keys."""
        heads = getattr(self, f"{name}_dense")(x)  # (B, T, H, D)
        if self.qk_norm and name != "value":
            heads = getattr(self, f"{name}_norm")(heads)
        heads = self.axes.split_heads(heads)  # (B, H, T, D)
        return heads if self.position is None or name == "value" else self.position.rotate(heads, positions)

    def _positions(self, x: Any, segment_ids: Any, offset: Any) -> Any:
        """Positions of x (B, T, M), (T,), or (B, T) in packed rows; None for a layer without positions."""
        if self.position is None:
            return None
        if segment_ids is not None:
            return segment_positions(segment_ids)
        length = ops.shape(x)[1] if self.axes.is_sequence else self.axes.length(x)
        return ops.arange(length, dtype="int32") + offset

    def _attend(
        self, queries: Any, memory: Any, visible: VisiblePairs, bias: ScoreBias, needs_weights: bool, training: Any
    ) -> tuple[Any, Any]:
        """Attention of each head, (B, H, T, E), and the weights (B, H, T, S), or None where they are not computed."""
        lengths = ops.shape(queries)[2], ops.shape(memory.key)[2]
        drops = bool(self.dropout and training)
        heads = queries, memory.key, memory.value
        takes_kernel = self.flash_attention
        if takes_kernel is None and has_flash_kernel(*heads):
            # The kernel rounds a bias to half precision.
            takes_kernel = not drops and bias.of_pairs() is None
        if takes_kernel and not needs_weights:
            return fused_attention(*heads, visible.mask(*lengths), bias.of_pairs(), self.flash_attention), None
        if not needs_weights and is_long(*lengths) and bias.is_linear:
            context = blockwise_attention(
                *heads,
                visible,
                bias.attention_bias,
                bias.of_distances(),
                dropout=self.dropout if drops else 0.0,
                seed=ReplicaSeeds(self.weights_dropout.seed_generator).next() if drops else None,
            )
            return context, None
        return dot_product_attention(*heads, visible.mask(*lengths), bias.of_pairs(), self._dropout(training))

    def _dropout(self, training: bool | None) -> Any:
        return (lambda weights: self.weights_dropout(weights, training=training)) if self.dropout else None

    def _projection(self, name: str, rank: int, output_dims: tuple[int, ...], **options: Any) -> Projection:
        return Projection(
            rank,
            output_dims,
            use_bias=self.use_bias,
            kernel_initializer=clone_initializer(self.kernel_initializer, name),
            bias_initializer=clone_initializer(self.bias_initializer, name),
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            activity_regularizer=self.projection_regularizer,
            kernel_constraint=self.kernel_constraint,
            bias_constraint=self.bias_constraint,
            trainable=self.trainable,
            dtype=self.dtype_policy,
            name=name,
            **options,
        )

    def _check_key_dim(self, key_dim: int | None) -> int | None:
        return positive_integer(key_dim, "key_dim")

    def _head_dim(self, width: int) -> int:
        return self.key_dim

    def _check_shapes(self, query_shape: Any, value_shape: Any, key_shape: Any) -> AttentionAxes:
        """Checks the shapes to build for, and returns their axes."""
        check_given(query_shape, "query")
        rank = len(query_shape)
        check_shape(query_shape, "query", None if self.attention_axes or rank > 3 else 3)
        check_shape(value_shape, "value", rank, like="query")
        check_shape(key_shape, "key", rank, like="query")
        check_batches_and_lengths(query_shape, value_shape, key_shape)
        head_dim = self._head_dim(query_shape[-1])
        if self.position is not None:
            self.position.check_head_dim(head_dim)
        return AttentionAxes(rank, self.attention_axes)

    def _weights_shapes(self, query_shape: Any, value_shape: Any = None, key_shape: Any = None) -> tuple[Any, ...]:
        axes = AttentionAxes(len(query_shape), self.attention_axes)
        return (axes.weights_shape(self.num_heads, query_shape, value_shape),)
