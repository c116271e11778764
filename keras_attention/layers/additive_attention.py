"""Additive attention, which compares a query and a key by a small network.

Shapes: B batch, T query length, S key length, M model width, U units.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.adaptation import Composite
from keras_attention.layers.arguments import initializer_for, integer_or_none, positive_integer, probability
from keras_attention.layers.dropout import Dropout
from keras_attention.layers.input_checks import check_batches_and_lengths, check_sequence, check_shape
from keras_attention.ops import masks
from keras_attention.ops.attention import masked_softmax
from keras_attention.ops.mask_values import checked_masks, nan_unless


@keras.saving.register_keras_serializable("keras_attention")
class AdditiveAttention(Composite):
    """score_ij = v · tanh(W q_i + U k_j); the output is the mean of the values, weighted by softmax(score_i).

    One head. Each pair of a query and a key costs U numbers of memory, where the dot product costs one: the
    reason why the Transformer has the dot product.

    Args:
        units: U, the width in which queries and keys are compared.
        dropout: Dropout on the attention weights.
        kernel_initializer: Of W, U and v.
        seed: Of the dropout.
        **kwargs: `name`, `dtype` and the like.

    Raises:
        ValueError: `units` is not a positive integer, or a dropout outside [0, 1).

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
        self.dropout = probability(dropout, "dropout")
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
            query: (B, T, M).
            value: (B, S, E).
            key: (B, S, M); the value by default.
            query_mask: Boolean (B, T): a masked query attends to nothing.
            value_mask: Boolean (B, S), True at real tokens.
            key_mask: Boolean (B, S), combined with `value_mask`.
            attention_mask: Boolean (B, T, S), or (T, S) where B is another number than T.
            return_attention_scores: Also returns the weights (B, T, S).
            training: Whether to drop out.
            use_causal_mask: A query sees the keys up to its own position.

        Returns:
            The output (B, T, E), then the weights if asked for.

        Raises:
            TypeError: Ragged or integer inputs.
            ValueError: A mask of the wrong rank or length, or one that holds other numbers than 0 and 1. Where a
                compiled function cannot raise (JAX, XLA), the output is NaN.
        """
        key = value if key is None else key
        query, value, key = (check_sequence(x, n) for x, n in ((query, "query"), (value, "value"), (key, "key")))
        check_batches_and_lengths(query.shape, value.shape, key.shape)
        (query_mask, value_mask, key_mask, attention_mask), valid = checked_masks(
            query_mask=query_mask, value_mask=value_mask, key_mask=key_mask, attention_mask=attention_mask
        )
        real = self._real(value, value_mask, key_mask)
        if real is not None:  # a NaN would survive a weight of zero
            value, key = (ops.where(real[..., None], x, ops.zeros_like(x)) for x in (value, key))
        mask = self._mask(query, value, real, query_mask, attention_mask, use_causal_mask)  # (B, T, S)

        pairs = ops.tanh(self.query_dense(query)[:, :, None] + self.key_dense(key)[:, None])  # (B, T, S, U)
        logits = self.score_dense(pairs)[..., 0]  # (B, T, S)
        logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
        weights = ops.cast(masked_softmax(logits, mask), value.dtype)  # (B, T, S)
        dropped = self.weights_dropout(weights, training=training) if self.dropout else weights
        output = ops.cast(ops.matmul(dropped, value), value.dtype)  # (B, T, E); torch's product of float64 is float32
        output = nan_unless(valid, output)
        weights = nan_unless(valid, weights)
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
        initializer = initializer_for(name, self.kernel_initializer)
        return keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer=initializer,
            trainable=self.trainable,
            dtype=self.dtype_policy,
            name=name,
        )

    def _real(self, value: Any, value_mask: Any, key_mask: Any) -> Any:
        given = []
        for mask, name in ((value_mask, "value_mask"), (key_mask, "key_mask")):
            if mask is not None:
                given.append(masks.key_mask(mask, name)[:, 0, 0])  # (B, S)
                masks.check_mask_fits(given[-1], name, batch=value.shape[0], length=value.shape[1])
        return masks.combine_masks(*given)

    def _mask(self, query: Any, value: Any, real: Any, query_mask: Any, attention_mask: Any, causal: bool) -> Any:
        lengths = {"queries": query.shape[1], "keys": value.shape[1]}
        found = [None if real is None else real[:, None]]
        if query_mask is not None:
            found.append(masks.query_mask(query_mask)[:, 0])  # (B, T, 1)
            masks.check_mask_fits(found[-1], "query_mask", batch=query.shape[0], queries=query.shape[1], keys=1)
        if attention_mask is not None:
            pairs = masks.same_pairs_for_all(attention_mask, query.shape[0], *lengths.values())
            found.append(masks.pair_mask(pairs)[:, 0])  # (B, T, S)
            masks.check_mask_fits(found[-1], "attention_mask", broadcast=True, **lengths)
        if causal:
            found.append(masks.causal_mask(ops.shape(query)[1], ops.shape(value)[1]))  # (T, S)
        return masks.combine_masks(*found)


def _check_shapes(query_shape: Any, value_shape: Any, key_shape: Any) -> None:
    for name, shape in (("query", query_shape), ("value", value_shape), ("key", key_shape)):
        check_shape(shape, name)
    check_batches_and_lengths(query_shape, value_shape, key_shape)
