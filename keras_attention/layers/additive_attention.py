"""Additive attention, which compares queries and keys with a small network.

Shapes: B batch, T query length, S key length, M model width, U units.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import clone_initializer, fraction, integer_or_none, positive_integer
from keras_attention.layers.axes import AttentionAxes
from keras_attention.layers.composite import Composite
from keras_attention.layers.dropout import Dropout
from keras_attention.layers.inputs import (
    check_attention_inputs,
    check_attention_masks,
    check_batches_and_lengths,
    check_shape,
)
from keras_attention.ops.attention import masked_softmax
from keras_attention.ops.masks import nan_unless
from keras_attention.ops.visible_pairs import VisiblePairs

AXES = AttentionAxes(rank=3)


@keras.saving.register_keras_serializable("keras_attention")
class AdditiveAttention(Composite):
    """Additive attention: softmax(score) V with score_ij = v · tanh(W q_i + U k_j), in one head.

    Each pair of a query and a key takes U numbers of memory, one with the dot product: this is why the Transformer uses
    the dot product.

    Args:
        units: U, the width of the space in which queries and keys are compared.
        dropout: Dropout rate of the attention weights.
        kernel_initializer: Initializer for W, U and v.
        seed: Seed of the dropout.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Raises:
        ValueError: `units` that is not a positive integer, or a dropout outside [0, 1).

    Example:
        >>> attention = AdditiveAttention(units=8)
        >>> output, weights = attention(ops.ones((2, 3, 16)), ops.ones((2, 5, 16)), return_attention_scores=True)
        >>> print(output.shape, weights.shape)
        (2, 3, 16) (2, 3, 5)

    Source: Bahdanau et al. 2014, section 3.1 and appendix A.1.2; Vaswani et al. 2017, section 3.2.1.
    """

    def __init__(
        self,
        units: int,
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.units = positive_integer(units, "units")
        self.dropout = fraction(dropout, "dropout")
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = integer_or_none(seed, "seed")

    def build(self, query_shape: Any, value_shape: Any = None, key_shape: Any = None) -> None:
        value_shape = value_shape or query_shape
        key_shape = key_shape or value_shape
        _check_shapes(query_shape, value_shape, key_shape)
        self.query_dense = self._dense("query", self.units)
        self.key_dense = self._dense("key", self.units)
        self.score_dense = self._dense("score", 1)
        self.query_dense.build(query_shape)
        self.key_dense.build(key_shape)
        self.score_dense.build((None, None, None, self.units))
        self.weights_dropout = Dropout(self.dropout, seed=self.seed, trainable=self.trainable, dtype=self.dtype_policy)

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Any:
        """Attends from the query to the value.

        Args:
            query: Q, (B, T, M).
            value: V, (B, S, E).
            key: K, (B, S, M); the value by default.
            query_mask: Boolean (B, T), False where a query attends to nothing.
            value_mask: Boolean (B, S), True at real tokens.
            key_mask: Boolean (B, S), combined with `value_mask`.
            attention_mask: Boolean (B, T, S), or (T, S) where B differs from T.
            return_attention_scores: Whether to return the attention weights (B, T, S) as well.
            training: Whether to apply dropout.
            use_causal_mask: Whether a query attends only to the keys up to its own position.

        Returns:
            The output (B, T, E); or a tuple of the output and the weights.

        Raises:
            TypeError: Ragged or integer inputs.
            ValueError: A mask of the wrong rank or length, or a mask of other numbers than 0 and 1. Where a compiled
                function cannot raise (JAX, XLA), the output is NaN.
        """
        key = value if key is None else key
        query, value, key = check_attention_inputs(AXES, query, value, key, None, None, None)
        masks = check_attention_masks(
            AXES,
            query,
            value,
            query_mask=query_mask,
            value_mask=value_mask,
            key_mask=key_mask,
            attention_mask=attention_mask,
        )
        if masks.padding is not None:  # NaN times a weight of zero is NaN
            is_real = masks.padding[..., None]  # (B, S, 1)
            value, key = (ops.where(is_real, x, ops.zeros_like(x)) for x in (value, key))
        visible = VisiblePairs(masks.keys, masks.queries, masks.pairs, is_causal=use_causal_mask)
        mask = visible.mask(ops.shape(query)[1], ops.shape(value)[1])  # (B, 1, T, S)

        pairs = ops.tanh(self.query_dense(query)[:, :, None] + self.key_dense(key)[:, None])  # (B, T, S, U)
        logits = self.score_dense(pairs)[:, None, ..., 0]  # (B, 1, T, S)
        logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
        weights = ops.cast(masked_softmax(logits, mask), value.dtype)[:, 0]  # (B, T, S)
        dropped = self.weights_dropout(weights, training=training) if self.dropout else weights
        output = ops.cast(ops.matmul(dropped, value), value.dtype)  # (B, T, E); torch's product of float64 is float32
        output, weights = nan_unless(masks.valid, output), nan_unless(masks.valid, weights)
        return (output, weights) if return_attention_scores else output

    def compute_output_shape(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> tuple[int | None, ...]:
        _check_shapes(query_shape, value_shape, key_shape or value_shape)
        return (*query_shape[:-1], value_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }

    def _weights_shapes(self, query_shape: Any, value_shape: Any, key_shape: Any = None) -> tuple[Any, ...]:
        return ((*query_shape[:-1], value_shape[1]),)

    def _dense(self, name: str, units: int) -> keras.layers.Dense:
        return keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer=clone_initializer(self.kernel_initializer, name),
            trainable=self.trainable,
            dtype=self.dtype_policy,
            name=name,
        )


def _check_shapes(query_shape: Any, value_shape: Any, key_shape: Any) -> None:
    for name, shape in (("query", query_shape), ("value", value_shape), ("key", key_shape)):
        check_shape(shape, name)
    check_batches_and_lengths(query_shape, value_shape, key_shape)
