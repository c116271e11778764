"""A language model, the decoder of a Transformer without an encoder, as a functional Keras model.

Shapes: B batch, T length, M model width, H heads, D head width, V vocabulary.
"""

from typing import Any

import keras

from keras_attention.layers import Decoder, TokenEmbedding
from keras_attention.layers.dropout import Dropout
from keras_attention.models.base import ConfiguredModel, check_config, decoder_arguments, positional_encoding
from keras_attention.models.config import TransformerConfig
from keras_attention.models.network import Network
from keras_attention.models.transformer import DecoderCache


@keras.saving.register_keras_serializable("keras_attention")
class CausalTransformer(ConfiguredModel):
    """Decoder layers without a memory, and one embedding matrix for tokens and logits.

    A functional model: input token ids (B, T), 0 for padding; output logits (B, T, V), those at t predicting the token
    at t + 1. Pad rows at the end, where the causal mask hides the padding from the tokens, not at the start.

    Args:
        config: Sizes of the model; `num_layers` is the number of decoder layers. The number of weights is
            `config.num_causal_parameters`.
        dtype: Dtype or policy of all layers, the global policy by default. Logits are always float32.
        **kwargs: `name` and the like.

    Raises:
        TypeError: If `config` is not a `TransformerConfig`.
        ValueError: A config with `num_decoder_layers`.

    Example:
        >>> model = CausalTransformer(TransformerConfig.from_preset("tiny", vocabulary_size=100))
        >>> print(model(keras.ops.ones((2, 5), dtype="int32")).shape)
        (2, 5, 100)

    Source: Vaswani et al. 2017, figure 1, right; Liu et al. 2018 (arXiv 1801.10198), section 4.2.3, which leaves the
    encoder out.
    """

    def __init__(self, config: TransformerConfig, dtype: Any = None, **kwargs: Any):
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        ids = keras.Input((None,), dtype="int32", name="ids")  # (B, T)
        if check_config(config).num_decoder_layers is not None:
            raise ValueError(
                "A CausalTransformer has only decoder layers: give their number as `num_layers`. "
                f"Received: num_decoder_layers={config.num_decoder_layers}, num_layers={config.num_layers}"
            )
        network = Network(
            embedding=TokenEmbedding(config.vocabulary_size, config.hidden_dim, dtype=policy, name="embedding"),
            positions=positional_encoding(config, policy),
            target_dropout=Dropout(config.dropout, dtype=policy, name="dropout"),
            decoder=Decoder(**decoder_arguments(config), dtype=policy, name="decoder"),
        )
        logits = network.logits(network.decode(ids))  # (B, T, V)
        super().__init__(config, policy, network, inputs=ids, outputs=logits, **kwargs)

    def decoder_output(self, ids: Any) -> Any:
        """Computes the hidden states before the logits, for a model with another output.

        Args:
            ids: Token ids (B, T); a `keras.Input`, or a tensor.

        Returns:
            Output of the decoder (B, T, M).
        """
        return self.network.decode(ids)

    def init_cache(self, batch_size: Any, capacity: int | None = None) -> DecoderCache:
        """Creates empty self-attention caches.

        Args:
            batch_size: Number of sequences B; B·K with K beams.
            capacity: Maximum number of positions, for caches of that fixed size; None for caches that grow.

        Returns:
            The cache before the first step, without keys and values of a memory.
        """
        return DecoderCache(layers=self.network.decoder.init_cache(batch_size, capacity), cross=())

    def decode_step(self, ids: Any, cache: DecoderCache) -> tuple[Any, DecoderCache]:
        """Runs the model on the next tokens, without dropout.

        Args:
            ids: Next T tokens of each sequence (B, T), without padding; their positions continue those of the cache.
            cache: Cache from `init_cache` or the step before.

        Returns:
            Logits (B, T, V) and the cache with the tokens appended.

        Example:
            >>> model = CausalTransformer.from_preset("tiny", vocabulary_size=100)
            >>> logits, cache = model.decode_step(keras.ops.array([[5, 6, 7]]), model.init_cache(1))
            >>> logits, cache = model.decode_step(keras.ops.array([[8]]), cache)
            >>> print(logits.shape, int(cache.layers[0].length))
            (1, 1, 100) 4
        """
        x, layers = self.network.decode(
            ids, start_index=cache.layers[0].length, self_attention_caches=cache.layers, training=False
        )
        return self.network.logits(x), cache._replace(layers=layers)  # (B, T, V)
