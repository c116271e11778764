"""One layer of the decoder.

Shapes: B batch, T target length, S source length, M model width, H heads, K beams.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import as_tuple, first_given
from keras_attention.layers.block import Block
from keras_attention.layers.cache import FixedKeyValueCache, KeyValueCache
from keras_attention.layers.input_checks import check_batches_and_lengths, check_built, check_sequence, check_shape
from keras_attention.ops.mask_values import checked_masks


@keras.saving.register_keras_serializable("keras_attention")
class DecoderLayer(Block):
    """Causal self-attention, attention to the encoder's output, feed-forward; each x = LayerNorm(x + …(x)).

    Without an encoder sequence it is a block of a language model. The arguments are those of `Block`, and
    of KerasHub's `TransformerDecoder`.

    Example:
        >>> layer = DecoderLayer(intermediate_dim=64, num_heads=4)
        >>> print(layer(keras.ops.ones((2, 5, 16)), keras.ops.ones((2, 7, 16))).shape)
        (2, 5, 16)

    Source: Vaswani et al. 2017, section 3.1 and figure 1, right.
    """

    def build(self, decoder_sequence_shape: Any, encoder_sequence_shape: Any = None) -> None:
        shape = decoder_sequence_shape
        self._check_shapes(shape, encoder_sequence_shape)
        self.self_attention = self._self_attention(shape[-1])
        self.self_attention_norm = self._norm("self_attention_norm")
        self.cross_attention = None
        if encoder_sequence_shape is not None:
            self.cross_attention = self._cross_attention(shape[-1])
            self.cross_attention_norm = self._norm("cross_attention_norm")
            self.cross_attention.build(shape, encoder_sequence_shape)
            self.cross_attention_norm.build(shape)
        self.feed_forward = self._feed_forward()
        self.feed_forward_norm = self._norm("feed_forward_norm")
        self.residual_dropout = self._dropout()
        for layer in (self.self_attention, self.self_attention_norm, self.feed_forward, self.feed_forward_norm):
            layer.build(shape)

    def compute_output_shape(
        self, decoder_sequence_shape: Any, encoder_sequence_shape: Any = None
    ) -> tuple[int | None, ...]:
        if self.built:
            self._check_memory(encoder_sequence_shape)
        self._check_shapes(decoder_sequence_shape, encoder_sequence_shape)
        return tuple(decoder_sequence_shape)

    def call(
        self,
        decoder_sequence: Any,
        encoder_sequence: Any = None,
        decoder_padding_mask: Any = None,
        decoder_attention_mask: Any = None,
        encoder_padding_mask: Any = None,
        encoder_attention_mask: Any = None,
        self_attention_cache: KeyValueCache | FixedKeyValueCache | None = None,
        cross_attention_cache: KeyValueCache | None = None,
        use_causal_mask: bool = True,
        training: bool | None = None,
        return_attention_scores: bool = False,
        decoder_segment_ids: Any = None,
        encoder_segment_ids: Any = None,
        mask: Any = None,
        decoder_sequence_mask: Any = None,
        encoder_sequence_mask: Any = None,
    ) -> Any:
        """Applies the three sub-layers.

        Args:
            decoder_sequence: (B, T, M).
            encoder_sequence: The encoder's output (B, S, M); None for a language model, or where
                `cross_attention_cache` stands for it.
            decoder_padding_mask: Boolean (B, T), True at real tokens; T counts the cached positions too.
            decoder_attention_mask: Boolean (B, T, T) or (B, H, T, T).
            encoder_padding_mask: Boolean (B, S), True at real tokens.
            encoder_attention_mask: Boolean (B, T, S) or (B, H, T, S).
            self_attention_cache: Keys and values of the target positions before these.
            cross_attention_cache: Keys and values of the encoder's output, from `project_memory`. Its batch
                may be B/K: the K beams of a sentence, which follow one another, share it.
            use_causal_mask: Whether a position sees only itself and what is before it.
            training: Whether to drop out.
            return_attention_scores: Also returns the self-attention weights (B, H, T, T) and, with an encoder
                sequence, the cross-attention weights (B, H, T, S).
            decoder_segment_ids: Integers (B, T), one number for each of the sequences packed into a row.
            encoder_segment_ids: The same for the encoder sequence (B, S).
            mask: The implicit mask of the decoder sequence, which Keras fills in.
            decoder_sequence_mask: The same, where there are other tensors.
            encoder_sequence_mask: The implicit mask of the encoder sequence.

        Returns:
            (B, T, M); then the weights if asked for; then, where a self-attention cache was given, that cache
            with these positions appended.
        """
        x = check_sequence(decoder_sequence, "decoder_sequence")
        # Here they have the names that the caller knows; what wrong ones come to, the attention layers void.
        checked_masks(
            decoder_padding_mask=decoder_padding_mask,
            decoder_attention_mask=decoder_attention_mask,
            encoder_padding_mask=encoder_padding_mask,
            encoder_attention_mask=encoder_attention_mask,
        )
        self._check_memory(encoder_sequence, cross_attention_cache)
        y, *results = as_tuple(
            self.self_attention(
                self._enter(self.self_attention_norm, x),
                padding_mask=decoder_padding_mask,
                mask=first_given(mask, decoder_sequence_mask),
                attention_mask=decoder_attention_mask,
                use_causal_mask=use_causal_mask,
                training=training,
                return_attention_scores=return_attention_scores,
                segment_ids=decoder_segment_ids,
                cache=self_attention_cache,
            )
        )  # (B, T, M), (B, H, T, T)
        x = self._leave(self.self_attention_norm, x, y, training)

        if self.cross_attention is not None:
            y, *cross_weights = self._attend_to_memory(
                self._enter(self.cross_attention_norm, x),
                encoder_sequence,
                cross_attention_cache,
                value_mask=first_given(encoder_padding_mask, encoder_sequence_mask),
                attention_mask=encoder_attention_mask,
                training=training,
                return_attention_scores=return_attention_scores,
                query_segment_ids=None if encoder_segment_ids is None else decoder_segment_ids,
                value_segment_ids=encoder_segment_ids,
            )  # (B, T, M), (B, H, T, S)
            x = self._leave(self.cross_attention_norm, x, y, training)
            results[1:1] = cross_weights

        y = self.feed_forward(self._enter(self.feed_forward_norm, x), training=training)
        x = self._leave(self.feed_forward_norm, x, y, training)
        return (x, *results) if results else x

    def init_cache(self, batch_size: Any, capacity: int | None = None) -> KeyValueCache | FixedKeyValueCache:
        """A self-attention cache before the first position, for decoding step by step.

        Args:
            batch_size: B.
            capacity: Positions that it will hold at most, in storage of that fixed size; None for a cache that grows.

        Returns:
            What `call` takes as `self_attention_cache`.
        """
        check_built(self, "init_cache")
        return self.self_attention.init_cache(batch_size, capacity)

    def project_memory(self, encoder_sequence: Any) -> KeyValueCache:
        """Projects the encoder's output once, for all steps of decoding.

        Args:
            encoder_sequence: (B, S, M).

        Returns:
            What `call` takes as `cross_attention_cache`.
        """
        check_built(self, "project_memory")
        self._check_memory(encoder_sequence)
        return self.cross_attention.project(encoder_sequence)

    def _check_shapes(self, decoder_sequence_shape: Any, encoder_sequence_shape: Any) -> None:
        self._check_sequence_shape(decoder_sequence_shape, "decoder_sequence")
        if encoder_sequence_shape is not None:
            check_shape(encoder_sequence_shape, "encoder_sequence")
            check_batches_and_lengths(decoder_sequence_shape, encoder_sequence_shape, None)

    def _weights_shapes(self, decoder_sequence_shape: Any, encoder_sequence_shape: Any = None) -> tuple[Any, ...]:
        batch, length, _ = decoder_sequence_shape
        keys = [shape[1] for shape in (decoder_sequence_shape, encoder_sequence_shape) if shape is not None]
        return tuple((batch, self.num_heads, length, each) for each in keys)

    def _check_memory(self, *given: Any) -> None:
        if self.cross_attention is None and any(each is not None for each in given):
            raise ValueError(
                "This layer was built without an encoder sequence, so it has no cross-attention: call it with "
                "`encoder_sequence` from the first time on. Received: an encoder sequence, or a cache of one"
            )

    def _attend_to_memory(self, x: Any, memory: Any, cache: KeyValueCache | None, **options: Any) -> Any:
        """Cross-attention; over a cache, the beams of a sentence become query positions, without a copy."""
        if cache is None:
            if memory is None:
                raise ValueError(
                    "This layer was built with an encoder sequence, so it needs `encoder_sequence` or "
                    "`cross_attention_cache`. Received: neither"
                )
            return as_tuple(self.cross_attention(x, memory, **options))
        batch, length, width = ops.shape(x)
        sentences = ops.shape(cache.key)[0]
        # At least 1 for a batch of none. A size that is a number stays one: `ops` would give JAX a traced value.
        beams = batch // (ops.maximum(sentences, 1) if ops.is_tensor(sentences) else max(sentences, 1))
        queries = ops.reshape(x, (sentences, beams * length, width))  # (B, K·T, M)
        y, *weights, _ = self.cross_attention(queries, cache=cache, **options)
        y = ops.reshape(y, (batch, length, width))  # (B·K, T, M)
        if not weights:
            return (y,)
        weights = ops.reshape(weights[0], (sentences, self.num_heads, beams, length, cache.length))
        weights = ops.transpose(weights, (0, 2, 1, 3, 4))  # (B, K, H, T, S)
        weights = ops.reshape(weights, (batch, self.num_heads, length, cache.length))  # (B·K, H, T, S)
        return y, weights
