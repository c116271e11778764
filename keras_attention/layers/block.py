"""What an encoder layer and a decoder layer share: their arguments and the residual connection."""

from typing import Any

import keras

from keras_attention.layers.adaptation import Composite
from keras_attention.layers.arguments import (
    check_heads_share,
    initializer_for,
    one_of,
    own_copy,
    positive_integer,
    positive_number,
    probability,
)
from keras_attention.layers.attention import MultiHeadAttention
from keras_attention.layers.dropout import Dropout
from keras_attention.layers.feed_forward import FeedForward, feed_forward_activation, serialize_activation
from keras_attention.layers.input_checks import check_shape
from keras_attention.layers.normalization import NORMALIZATIONS, make_normalization
from keras_attention.layers.self_attention import MultiHeadSelfAttention


class Block(Composite):
    """Base of the encoder and decoder layers and of their stacks.

    Args:
        intermediate_dim: d_ff, the inner width of the feed-forward network.
        num_heads: h, the number of attention heads; it divides the width of the inputs.
        dropout: P_drop, on the output of each sub-layer before it is added.
        activation: Of the feed-forward network.
        layer_norm_epsilon: Added to the variance by the normalisation.
        kernel_initializer: Of all projections.
        bias_initializer: Of all biases.
        normalize_first: Pre-norm, x + Sublayer(LayerNorm(x)), in place of the paper's post-norm.
        attention_dropout: On the attention weights (the paper has none there).
        activation_dropout: On the inner activations of the feed-forward network (the paper has none there).
        use_attention_bias: Whether the attention projections have a bias (the paper writes none).
        normalization: "layer" as in the paper, or "rms", which divides by the root mean square alone.
        num_kv_heads: Heads of keys and values, each shared by several of the query's; h by default.
        qk_norm: Whether queries and keys are normalised before they meet.
        position: How positions enter self-attention: `RotaryPosition()`, `AlibiBias()`,
            `RelativePositionBias()`, of which each layer makes a copy of its own.
        **kwargs: `name`, `dtype` and the like.

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
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        normalize_first: bool = False,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        use_attention_bias: bool = True,
        normalization: str = "layer",
        num_kv_heads: int | None = None,
        qk_norm: bool = False,
        position: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.intermediate_dim = positive_integer(intermediate_dim, "intermediate_dim")
        self.num_heads = positive_integer(num_heads, "num_heads")
        self.dropout = probability(dropout, "dropout")
        self.activation = feed_forward_activation(activation)
        self.layer_norm_epsilon = positive_number(layer_norm_epsilon, "layer_norm_epsilon")
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.normalize_first = normalize_first
        self.attention_dropout = probability(attention_dropout, "attention_dropout")
        self.activation_dropout = probability(activation_dropout, "activation_dropout")
        self.use_attention_bias = use_attention_bias
        self.normalization = one_of(normalization, "normalization", tuple(NORMALIZATIONS))
        self.num_kv_heads = None if num_kv_heads is None else positive_integer(num_kv_heads, "num_kv_heads")
        self.qk_norm = qk_norm
        self.position = own_copy(position, "position", self.trainable)

    def block_config(self) -> dict[str, Any]:
        """The arguments above, in a form that can be saved.

        Returns:
            Keyword arguments for a block of the same kind.
        """
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
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.block_config()}

    def _enter(self, norm: keras.layers.Layer, x: Any) -> Any:
        """What the sub-layer is given: x, or LayerNorm(x) with pre-norm."""
        return norm(x) if self.normalize_first else x

    def _leave(self, norm: keras.layers.Layer, x: Any, y: Any, training: bool | None) -> Any:
        """LayerNorm(x + Dropout(y)), or x + Dropout(y) with pre-norm."""
        x = x + self.residual_dropout(y, training=training)
        return x if self.normalize_first else norm(x)

    def _self_attention(self, width: int) -> MultiHeadSelfAttention:
        return MultiHeadSelfAttention(
            self.num_heads, position=self.position, **self._attention_arguments("self_attention")
        )

    def _cross_attention(self, width: int) -> MultiHeadAttention:
        key_dim = width // self.num_heads
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
            "dropout": self.attention_dropout,
            "use_bias": self.use_attention_bias,
            "num_kv_heads": self.num_kv_heads,
            "qk_norm": self.qk_norm,
            **self._sub_layer_arguments(name),
        }

    def _sub_layer_arguments(self, name: str) -> dict[str, Any]:
        return {
            "kernel_initializer": initializer_for(name, self.kernel_initializer),
            "bias_initializer": initializer_for(name, self.bias_initializer),
            "trainable": self.trainable,
            "dtype": self.dtype_policy,
            "name": name,
        }

    def _check_sequence_shape(self, shape: Any, name: str) -> None:
        """Refuses a shape that the layer cannot be built for."""
        check_shape(shape, name)
        width = shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width of the inputs. Received: num_heads={self.num_heads}, width={width}"
            )
        check_heads_share(self.num_heads, self.num_kv_heads or self.num_heads)
        if self.position is not None:
            self.position.check_head_dim(width // self.num_heads)
