"""The Transformer as a functional Keras model.

Shapes: B batch, T target length, S source length, M model width, H heads, D head width, V vocabulary,
K beams.
"""

from typing import Any, NamedTuple

import keras

from keras_attention.layers import (
    Decoder,
    Encoder,
    FixedKeyValueCache,
    KeyValueCache,
    TokenEmbedding,
)
from keras_attention.layers.dropout import Dropout
from keras_attention.models.base import (
    ConfiguredModel,
    check_config,
    decoder_arguments,
    encoder_arguments,
    positional_encoding,
)
from keras_attention.models.config import TransformerConfig
from keras_attention.models.network import Network, padding_mask


class DecoderCache(NamedTuple):
    """The caches of the decoder between steps.

    Attributes:
        layers: Self-attention cache of each layer, (B·K, H, t, D); a beam search reorders its rows.
        cross: Keys and values of the encoder's output for each layer, (B, H, S, D); they do not change.

    Example:
        >>> DecoderCache(layers=(), cross=()).layers
        ()
    """

    layers: tuple[KeyValueCache | FixedKeyValueCache, ...]
    cross: tuple[KeyValueCache, ...]


@keras.saving.register_keras_serializable("keras_attention")
class Transformer(ConfiguredModel):
    """Encoder and decoder with one embedding matrix for source, target and logits.

    A functional model: inputs `{"source": (B, S), "target": (B, T)}` token ids, 0 for padding; output
    logits (B, T, V), those at t predicting the target token at t + 1. The masks are computed from the ids.

    Args:
        config: Sizes of the model.
        dtype: Dtype or policy of all layers, the global policy by default. Logits are always float32.
        **kwargs: `name` and the like.

    Raises:
        TypeError: If `config` is not a `TransformerConfig`.

    Example:
        >>> model = Transformer(TransformerConfig.from_preset("tiny", vocabulary_size=100))
        >>> ids = keras.ops.ones((2, 5), dtype="int32")
        >>> print(model({"source": ids, "target": ids[:, :3]}).shape)
        (2, 3, 100)

    Source: Vaswani et al. 2017, section 3 and figure 1.
    """

    def __init__(self, config: TransformerConfig, dtype: Any = None, **kwargs: Any):
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        source = keras.Input((None,), dtype="int32", name="source")  # (B, S)
        target = keras.Input((None,), dtype="int32", name="target")  # (B, T)
        check_config(config)
        network = Network(
            embedding=TokenEmbedding(config.vocabulary_size, config.hidden_dim, dtype=policy, name="embedding"),
            positions=positional_encoding(config, policy),
            encoder=Encoder(**encoder_arguments(config), dtype=policy, name="encoder"),
            decoder=Decoder(**decoder_arguments(config), dtype=policy, name="decoder"),
            source_dropout=Dropout(config.dropout, dtype=policy, name="source_dropout"),
            target_dropout=Dropout(config.dropout, dtype=policy, name="target_dropout"),
        )
        inputs = {"source": source, "target": target}
        logits = network.logits(network.decoder_output(source, target))  # (B, T, V)
        super().__init__(config, policy, network, inputs=inputs, outputs=logits, **kwargs)

    def packed(self) -> keras.Model:
        """Returns a model with the same layers and weights whose rows contain several pairs.

        Compile and train it instead of this model, on `text.PackedBatches`; then save, evaluate and translate with this
        model. Positions start at 0 in each segment, and attention does not cross segments.

        Returns:
            A functional model from `{"source": (B, S), "target": (B, T), "source_segments": (B, S), "target_segments":
            (B, T)}` to logits (B, T, V). Segments are integers: a number for each pair of a row, equal on both sides; 0
            for padding.

        Example:
            >>> model = Transformer(TransformerConfig.from_preset("tiny", vocabulary_size=100))
            >>> ids, segments = keras.ops.array([[5, 6, 7, 8, 0]]), keras.ops.array([[1, 1, 2, 2, 0]])
            >>> inputs = {"source": ids, "target": ids, "source_segments": segments, "target_segments": segments}
            >>> packed = model.packed()(inputs)
            >>> single = model({"source": ids[:, 2:4], "target": ids[:, 2:4]})
            >>> float(keras.ops.max(keras.ops.abs(packed[:, 2:4] - single))) < 1e-4
            True
        """
        names = ("source", "target", "source_segments", "target_segments")
        inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
        model = keras.Model(inputs, self.network.logits(self.decoder_output(**inputs)))
        model.dtype_policy = self.dtype_policy
        return model

    def decoder_output(self, source: Any, target: Any, source_segments: Any = None, target_segments: Any = None) -> Any:
        """Computes the hidden states before the logits, for a model with another output.

        Args:
            source: Token ids (B, S), 0 for padding; a `keras.Input`, or a tensor.
            target: Token ids (B, T).
            source_segments: Segments (B, S), see `packed`.
            target_segments: Segments (B, T), see `packed`.

        Returns:
            Output of the decoder (B, T, M).
        """
        return self.network.decoder_output(source, target, source_segments, target_segments)

    def encode(self, source: Any, return_attention_scores: bool = False) -> Any:
        """Runs the encoder, without dropout.

        Args:
            source: Token ids (B, S), 0 for padding.
            return_attention_scores: Whether to return the attention weights of each layer, too.

        Returns:
            The memory (B, S, M) and its padding mask (B, S); then, on request, the weights, a tuple of (B, H, S, S).
        """
        source_mask = padding_mask(source)  # (B, S)
        memory, weights = self.network.encode(
            source, padding_mask=source_mask, training=False, return_attention_scores=True
        )
        return (memory, source_mask, weights) if return_attention_scores else (memory, source_mask)

    def init_cache(self, memory: Any, batch_size: Any, capacity: int | None = None) -> DecoderCache:
        """Projects the memory for cross-attention and creates empty self-attention caches.

        Args:
            memory: Output of the encoder (B, S, M).
            batch_size: Number of target sequences, B·K with K beams.
            capacity: Maximum number of target positions, for caches of that fixed size; None for caches that grow.

        Returns:
            The cache before the first step.
        """
        decoder = self.network.decoder
        return DecoderCache(
            layers=decoder.init_cache(batch_size, capacity),
            cross=tuple(layer.project_memory(memory) for layer in decoder.layers),
        )

    def decode_step(
        self, ids: Any, cache: DecoderCache, source_mask: Any, return_attention_scores: bool = False
    ) -> Any:
        """Runs the decoder on the next tokens, without dropout.

        Args:
            ids: Next T tokens of each target (B·K, T); their positions continue those of the cache.
            cache: Cache from `init_cache` or the step before.
            source_mask: Padding mask (B, S) from `encode`.
            return_attention_scores: Whether to return the cross-attention weights of each layer, too.

        Returns:
            Logits (B·K, T, V) and the cache with the tokens appended; then, on request, the weights, a tuple of
            (B·K, H, T, S).
        """
        x, _, weights, layers = self.network.decode(
            ids,
            start_index=cache.layers[0].length,
            encoder_padding_mask=source_mask,
            self_attention_caches=cache.layers,
            cross_attention_caches=cache.cross,
            training=False,
            return_attention_scores=True,
        )
        logits, cache = self.network.logits(x), DecoderCache(layers, cache.cross)  # (B·K, T, V)
        return (logits, cache, weights) if return_attention_scores else (logits, cache)
