"""Position-wise feed-forward network.

Shapes: B batch, T length, M model width, F feed-forward width.
"""

from typing import Any

import keras

from keras_attention.layers.arguments import initializer_for, positive_integer, probability


@keras.saving.register_keras_serializable("keras_attention")
class FeedForward(keras.layers.Layer):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2, for each position on its own.

    Args:
        intermediate_dim: d_ff, the inner width.
        activation: ReLU in the paper.
        dropout: Dropout on the inner activations (the paper has none there).
        kernel_initializer: Of W_1 and W_2.
        bias_initializer: Of b_1 and b_2.
        **kwargs: `name`, `dtype` and the like.

    Raises:
        ValueError: An `intermediate_dim` that is not a positive integer, or a dropout outside [0, 1).

    Example:
        >>> print(FeedForward(intermediate_dim=64)(keras.ops.ones((2, 5, 16))).shape)
        (2, 5, 16)

    Source: Vaswani et al. 2017, section 3.3, equation 2.
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: Any = "relu",
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.intermediate_dim = positive_integer(intermediate_dim, "intermediate_dim")
        self.activation = keras.activations.get(activation)
        self.dropout = probability(dropout, "dropout")
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, inputs_shape: Any) -> None:
        self.intermediate_dense = self._dense("intermediate", self.intermediate_dim, self.activation)
        self.output_dense = self._dense("output", inputs_shape[-1])
        self.dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)
        self.intermediate_dense.build(inputs_shape)
        self.output_dense.build((*inputs_shape[:-1], self.intermediate_dim))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Applies the network.

        Args:
            inputs: (B, T, M).
            training: Whether to drop out.

        Returns:
            (B, T, M).
        """
        inner = self.intermediate_dense(inputs)  # (B, T, F)
        inner = self.dropout_layer(inner, training=training)
        return self.output_dense(inner)  # (B, T, M)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }

    def _dense(self, name: str, units: int, activation: Any = None) -> keras.layers.Dense:
        return keras.layers.Dense(
            units,
            activation=activation,
            kernel_initializer=initializer_for(name, self.kernel_initializer),
            bias_initializer=initializer_for(name, self.bias_initializer),
            dtype=self.dtype_policy,
            name=name,
        )
