"""The paper's Transformer composed of public layers, with parts that can be left out or replaced.

The library has no options for what only an ablation does. With all its parts, `AblatedTransformer` computes what
`Transformer` computes. Shapes: B batch, T target length, S source length, M model width, H heads, D head width.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

import keras_attention as ka
from benchmarks.tools.ablation_rows import Parts
from keras_attention.layers import KeyValueCache, ResidualBranchInitializer
from keras_attention.layers.positions import NoPositionalEncoding
from keras_attention.models import DecoderCache, TransformerConfig


class ScaledScoresAttention(ka.MultiHeadAttention):
    """Multi-head attention whose scores are `score_factor` · Q Kᵀ / √d_k."""

    def __init__(self, *args: Any, score_factor: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.score_factor = score_factor

    def project(self, *args: Any, **kwargs: Any) -> KeyValueCache:
        """Projects keys and values, and multiplies the keys."""
        memory = super().project(*args, **kwargs)
        return KeyValueCache(memory.key * self.score_factor, memory.value)


class PlainAttention(keras.layers.Layer):
    """softmax(Q Kᵀ / √d_k) K for each slice of the width, without W_Q, W_K, W_V and W_O."""

    def __init__(self, num_heads: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, query_shape: Any, value_shape: Any) -> None:
        """Creates no weights."""

    def call(self, query: Any, value: Any, value_mask: Any = None, use_causal_mask: bool = False) -> Any:
        """Attends from the query (B, T, M) to the value (B, S, M)."""
        masks = [None if value_mask is None else ka.ops.key_mask(value_mask)]
        if use_causal_mask:
            masks.append(ka.ops.causal_mask(ops.shape(query)[1], ops.shape(value)[1]))
        queries, keys = (self._heads(self.to_scores(x)) for x in (query, value))  # (B, H, T, D), (B, H, S, D)
        values, mask = self._heads(self.to_values(value)), ka.ops.combine_masks(*masks)  # (B, H, S, E)
        context, _ = ka.ops.dot_product_attention(queries, keys, values, mask)
        batch, _, length, width = ops.shape(context)
        context = ops.reshape(ops.transpose(context, (0, 2, 1, 3)), (batch, length, self.num_heads * width))
        return self.to_output(context)  # (B, T, M)

    def to_scores(self, x: Any) -> Any:
        """The queries or the keys (B, T, H·D) of x."""
        return x

    def to_values(self, x: Any) -> Any:
        """The values (B, S, H·E) of x."""
        return x

    def to_output(self, context: Any) -> Any:
        """The output (B, T, M) of what the heads attend to (B, T, H·E)."""
        return context

    def compute_output_shape(self, query_shape: Any, value_shape: Any) -> Any:
        return query_shape

    def _heads(self, x: Any) -> Any:
        """Splits (B, T, H·D) into (B, H, T, D)."""
        batch, length, width = ops.shape(x)
        heads = ops.reshape(x, (batch, length, self.num_heads, width // self.num_heads))
        return ops.transpose(heads, (0, 2, 1, 3))


class SharedProjectionAttention(PlainAttention):
    """Multi-head attention with one projection for queries and keys, so that x_i gives x_j the score of x_j for x_i."""

    def __init__(self, num_heads: int, key_dim: int, value_dim: int, **kwargs: Any):
        super().__init__(num_heads, **kwargs)
        self.key_dim, self.value_dim = key_dim, value_dim

    def build(self, query_shape: Any, value_shape: Any) -> None:
        self.to_scores = dense("query", self.num_heads * self.key_dim)
        self.to_values = dense("value", self.num_heads * self.value_dim)
        self.to_output = dense("attention_output", query_shape[-1])
        self.to_scores.build(query_shape)
        self.to_values.build(value_shape)
        self.to_output.build((*query_shape[:-1], self.num_heads * self.value_dim))


class AdditiveHeads(keras.layers.Layer):
    """Multi-head attention with v · tanh(W q_i + U k_j) instead of the dot product, D units in each head."""

    def __init__(self, num_heads: int, key_dim: int, value_dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_heads, self.key_dim, self.value_dim = num_heads, key_dim, value_dim

    def build(self, query_shape: Any, value_shape: Any) -> None:
        self.to_values = dense("value", self.num_heads * self.value_dim)
        self.to_values.build(value_shape)
        self.heads = [ka.AdditiveAttention(self.key_dim, name=f"head_{i}") for i in range(self.num_heads)]
        for head in self.heads:
            head.build(query_shape, (*value_shape[:-1], self.value_dim), value_shape)
        self.to_output = dense("attention_output", query_shape[-1])
        self.to_output.build((*query_shape[:-1], self.num_heads * self.value_dim))

    def call(self, query: Any, value: Any, value_mask: Any = None, use_causal_mask: bool = False) -> Any:
        """Attends from the query (B, T, M) to the value (B, S, M)."""
        values = ops.split(self.to_values(value), self.num_heads, axis=-1)  # each (B, S, E)
        masks = {"value_mask": value_mask, "use_causal_mask": use_causal_mask}
        contexts = [
            head(query, each, key=value, **masks)  # (B, T, E)
            for head, each in zip(self.heads, values, strict=True)
        ]
        return self.to_output(ops.concatenate(contexts, axis=-1))  # (B, T, M)

    def compute_output_shape(self, query_shape: Any, value_shape: Any) -> Any:
        return query_shape


def dense(name: str, units: int) -> keras.layers.Dense:
    """A projection that starts as that of `MultiHeadAttention` with this name."""
    initializer = ResidualBranchInitializer().for_kernel(name)
    return keras.layers.Dense(units, use_bias=False, kernel_initializer=initializer, name=name)


def make_attention(config: TransformerConfig, parts: Parts) -> keras.layers.Layer:
    """Returns an attention layer of the model."""
    key_dim = config.key_dim or config.hidden_dim // config.num_heads
    sizes = {"num_heads": config.num_heads, "key_dim": key_dim, "value_dim": config.value_dim or key_dim}
    if parts.attention == "no_projections":
        return PlainAttention(config.num_heads)
    if parts.attention == "shared_projection":
        return SharedProjectionAttention(**sizes)
    if parts.attention == "additive":
        return AdditiveHeads(**sizes)
    return ScaledScoresAttention(
        **sizes,
        score_factor=parts.score_factor,
        use_bias=config.use_attention_bias,
        kernel_initializer=ResidualBranchInitializer(),
    )


class SubLayer:
    """LayerNorm(x + Dropout(f(x))) for a layer f, or without the sum or the normalization."""

    def __init__(self, layer: keras.layers.Layer, config: TransformerConfig, parts: Parts):
        self.layer = layer
        self.dropout = keras.layers.Dropout(config.dropout)
        self.has_skip = parts.has_skips
        self.norm = keras.layers.LayerNormalization(epsilon=config.layer_norm_epsilon) if parts.has_norms else None

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        y = self.dropout(self.layer(x, *args, **kwargs))  # (B, T, M)
        y = x + y if self.has_skip else y
        return y if self.norm is None else self.norm(y)


class AblatedNetwork:
    """The layers of figure 1 of the paper, some of them left out or replaced."""

    def __init__(self, config: TransformerConfig, parts: Parts):
        positions = ka.PositionalEncoding if parts.has_positions else NoPositionalEncoding
        self.embedding = ka.TokenEmbedding(config.vocabulary_size, config.hidden_dim, name="embedding")
        self.positions = positions()
        self.dropout = keras.layers.Dropout(config.dropout)

        def attention() -> SubLayer:
            return SubLayer(make_attention(config, parts), config, parts)

        def feed_forward() -> SubLayer:
            layer = ka.FeedForward(config.intermediate_dim, kernel_initializer=ResidualBranchInitializer())
            return SubLayer(layer, config, parts)

        self.encoder = [(attention(), feed_forward()) for _ in range(config.num_layers)]
        self.decoder = [(attention(), attention(), feed_forward()) for _ in range(config.decoder_depth)]
        self.end = keras.layers.Identity(name="decoder")  # `ChunkedTrainer` reads the output of the layer "decoder"

    def encode(self, source: Any) -> Any:
        """The memory (B, S, M) of source ids (B, S), and their padding mask (B, S)."""
        mask = ops.not_equal(source, 0)
        x = self.dropout(self.positions(self.embedding(source)))
        for self_attention, feed_forward in self.encoder:
            x = feed_forward(self_attention(x, x, value_mask=mask))
        return x, mask

    def decode(self, target: Any, memory: Any, mask: Any) -> Any:
        """The output of the decoder (B, T, M) for target ids (B, T)."""
        x = self.dropout(self.positions(self.embedding(target)))
        for self_attention, cross_attention, feed_forward in self.decoder:
            x = self_attention(x, x, use_causal_mask=True)
            x = feed_forward(cross_attention(x, memory, value_mask=mask))
        return self.end(x)

    def logits(self, x: Any) -> Any:
        """The logits (B, T, V)."""
        return self.embedding(x, reverse=True)


class AblatedTransformer(keras.Model):
    """A `Transformer` from changed parts, for `ChunkedTrainer` and `Translator`.

    Args:
        config: Sizes of the model: post-norm, sinusoids.
        parts: What is left out or replaced.
    """

    def __init__(self, config: TransformerConfig, parts: Parts):
        network = AblatedNetwork(config, parts)
        source, target = (keras.Input((None,), dtype="int32", name=name) for name in ("source", "target"))
        hidden = network.decode(target, *network.encode(source))
        super().__init__({"source": source, "target": target}, network.logits(hidden))
        self.config, self.network = config, network

    def encode(self, source: Any) -> tuple[Any, Any]:
        """Runs the encoder, see `Transformer.encode`."""
        return self.network.encode(source)

    def init_cache(self, memory: Any, batch_size: Any) -> DecoderCache:
        """A cache of the tokens so far, which each step reads again."""
        return DecoderCache(layers=(ops.zeros((batch_size, 0), "int32"),), cross=(memory,))

    def decode_step(self, ids: Any, cache: DecoderCache, source_mask: Any) -> tuple[Any, DecoderCache]:
        """Runs the decoder on all tokens so far, and returns the logits (B, 1, V) after the last."""
        (written,), (memory,) = cache
        written = ops.concatenate([written, ids], axis=1)  # (B, t)
        hidden = self.network.decode(written, memory, source_mask)
        return self.network.logits(hidden[:, -1:]), cache._replace(layers=(written,))


def make_model(config: TransformerConfig, parts: Parts | None = None) -> keras.Model:
    """Returns the library's `Transformer`, or for changed parts a model composed of layers."""
    make: Callable[..., keras.Model] = ka.Transformer
    return make(config) if parts is None else AblatedTransformer(config, parts)
