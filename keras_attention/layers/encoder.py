"""The encoder: figure 1 of the paper, left.

Shapes: B batch, S source length, M model width, H heads, N layers.
"""

from typing import Any

import keras

from keras_attention.layers.arguments import as_tuple, first_given
from keras_attention.layers.block import Block, Stack
from keras_attention.layers.inputs import check_sequence


@keras.saving.register_keras_serializable("keras_attention")
class EncoderLayer(Block):
    """Encoder layer: x = LayerNorm(x + SelfAttention(x)), then x = LayerNorm(x + FFN(x)).

    The arguments are those of `Block`; KerasHub's `TransformerEncoder` has the same names.

    Example:
        >>> layer = EncoderLayer(intermediate_dim=64, num_heads=4)
        >>> print(layer(keras.ops.ones((2, 5, 16)), padding_mask=keras.ops.ones((2, 5), dtype="bool")).shape)
        (2, 5, 16)

    Source: Vaswani et al. 2017, section 3.1 and figure 1, left.
    """

    def build(self, inputs_shape: Any) -> None:
        self._check_sequence_shape(inputs_shape, "inputs")
        self.self_attention = self._self_attention(inputs_shape[-1])
        self.self_attention_norm = self._norm("self_attention_norm")
        self.feed_forward_norm = self._norm("feed_forward_norm")
        self.feed_forward = self._feed_forward()
        self.residual_dropout = self._dropout()
        for layer in (self.self_attention, self.self_attention_norm, self.feed_forward, self.feed_forward_norm):
            layer.build(inputs_shape)

    def compute_output_shape(self, inputs_shape: Any) -> tuple[int | None, ...]:
        self._check_sequence_shape(inputs_shape, "inputs")
        return tuple(inputs_shape)

    def call(
        self,
        inputs: Any,
        padding_mask: Any = None,
        attention_mask: Any = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        segment_ids: Any = None,
        mask: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        """Applies self-attention and the feed-forward network.

        Args:
            inputs: (B, S, M).
            padding_mask: Boolean (B, S), True at real tokens.
            attention_mask: Boolean (B, S, S) or (B, H, S, S), True = attend.
            training: Whether to apply dropout.
            return_attention_scores: Whether to return the attention weights (B, H, S, S) as well.
            segment_ids: Integers (B, S), one number for each sequence of a packed row.
            mask: Implicit mask of the inputs, which Keras passes; `padding_mask` has precedence.
            inputs_mask: Implicit mask of the inputs, which Keras passes where there are other tensors.

        Returns:
            The output (B, S, M); or a tuple of the output and the attention weights.
        """
        x = check_sequence(inputs, "inputs")
        y, *weights = as_tuple(
            self.self_attention(
                self._pre_norm(self.self_attention_norm, x),
                padding_mask=first_given(padding_mask, mask, inputs_mask),
                attention_mask=attention_mask,
                training=training,
                return_attention_scores=return_attention_scores,
                segment_ids=segment_ids,
            )
        )  # (B, S, M), (B, H, S, S)
        x = self._add_and_norm(self.self_attention_norm, x, y, training)

        y = self.feed_forward(self._pre_norm(self.feed_forward_norm, x), training=training)
        x = self._add_and_norm(self.feed_forward_norm, x, y, training)
        return (x, *weights) if weights else x

    def _weights_shapes(self, inputs_shape: Any) -> tuple[Any, ...]:
        batch, length, _ = inputs_shape
        return ((batch, self.num_heads, length, length),)


@keras.saving.register_keras_serializable("keras_attention")
class Encoder(Stack):
    """The encoder: a stack of N encoder layers.

    The arguments are those of `Block` and `num_layers` and `remat` of `Stack`.

    Example:
        >>> encoder = Encoder(num_layers=2, intermediate_dim=64, num_heads=4)
        >>> print(encoder(keras.ops.ones((2, 5, 16))).shape)
        (2, 5, 16)

    Source: Vaswani et al. 2017, section 3.1.
    """

    layer_class = EncoderLayer

    def build(self, inputs_shape: Any) -> None:
        self._build_layers(inputs_shape)

    def compute_output_shape(self, inputs_shape: Any) -> tuple[int | None, ...]:
        return self.layers[0].compute_output_shape(inputs_shape)

    def call(
        self,
        inputs: Any,
        padding_mask: Any = None,
        attention_mask: Any = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        segment_ids: Any = None,
        mask: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        """Applies the layers.

        Args:
            inputs: (B, S, M).
            padding_mask: Boolean (B, S), True at real tokens.
            attention_mask: Boolean (B, S, S) or (B, H, S, S).
            training: Whether to apply dropout.
            return_attention_scores: Whether to return the attention weights of each layer as well.
            segment_ids: Integers (B, S), one number for each sequence of a packed row.
            mask: Implicit mask of the inputs, which Keras passes; `padding_mask` has precedence.
            inputs_mask: Implicit mask of the inputs, which Keras passes where there are other tensors.

        Returns:
            The output (B, S, M); or a tuple of the output and the attention weights, a tuple of N tensors (B, H, S, S).
        """
        padding_mask = first_given(padding_mask, mask, inputs_mask)
        x, weights = inputs, []
        for layer in self.layers:
            x, *layer_weights = self._run_layer(
                layer,
                x,
                padding_mask=padding_mask,
                attention_mask=attention_mask,
                training=training,
                return_attention_scores=return_attention_scores,
                segment_ids=segment_ids,
            )
            weights += layer_weights
        x = self._finish(x)
        return (x, tuple(weights)) if return_attention_scores else x
