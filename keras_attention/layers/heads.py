"""The projections of multi-head attention: into heads and back.

Shapes: B batch, T query length, S key length, M model width, H heads, G heads of keys and values, D head width.
"""

from typing import Any

from keras import ops

from keras_attention.layers.adaptation import Composite
from keras_attention.layers.arguments import check_heads_share, initializer_for, positive_integer
from keras_attention.layers.axes import AttentionAxes
from keras_attention.layers.cache import FixedKeyValueCache, KeyValueCache, empty_cache
from keras_attention.layers.call_checks import check_attention_bias
from keras_attention.layers.dropout import Dropout
from keras_attention.layers.input_checks import check_batches_and_lengths, check_built, check_given, check_shape
from keras_attention.layers.normalization import make_normalization
from keras_attention.layers.projection import Projection
from keras_attention.layers.score_bias import ScoreBias
from keras_attention.ops import masks
from keras_attention.ops.attention import dot_product_attention, fused_attention
from keras_attention.ops.blockwise import blockwise_attention, is_long
from keras_attention.ops.mask_values import checked_masks, nan_unless
from keras_attention.ops.visible_pairs import VisiblePairs


class ProjectedHeads(Composite):
    """What `MultiHeadAttention` is made of; its arguments say how."""

    def build(self, query_shape: Any, value_shape: Any = None, key_shape: Any = None) -> None:
        value_shape = value_shape or query_shape
        key_shape = key_shape or value_shape
        self.axes = self._check_shapes(query_shape, value_shape, key_shape)
        rank = len(query_shape)
        head_dim = self._head_dim(query_shape[-1])
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

    def project(self, value: Any, key: Any = None, padding_mask: Any = None, positions: Any = None) -> KeyValueCache:
        """Projects keys and values, once for any number of queries.

        Args:
            value: (B, S, M).
            key: (B, S, M); the value by default.
            padding_mask: Boolean (B, S). Masked positions are zeroed, since a NaN would survive a
                weight of zero.
            positions: Of the keys, (S,) or (B, S); 0, 1, … by default.

        Returns:
            K and V as a cache.

        Example:
            >>> from keras_attention import MultiHeadAttention
            >>> attention = MultiHeadAttention(num_heads=2, key_dim=8)
            >>> memory = ops.ones((3, 7, 16))
            >>> _ = attention(memory, memory)
            >>> print(attention.project(memory).key.shape)
            (3, 2, 7, 8)
        """
        check_built(self, "project")
        key = value if key is None else key
        if padding_mask is not None:
            (real,), valid = checked_masks(padding_mask=padding_mask)
            real = real[..., None]  # (B, S, 1)
            cleaned = nan_unless(valid, ops.where(real, value, ops.zeros_like(value)))
            key = cleaned if key is value else ops.where(real, key, ops.zeros_like(key))
            value = cleaned
        positions = self._positions(key, None, 0) if positions is None else positions
        return KeyValueCache(self._heads("key", key, positions), self._heads("value", value))

    def init_cache(self, batch_size: Any, capacity: int | None = None) -> KeyValueCache | FixedKeyValueCache:
        """A cache before the first position, for decoding step by step.

        Args:
            batch_size: B.
            capacity: Positions that it will hold at most, in storage of that fixed size; None for a cache that grows.

        Returns:
            What `call` takes as `cache`.

        Example:
            >>> from keras_attention import MultiHeadAttention
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

    def _head_dim(self, width: int) -> int:
        return self.key_dim

    def _projection(self, name: str, rank: int, output_dims: tuple[int, ...], **options: Any) -> Projection:
        return Projection(
            rank,
            output_dims,
            use_bias=self.use_bias,
            kernel_initializer=initializer_for(name, self.kernel_initializer),
            bias_initializer=initializer_for(name, self.bias_initializer),
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

    def _heads(self, name: str, x: Any, positions: Any = None) -> Any:
        """x W for each head, (B, H, T, D); queries and keys normalised and turned by their positions."""
        heads = getattr(self, f"{name}_dense")(x)  # (B, T, H, D)
        if self.qk_norm and name != "value":
            heads = getattr(self, f"{name}_norm")(heads)
        heads = self.axes.split_heads(heads)  # (B, H, T, D)
        return heads if self.position is None or name == "value" else self.position.turn(heads, positions)

    def _positions(self, x: Any, segment_ids: Any, offset: Any) -> Any:
        """Where the vectors of x stand, (T,), or (B, T) in packed sequences; None where nothing asks for it."""
        if self.position is None:
            return None
        if segment_ids is not None:
            return masks.segment_positions(segment_ids)
        length = ops.shape(x)[1] if self.axes.is_sequence else self.axes.length(x)
        return ops.arange(length, dtype="int32") + offset

    def _check_shapes(self, query_shape: Any, value_shape: Any, key_shape: Any) -> AttentionAxes:
        """Refuses shapes that the layer cannot be built for; gives their axes."""
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

    def _check_options(self) -> None:
        check_heads_share(self.num_heads, self.num_kv_heads)
        if self.flash_attention and self.dropout:
            raise ValueError(
                "Flash attention has no dropout: give dropout=0 or flash_attention=None. "
                f"Received: flash_attention=True, dropout={self.dropout}"
            )

    def _real(self, value: Any, value_mask: Any, key_mask: Any) -> Any:
        """The real tokens of the value by both masks, (B, S)."""
        given = []
        for mask, name in ((value_mask, self.value_mask_name), (key_mask, "key_mask")):
            if mask is not None:
                masks.key_mask(self.axes.padding_mask(mask, name), name)  # a wrong rank raises
                masks.check_mask_fits(mask, name, **self.axes.sizes(value))
                given.append(mask)
        return masks.combine_masks(*given)

    def _bias(
        self,
        given: Any,
        query: Any,
        value: Any,
        keys: Any,
        positions: Any,
        query_segment_ids: Any,
        segment_ids: Any,
        offset: Any,
    ) -> ScoreBias:
        if given is not None and not self.axes.is_sequence:
            given = self.axes.attention_mask(given, query, value)
        if given is not None:
            given = ops.convert_to_tensor(given)
            check_attention_bias(given, keys.shape[0], self.num_heads, self.axes.length(query), keys.shape[2])
        if self.position is None:
            return ScoreBias(given)
        if segment_ids is None:
            return ScoreBias(given, self.position, positions, ops.arange(ops.shape(keys)[2], dtype="int32"), offset)
        # Packed sequences of queries and of keys start at the same places where they are the same.
        offset = 0 if segment_ids is query_segment_ids else None
        return ScoreBias(given, self.position, positions, masks.segment_positions(segment_ids), offset)

    def _context(
        self, queries: Any, memory: Any, visible: VisiblePairs, bias: ScoreBias, needs_weights: bool, training: Any
    ) -> tuple[Any, Any]:
        """What the heads make, (B, H, T, E), and the weights (B, H, T, S) or None."""
        lengths = ops.shape(queries)[2], ops.shape(memory.key)[2]
        if not (needs_weights or self.flash_attention) and is_long(*lengths) and bias.is_linear:
            drops = self.dropout > 0 and training
            context = blockwise_attention(
                queries,
                memory.key,
                memory.value,
                visible,
                bias.given,
                bias.of_distances(),
                dropout=self.dropout if drops else 0.0,
                seed=self.weights_dropout.seed_generator.next() if drops else None,
            )
            return context, None
        everything = queries, memory.key, memory.value, visible.mask(*lengths), bias.of_pairs()
        if self.flash_attention and not needs_weights:
            return fused_attention(*everything), None
        return dot_product_attention(*everything, self._weights_dropout(training))
