"""One layer of the encoder.

Shapes: B batch, T length, M model width, H heads.
"""

from typing import Any

import keras

from keras_attention.layers.arguments import as_tuple, first_given
from keras_attention.layers.block import Block
from keras_attention.layers.input_checks import check_sequence


@keras.saving.register_keras_serializable("keras_attention")
class EncoderLayer(Block):
    """x = LayerNorm(x + SelfAttention(x)), then x = LayerNorm(x + FFN(x)).

    The arguments are those of `Block`, and of KerasHub's `TransformerEncoder`.

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
        """Applies both sub-layers.

        Args:
            inputs: (B, T, M).
            padding_mask: Boolean (B, T), True at real tokens.
            attention_mask: Boolean (B, T, T) or (B, H, T, T), True = attend.
            training: Whether to drop out.
            return_attention_scores: Also returns the weights (B, H, T, T).
            segment_ids: Integers (B, T), one number for each of the sequences packed into a row.
            mask: The implicit mask of the inputs, which Keras fills in; `padding_mask` beats it.
            inputs_mask: The same, where the inputs are not the only tensor given.

        Returns:
            (B, T, M), then the weights if asked for.
        """
        x = check_sequence(inputs, "inputs")
        y, *weights = as_tuple(
            self.self_attention(
                self._enter(self.self_attention_norm, x),
                padding_mask=first_given(padding_mask, mask, inputs_mask),
                attention_mask=attention_mask,
                training=training,
                return_attention_scores=return_attention_scores,
                segment_ids=segment_ids,
            )
        )  # (B, T, M), (B, H, T, T)
        x = self._leave(self.self_attention_norm, x, y, training)

        y = self.feed_forward(self._enter(self.feed_forward_norm, x), training=training)
        x = self._leave(self.feed_forward_norm, x, y, training)
        return (x, *weights) if weights else x

    def _weights_shapes(self, inputs_shape: Any) -> tuple[Any, ...]:
        batch, length, _ = inputs_shape
        return ((batch, self.num_heads, length, length),)
