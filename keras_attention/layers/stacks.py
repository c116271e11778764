"""Stacks of encoder and decoder layers.

Shapes: B batch, T target length, S source length, M model width, H heads, N layers.
"""

from typing import Any

import keras

from keras_attention.layers.arguments import as_tuple, first_given, positive_integer
from keras_attention.layers.block import Block
from keras_attention.layers.cache import FixedKeyValueCache, KeyValueCache
from keras_attention.layers.decoder_layer import DecoderLayer
from keras_attention.layers.encoder_layer import EncoderLayer
from keras_attention.layers.remat import rematerialize


class Stack(Block):
    """N layers of one kind; with pre-norm, a last normalisation.

    Args:
        num_layers: N.
        intermediate_dim: See `Block`.
        num_heads: See `Block`.
        remat: Whether training computes the activations of each layer again in the backward pass, in place of keeping
            those of all layers: less memory for more time, with the same results.
        **kwargs: The other arguments of `Block`.

    Raises:
        ValueError: `num_layers` is not a positive integer.
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
        """Calls a layer; training recomputes it if the stack is to and `remat` says that it can be."""
        if self.remat and remat and arguments["training"]:
            return rematerialize(layer, *sequences, **arguments)
        return as_tuple(layer(*sequences, **arguments))

    def _weights_shapes(self, *shapes: Any) -> tuple[Any, ...]:
        return tuple((each,) * self.num_layers for each in self.layers[0]._weights_shapes(*shapes))

    def _finish(self, x: Any) -> Any:
        return x if self.final_norm is None else self.final_norm(x)


@keras.saving.register_keras_serializable("keras_attention")
class Encoder(Stack):
    """N encoder layers, one after the other.

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
            training: Whether to drop out.
            return_attention_scores: Also returns the weights of each layer, a tuple of N (B, H, S, S).
            segment_ids: Integers (B, S), one number for each of the sequences packed into a row.
            mask: The implicit mask of the inputs, which Keras fills in; `padding_mask` beats it.
            inputs_mask: The same, where the inputs are not the only tensor given.

        Returns:
            (B, S, M), then the weights if asked for.
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


@keras.saving.register_keras_serializable("keras_attention")
class Decoder(Stack):
    """N decoder layers, one after the other.

    Example:
        >>> decoder = Decoder(num_layers=2, intermediate_dim=64, num_heads=4)
        >>> print(decoder(keras.ops.ones((2, 5, 16)), keras.ops.ones((2, 7, 16))).shape)
        (2, 5, 16)

    Source: Vaswani et al. 2017, section 3.1.
    """

    layer_class = DecoderLayer

    def build(self, decoder_sequence_shape: Any, encoder_sequence_shape: Any = None) -> None:
        self._build_layers(decoder_sequence_shape, encoder_sequence_shape)

    def compute_output_shape(
        self, decoder_sequence_shape: Any, encoder_sequence_shape: Any = None
    ) -> tuple[int | None, ...]:
        return self.layers[0].compute_output_shape(decoder_sequence_shape, encoder_sequence_shape)

    def call(
        self,
        decoder_sequence: Any,
        encoder_sequence: Any = None,
        decoder_padding_mask: Any = None,
        encoder_padding_mask: Any = None,
        self_attention_caches: tuple[KeyValueCache | FixedKeyValueCache, ...] | None = None,
        cross_attention_caches: tuple[KeyValueCache, ...] | None = None,
        use_causal_mask: bool = True,
        training: bool | None = None,
        return_attention_scores: bool = False,
        decoder_segment_ids: Any = None,
        encoder_segment_ids: Any = None,
        mask: Any = None,
        decoder_sequence_mask: Any = None,
        encoder_sequence_mask: Any = None,
    ) -> Any:
        """Applies the layers.

        Args:
            decoder_sequence: (B, T, M).
            encoder_sequence: The encoder's output (B, S, M), or None, see `DecoderLayer`.
            decoder_padding_mask: Boolean (B, T), True at real tokens; T counts the cached positions too.
            encoder_padding_mask: Boolean (B, S), True at real tokens.
            self_attention_caches: One for each layer.
            cross_attention_caches: One for each layer.
            use_causal_mask: Whether a position sees only itself and what is before it.
            training: Whether to drop out.
            return_attention_scores: Also returns the self-attention weights, a tuple of N, and, with an encoder
                sequence, the cross-attention weights.
            decoder_segment_ids: Integers (B, T), one number for each of the sequences packed into a row.
            encoder_segment_ids: The same for the encoder sequence (B, S).
            mask: The implicit mask of the decoder sequence, which Keras fills in.
            decoder_sequence_mask: The same, where there are other tensors.
            encoder_sequence_mask: The implicit mask of the encoder sequence.

        Returns:
            (B, T, M); then the weights if asked for; then, where self-attention caches were given, those
            with these positions appended.
        """
        self._check_caches(self_attention_caches, "self_attention_caches")
        self._check_caches(cross_attention_caches, "cross_attention_caches")
        encoder_padding_mask = first_given(encoder_padding_mask, encoder_sequence_mask)
        nothing = (None,) * self.num_layers
        x, weights, new_caches = decoder_sequence, [], []
        for layer, self_cache, cross_cache in zip(
            self.layers, self_attention_caches or nothing, cross_attention_caches or nothing, strict=True
        ):
            x, *results = self._run_layer(
                layer,
                x,
                encoder_sequence,
                remat=self_cache is None and cross_cache is None,  # gradients may flow to what they hold
                decoder_padding_mask=decoder_padding_mask,
                encoder_padding_mask=encoder_padding_mask,
                self_attention_cache=self_cache,
                cross_attention_cache=cross_cache,
                use_causal_mask=use_causal_mask,
                training=training,
                return_attention_scores=return_attention_scores,
                decoder_segment_ids=decoder_segment_ids,
                encoder_segment_ids=encoder_segment_ids,
                mask=first_given(mask, decoder_sequence_mask),
            )
            if self_cache is not None:
                new_caches.append(results.pop())
            weights.append(results)
        results = [self._finish(x)]
        if return_attention_scores:
            results += [
                tuple(each) for each in zip(*weights, strict=True)
            ]  # of self-attention, then of cross-attention
        if self_attention_caches is not None:
            results.append(tuple(new_caches))
        return results[0] if len(results) == 1 else tuple(results)

    def init_cache(
        self, batch_size: Any, capacity: int | None = None
    ) -> tuple[KeyValueCache | FixedKeyValueCache, ...]:
        """Self-attention caches before the first position, for decoding step by step.

        Args:
            batch_size: B.
            capacity: Positions that each will hold at most, in storage of that fixed size; None for caches that grow.

        Returns:
            What `call` takes as `self_attention_caches`.
        """
        return tuple(layer.init_cache(batch_size, capacity) for layer in self.layers)

    def _check_caches(self, caches: Any, name: str) -> None:
        is_one = isinstance(caches, KeyValueCache | FixedKeyValueCache)
        count = 1 if is_one or not isinstance(caches, list | tuple) else len(caches)
        if caches is not None and (is_one or count != self.num_layers):
            raise ValueError(
                f"`{name}` is a tuple of a cache for each of the {self.num_layers} layers. "
                f"Received: {type(caches).__name__}, {count} of them"
            )
