"""The decoder: figure 1 of the paper, right.

Shapes: B batch, T target length, S source length, M model width, H heads, K beams, N layers.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import as_tuple, first_given
from keras_attention.layers.block import Block, Stack
from keras_attention.layers.cache import FixedKeyValueCache, KeyValueCache
from keras_attention.layers.inputs import check_batches_and_lengths, check_built, check_sequence, check_shape
from keras_attention.ops.masks import checked_masks


@keras.saving.register_keras_serializable("keras_attention")
class DecoderLayer(Block):
    """Decoder layer: causal self-attention, cross-attention and feed-forward, each x = LayerNorm(x + Sublayer(x)).

    Without an encoder sequence there is no cross-attention, as in a language model. The arguments are those of `Block`;
    KerasHub's `TransformerDecoder` has the same names.

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
        """Applies self-attention, cross-attention and the feed-forward network.

        Args:
            decoder_sequence: (B, T, M).
            encoder_sequence: Output of the encoder (B, S, M); None for a language model, or with a
                `cross_attention_cache`.
            decoder_padding_mask: Boolean (B, T), True at real tokens; with a cache, T includes the cached positions.
            decoder_attention_mask: Boolean (B, T, T) or (B, H, T, T).
            encoder_padding_mask: Boolean (B, S), True at real tokens.
            encoder_attention_mask: Boolean (B, T, S) or (B, H, T, S).
            self_attention_cache: Keys and values of the earlier target positions.
            cross_attention_cache: Keys and values of the encoder's output, from `project_memory`. Its batch size
                may be B/K: the K beams of a sentence, in consecutive rows, share it.
            use_causal_mask: Whether a position attends only to itself and the positions before it.
            training: Whether to apply dropout.
            return_attention_scores: Whether to return the self-attention weights (B, H, T, T) and, with an encoder
                sequence, the cross-attention weights (B, H, T, S) as well.
            decoder_segment_ids: Integers (B, T), one number for each sequence of a packed row.
            encoder_segment_ids: Segment ids of the encoder sequence (B, S).
            mask: Implicit mask of the decoder sequence, which Keras passes.
            decoder_sequence_mask: Implicit mask of the decoder sequence, which Keras passes where there are other
                tensors.
            encoder_sequence_mask: Implicit mask of the encoder sequence, which Keras passes.

        Returns:
            The output (B, T, M); or a tuple of the output, the attention weights if they are returned, and, if a
            self-attention cache was given, that cache with these positions appended.
        """
        x = check_sequence(decoder_sequence, "decoder_sequence")
        # Checked here so that errors have the names of these arguments; the attention layers handle `valid`.
        checked_masks(
            decoder_padding_mask=decoder_padding_mask,
            decoder_attention_mask=decoder_attention_mask,
            encoder_padding_mask=encoder_padding_mask,
            encoder_attention_mask=encoder_attention_mask,
        )
        self._check_memory(encoder_sequence, cross_attention_cache)
        y, *results = as_tuple(
            self.self_attention(
                self._pre_norm(self.self_attention_norm, x),
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
        x = self._add_and_norm(self.self_attention_norm, x, y, training)

        if self.cross_attention is not None:
            y, *cross_weights = self._attend_to_memory(
                self._pre_norm(self.cross_attention_norm, x),
                encoder_sequence,
                cross_attention_cache,
                value_mask=first_given(encoder_padding_mask, encoder_sequence_mask),
                attention_mask=encoder_attention_mask,
                training=training,
                return_attention_scores=return_attention_scores,
                query_segment_ids=None if encoder_segment_ids is None else decoder_segment_ids,
                value_segment_ids=encoder_segment_ids,
            )  # (B, T, M), (B, H, T, S)
            x = self._add_and_norm(self.cross_attention_norm, x, y, training)
            results[1:1] = cross_weights

        y = self.feed_forward(self._pre_norm(self.feed_forward_norm, x), training=training)
        x = self._add_and_norm(self.feed_forward_norm, x, y, training)
        return (x, *results) if results else x

    def init_cache(self, batch_size: Any, capacity: int | None = None) -> KeyValueCache | FixedKeyValueCache:
        """Creates an empty self-attention cache, for decoding step by step.

        Args:
            batch_size: B.
            capacity: Largest number of positions, for storage of that fixed size; None for a cache that grows.

        Returns:
            A cache for the argument `self_attention_cache` of `call`.
        """
        check_built(self, "init_cache")
        return self.self_attention.init_cache(batch_size, capacity)

    def project_memory(self, encoder_sequence: Any) -> KeyValueCache:
        """Projects the output of the encoder once, for all steps of decoding.

        Args:
            encoder_sequence: Output of the encoder (B, S, M).

        Returns:
            A cache for the argument `cross_attention_cache` of `call`.
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

    def _check_memory(self, *memories: Any) -> None:
        if self.cross_attention is None and any(memory is not None for memory in memories):
            raise ValueError(
                "This layer was built without an encoder sequence, so it has no cross-attention: call it with "
                "`encoder_sequence` from the first time on. Received: an encoder sequence, or a cache of one"
            )

    def _attend_to_memory(self, x: Any, memory: Any, cache: KeyValueCache | None, **options: Any) -> Any:
        """Cross-attention; with a cache, the beams of a sentence become query positions, which copies nothing."""
        if cache is None:
            if memory is None:
                raise ValueError(
                    "This layer was built with an encoder sequence, so it needs `encoder_sequence` or "
                    "`cross_attention_cache`. Received: neither"
                )
            return as_tuple(self.cross_attention(x, memory, **options))
        batch, length, width = ops.shape(x)
        sentences = ops.shape(cache.key)[0]
        # At least 1, for an empty batch. A Python integer is kept: `ops.maximum` would make it a traced value in JAX.
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


@keras.saving.register_keras_serializable("keras_attention")
class Decoder(Stack):
    """The decoder: a stack of N decoder layers.

    The arguments are those of `Block` and `num_layers` and `remat` of `Stack`.

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
            encoder_sequence: Output of the encoder (B, S, M), or None, see `DecoderLayer`.
            decoder_padding_mask: Boolean (B, T), True at real tokens; with caches, T includes the cached positions.
            encoder_padding_mask: Boolean (B, S), True at real tokens.
            self_attention_caches: A cache for each layer, see `DecoderLayer`.
            cross_attention_caches: A cache for each layer, see `DecoderLayer`.
            use_causal_mask: Whether a position attends only to itself and the positions before it.
            training: Whether to apply dropout.
            return_attention_scores: Whether to return the self-attention weights of each layer, a tuple of N, and, with
                an encoder sequence, the cross-attention weights as well.
            decoder_segment_ids: Integers (B, T), one number for each sequence of a packed row.
            encoder_segment_ids: Segment ids of the encoder sequence (B, S).
            mask: Implicit mask of the decoder sequence, which Keras passes.
            decoder_sequence_mask: Implicit mask of the decoder sequence, which Keras passes where there are other
                tensors.
            encoder_sequence_mask: Implicit mask of the encoder sequence, which Keras passes.

        Returns:
            The output (B, T, M); or a tuple of the output, the attention weights if they are returned, and, if
            self-attention caches were given, those with these positions appended.
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
                remat=self_cache is None and cross_cache is None,  # gradients may flow to the caches
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
        """Creates an empty self-attention cache for each layer, for decoding step by step.

        Args:
            batch_size: B.
            capacity: Largest number of positions, for storage of that fixed size; None for caches that grow.

        Returns:
            Caches for the argument `self_attention_caches` of `call`.
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
