"""Position-wise feed-forward network.

Shapes: B batch, T length, M model width, F feed-forward width.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import clone_initializer, fraction, positive_integer
from keras_attention.layers.composite import Composite
from keras_attention.layers.dense import Dense
from keras_attention.layers.dropout import Dropout
from keras_attention.layers.inputs import check_sequence, check_shape

# The activation function of each gated variant.
GATED = {"glu": "sigmoid", "reglu": "relu", "geglu": "gelu", "swiglu": "silu"}


@keras.saving.register_keras_serializable("keras_attention")
class FeedForward(Composite):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2, applied to each position separately.

    A gated variant multiplies two inner vectors: "swiglu" is (silu(x W_1 + b_1) · (x V + c)) W_2 + b_2.

    Args:
        intermediate_dim: d_ff, the inner width.
        activation: Activation function, ReLU in the paper, or a gated variant: "glu", "reglu", "geglu" or "swiglu".
        dropout: Dropout rate of the inner activations (the paper has none there).
        kernel_initializer: Initializer for the kernels W_1, W_2 and V.
        bias_initializer: Initializer for the biases.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Raises:
        ValueError: An `intermediate_dim` that is not a positive integer, or a dropout outside [0, 1).

    Example:
        >>> print(FeedForward(intermediate_dim=64)(keras.ops.ones((2, 5, 16))).shape)
        (2, 5, 16)

    Source: Vaswani et al. 2017, section 3.3, equation 2; Shazeer 2020 for the gated variants.
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
        self.activation = feed_forward_activation(activation)
        self.dropout = fraction(dropout, "dropout")
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, inputs_shape: Any) -> None:
        check_shape(inputs_shape, "inputs", None)
        gated = self.activation in GATED
        activation = GATED[self.activation] if gated else self.activation
        self.intermediate_dense = self._dense("intermediate", self.intermediate_dim, activation)
        self.gate_dense = self._dense("gate", self.intermediate_dim) if gated else None
        self.output_dense = self._dense("output", inputs_shape[-1])
        self.dropout_layer = Dropout(self.dropout, trainable=self.trainable, dtype=self.dtype_policy)
        self.intermediate_dense.build(inputs_shape)
        if gated:
            self.gate_dense.build(inputs_shape)
        self.output_dense.build((*inputs_shape[:-1], self.intermediate_dim))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Applies the network.

        Args:
            inputs: (B, T, M).
            training: Whether to apply dropout.

        Returns:
            (B, T, M).
        """
        inputs = check_sequence(inputs, "inputs", None)
        # As rows, so that the backend fuses the bias and the activation with the product.
        x = ops.reshape(inputs, (-1, inputs.shape[-1]))  # (B·T, M)
        inner = self.intermediate_dense(x)  # (B·T, F)
        if self.gate_dense is not None:
            inner = inner * self.gate_dense(x)
        inner = self.dropout_layer(inner, training=training)
        return ops.reshape(self.output_dense(inner), ops.shape(inputs))  # (B, T, M)

    def compute_output_shape(self, inputs_shape: Any) -> tuple[int | None, ...]:
        check_shape(inputs_shape, "inputs", None)
        return tuple(inputs_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": serialize_activation(self.activation),
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }

    def _dense(self, name: str, units: int, activation: Any = None) -> keras.layers.Dense:
        return Dense(
            units,
            activation=activation,
            kernel_initializer=clone_initializer(self.kernel_initializer, name),
            bias_initializer=clone_initializer(self.bias_initializer, name),
            trainable=self.trainable,
            dtype=self.dtype_policy,
            name=name,
        )


def feed_forward_activation(activation: Any) -> Any:
    """Returns the activation function, or the name of a gated variant, that the argument `activation` stands for."""
    if isinstance(activation, str) and activation in GATED:
        return activation
    try:
        return keras.activations.get(activation)
    except ValueError as error:
        raise ValueError(
            f"`activation` is a function, a name of Keras' such as 'relu' or 'gelu', or one of "
            f"{', '.join(map(repr, GATED))}. Received: activation={activation!r}"
        ) from error


def serialize_activation(activation: Any) -> Any:
    """Returns an activation in the form that a config holds."""
    return activation if activation in GATED else keras.activations.serialize(activation)
