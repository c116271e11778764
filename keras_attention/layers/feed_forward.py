"""Position-wise feed-forward network.

Shapes: B batch, T length, M model width, F feed-forward width.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.adaptation import Composite, QuantizableSubclass
from keras_attention.layers.arguments import initializer_for, positive_integer, probability
from keras_attention.layers.dropout import Dropout
from keras_attention.layers.input_checks import check_sequence, check_shape
from keras_attention.ops.product import product

# The activation inside each gated variant.
GATED = {"glu": "sigmoid", "reglu": "relu", "geglu": "gelu", "swiglu": "silu"}


@keras.saving.register_keras_serializable("keras_attention")
class FeedForward(Composite):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2, for each position on its own.

    A gated variant multiplies two inner vectors: (silu(x W_1 + b_1) · (x V + c)) W_2 + b_2 is "swiglu".

    Args:
        intermediate_dim: d_ff, the inner width.
        activation: ReLU in the paper; another of Keras' or "glu", "reglu", "geglu", "swiglu".
        dropout: Dropout on the inner activations (the paper has none there).
        kernel_initializer: Of W_1 and W_2.
        bias_initializer: Of b_1 and b_2.
        **kwargs: `name`, `dtype` and the like.

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
        self.dropout = probability(dropout, "dropout")
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
            training: Whether to drop out.

        Returns:
            (B, T, M).
        """
        inputs = check_sequence(inputs, "inputs", None)
        # As one list of positions, so that a bias and the activation join the product before them.
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
            kernel_initializer=initializer_for(name, self.kernel_initializer),
            bias_initializer=initializer_for(name, self.bias_initializer),
            trainable=self.trainable,
            dtype=self.dtype_policy,
            name=name,
        )


class Dense(QuantizableSubclass, keras.layers.Dense):
    """y = f(x W + b), Keras' layer for a list of rows, with the gradient of `ops.product`.

    Example:
        >>> print(Dense(7)(keras.ops.ones((3, 5))).shape)
        (3, 7)
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Multiplies.

        Args:
            inputs: (N, M).
            training: Unused.

        Returns:
            (N, F).
        """
        y = product(inputs, self.kernel)
        y = y if self.bias is None else ops.add(y, self.bias)
        return y if self.activation is None else self.activation(y)


def feed_forward_activation(activation: Any) -> Any:
    """Reads the argument `activation`.

    Args:
        activation: A name or function that Keras knows, or the name of a gated variant.

    Returns:
        A function, or the name of a gated variant.

    Raises:
        ValueError: An unknown name.

    Example:
        >>> feed_forward_activation("swiglu")
        'swiglu'
    """
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
    """The opposite of `feed_forward_activation`, for a config.

    Args:
        activation: What that function returned.

    Returns:
        What it can be called with.

    Example:
        >>> serialize_activation(feed_forward_activation("relu"))
        'relu'
    """
    return activation if activation in GATED else keras.activations.serialize(activation)
