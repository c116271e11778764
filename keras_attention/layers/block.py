"""The base of encoder and decoder layers: their arguments, Add & Norm, and stacks of layers.

Shapes: B batch, T length, M model width, H heads.
"""

from typing import Any

import keras

from keras_attention.layers.arguments import (
    as_tuple,
    check_heads_share,
    clone_initializer,
    fraction,
    one_of,
    positive_integer,
    positive_number,
)
from keras_attention.layers.attention import MultiHeadAttention
from keras_attention.layers.composite import Composite
from keras_attention.layers.dropout import Dropout
from keras_attention.layers.feed_forward import FeedForward, feed_forward_activation, serialize_activation
from keras_attention.layers.initializers import ResidualBranchInitializer
from keras_attention.layers.inputs import check_shape
from keras_attention.layers.normalization import NORMALIZATIONS, make_normalization
from keras_attention.layers.position_bias import clone_position
from keras_attention.layers.remat import rematerialize
from keras_attention.layers.self_attention import MultiHeadSelfAttention


class Block(Composite):
    """Base of encoder and decoder layers and of their stacks.

    Args:
        intermediate_dim: d_ff, the inner width of the feed-forward network.
        num_heads: h, the number of attention heads; it divides the width of the inputs, unless `key_dim` is given.
        dropout: P_drop, the dropout rate of the output of each sub-layer, before it is added.
        activation: Activation function of the feed-forward network, or a gated variant, see `FeedForward`.
        layer_norm_epsilon: Added to the variance in the normalization.
        kernel_initializer: Initializer for the kernels of attention and the feed-forward network;
            `ResidualBranchInitializer()` by default.
        bias_initializer: Initializer for their biases.
        normalize_first: Pre-norm, x + Sublayer(LayerNorm(x)), instead of the post-norm of the paper.
        attention_dropout: Dropout rate of the attention weights (the paper has none there).
        activation_dropout: Dropout rate inside the feed-forward network (the paper has none there).
        use_attention_bias: Whether the attention projections have biases (the paper writes none).
        normalization: "layer" as in the paper, or "rms" for RMS normalization.
        num_kv_heads: Number of heads of keys and values, each shared by several query heads; h by default.
        qk_norm: Whether to apply RMS normalization to queries and keys.
        position: Positions inside self-attention: `RotaryPosition()`, `AlibiBias()` or `RelativePositionBias()`, which
            each layer copies.
        key_dim: d_k, the width of each head's queries and keys; the width of the inputs / h by default.
        value_dim: d_v, the width of each head's values; d_k by default.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Raises:
        ValueError: A size that is not a positive integer, a dropout outside [0, 1), an epsilon of 0.

    Source: Vaswani et al. 2017, sections 3.1 and 5.4.
    """

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        activation: Any = "relu",
        layer_norm_epsilon: float = 1e-5,
        kernel_initializer: Any = None,
        bias_initializer: Any = "zeros",
        normalize_first: bool = False,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        use_attention_bias: bool = True,
        normalization: str = "layer",
        num_kv_heads: int | None = None,
        qk_norm: bool = False,
        position: Any = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.intermediate_dim = positive_integer(intermediate_dim, "intermediate_dim")
        self.num_heads = positive_integer(num_heads, "num_heads")
        self.dropout = fraction(dropout, "dropout")
        self.activation = feed_forward_activation(activation)
        self.layer_norm_epsilon = positive_number(layer_norm_epsilon, "layer_norm_epsilon")
        self.kernel_initializer = keras.initializers.get(kernel_initializer or ResidualBranchInitializer())
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.normalize_first = normalize_first
        self.attention_dropout = fraction(attention_dropout, "attention_dropout")
        self.activation_dropout = fraction(activation_dropout, "activation_dropout")
        self.use_attention_bias = use_attention_bias
        self.normalization = one_of(normalization, "normalization", tuple(NORMALIZATIONS))
        self.num_kv_heads = None if num_kv_heads is None else positive_integer(num_kv_heads, "num_kv_heads")
        self.qk_norm = qk_norm
        self.position = clone_position(position, "position", self.trainable)
        self.key_dim = None if key_dim is None else positive_integer(key_dim, "key_dim")
        self.value_dim = None if value_dim is None else positive_integer(value_dim, "value_dim")

    def block_config(self) -> dict[str, Any]:
        """Returns the arguments above in serialized form, for a block of the same class."""
        return {
            "intermediate_dim": self.intermediate_dim,
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "activation": serialize_activation(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "normalize_first": self.normalize_first,
            "attention_dropout": self.attention_dropout,
            "activation_dropout": self.activation_dropout,
            "use_attention_bias": self.use_attention_bias,
            "normalization": self.normalization,
            "num_kv_heads": self.num_kv_heads,
            "qk_norm": self.qk_norm,
            "position": self.position and keras.saving.serialize_keras_object(self.position),
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.block_config()}

    def _pre_norm(self, norm: keras.layers.Layer, x: Any) -> Any:
        """The input of a sub-layer: x, or LayerNorm(x) with pre-norm."""
        return norm(x) if self.normalize_first else x

    def _add_and_norm(self, norm: keras.layers.Layer, x: Any, y: Any, training: bool | None) -> Any:
        """LayerNorm(x + Dropout(y)), or x + Dropout(y) with pre-norm."""
        x = x + self.residual_dropout(y, training=training)
        return x if self.normalize_first else norm(x)

    def _self_attention(self, width: int) -> MultiHeadSelfAttention:
        return MultiHeadSelfAttention(
            self.num_heads, self.key_dim, position=self.position, **self._attention_arguments("self_attention")
        )

    def _cross_attention(self, width: int) -> MultiHeadAttention:
        key_dim = self.key_dim or width // self.num_heads
        return MultiHeadAttention(self.num_heads, key_dim, **self._attention_arguments("cross_attention"))

    def _feed_forward(self) -> FeedForward:
        return FeedForward(
            self.intermediate_dim,
            activation=self.activation,
            dropout=self.activation_dropout,
            **self._sub_layer_arguments("feed_forward"),
        )

    def _norm(self, name: str) -> keras.layers.Layer:
        return make_normalization(
            self.normalization,
            epsilon=self.layer_norm_epsilon,
            trainable=self.trainable,
            dtype=self.dtype_policy,
            name=name,
        )

    def _dropout(self) -> Dropout:
        return Dropout(self.dropout, trainable=self.trainable, dtype=self.dtype_policy)

    def _attention_arguments(self, name: str) -> dict[str, Any]:
        return {
            "value_dim": self.value_dim,
            "dropout": self.attention_dropout,
            "use_bias": self.use_attention_bias,
            "num_kv_heads": self.num_kv_heads,
            "qk_norm": self.qk_norm,
            **self._sub_layer_arguments(name),
        }

    def _sub_layer_arguments(self, name: str) -> dict[str, Any]:
        return {
            "kernel_initializer": clone_initializer(self.kernel_initializer, name),
            "bias_initializer": clone_initializer(self.bias_initializer, name),
            "trainable": self.trainable,
            "dtype": self.dtype_policy,
            "name": name,
        }

    def _check_sequence_shape(self, shape: Any, name: str) -> None:
        """Checks that the layer can be built for a shape."""
        check_shape(shape, name)
        width = shape[-1]
        if self.key_dim is None and width % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the width of the inputs; or give `key_dim`. "
                f"Received: num_heads={self.num_heads}, width={width}"
            )
        check_heads_share(self.num_heads, self.num_kv_heads or self.num_heads)
        if self.position is not None:
            self.position.check_head_dim(self.key_dim or width // self.num_heads)


class Stack(Block):
    """N layers of one class and, with pre-norm, a final normalization.

    Args:
        num_layers: N, the number of layers.
        intermediate_dim: d_ff, see `Block`.
        num_heads: h, see `Block`.
        remat: Whether training recomputes the activations of each layer in the backward pass instead of storing them:
            less memory for more time, with the same results.
        **kwargs: Other arguments of `Block`.

    Raises:
        ValueError: A `num_layers` that is not a positive integer.
    """

    layer_class: type[Block]

    def __init__(self, num_layers: int, intermediate_dim: int, num_heads: int, remat: bool = False, **kwargs: Any):
        super().__init__(intermediate_dim, num_heads, **kwargs)
        self.remat = remat
        self.num_layers = positive_integer(num_layers, "num_layers")
        self.layers = [
            self.layer_class(**{**self.block_config(), **self._sub_layer_arguments(f"layer_{i}")})
            for i in range(num_layers)
        ]
        self.final_norm = self._norm("final_norm") if self.normalize_first else None

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_layers": self.num_layers, "remat": self.remat}

    def _build_layers(self, *shapes: Any) -> None:
        for layer in self.layers:
            layer.build(*shapes)
        if self.final_norm is not None:
            self.final_norm.build(shapes[0])

    def _run_layer(self, layer: Block, *sequences: Any, remat: bool = True, **arguments: Any) -> tuple[Any, ...]:
        """Calls a layer; with `remat`, training recomputes it unless the caller says that it cannot be."""
        if self.remat and remat and arguments["training"]:
            return rematerialize(layer, *sequences, **arguments)
        return as_tuple(layer(*sequences, **arguments))

    def _weights_shapes(self, *shapes: Any) -> tuple[Any, ...]:
        return tuple((each,) * self.num_layers for each in self.layers[0]._weights_shapes(*shapes))

    def _finish(self, x: Any) -> Any:
        return x if self.final_norm is None else self.final_norm(x)
