"""Encoder and decoder step as functions of tensors, for runtimes without cache objects.

Shapes: B sentences, R = B·K rows with K beams, S source length, t tokens before, T new tokens, N decoder layers,
H heads, D head width, M model width, V vocabulary.
"""

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_attention.conversion.parity import RandomPairs, assert_close, full_logits
from keras_attention.layers import KeyValueCache
from keras_attention.models import Transformer
from keras_attention.text import PAD_ID

BEAMS = 2  # rows of each sentence in the check

# A converted function: from inputs by name to outputs by name.
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class DecodingFunctions(tf.Module):
    """`encode` and `decode_step` of a float32 `Transformer`, with caches as plain tensors."""

    def __init__(self, model: Transformer):
        super().__init__(name="decoding_functions")
        self.model = model
        layers = model.network.decoder.init_cache(1)
        _, heads, _, width = layers[0].key.shape

        def ids(name: str) -> tf.TensorSpec:
            return tf.TensorSpec([None, None], tf.int32, name=name)

        def cache(name: str) -> tf.TensorSpec:
            return tf.TensorSpec([None, len(layers), heads, None, width], tf.float32, name=name)

        step = [ids("ids"), ids("source")]
        step += [cache(name) for name in ("memory_keys", "memory_values", "past_keys", "past_values")]
        self.encode = tf.function(self._encode, input_signature=[ids("source")], autograph=False)
        self.decode_step = tf.function(self._decode_step, input_signature=step, autograph=False)

    def _encode(self, source: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the keys and values (B, N, H, S, D) of the cross-attention for sources (B, S), eos included."""
        x = self.model.network.embed(source)  # (B, S, M)
        memory = self.model.network.encoder(x, attention_mask=_key_mask(source), training=False)
        projected = [layer.project_memory(memory) for layer in self.model.network.decoder.layers]
        return _joined(projected, "memory_keys", "memory_values")

    def _decode_step(
        self,
        ids: tf.Tensor,
        source: tf.Tensor,
        memory_keys: tf.Tensor,
        memory_values: tf.Tensor,
        past_keys: tf.Tensor,
        past_values: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Returns logits (R, T, V) after new tokens (R, T), and all keys and values (R, N, H, t + T, D) so far."""
        # The memory is (B, N, H, S, D) and the past (R, N, H, t, D); the K rows of a sentence are adjacent.
        decoder = self.model.network.decoder
        x = self.model.network.embed(ids, tf.shape(past_keys)[3])  # (R, T, M)
        caches = zip(_split(past_keys, past_values), _split(memory_keys, memory_values), strict=True)
        grown = []
        for layer, (past, memory) in zip(decoder.layers, caches, strict=True):
            x, cache = layer(
                x,
                encoder_attention_mask=_key_mask(source),
                self_attention_cache=past,
                cross_attention_cache=memory,
                training=False,
            )
            grown.append(cache)
        x = x if decoder.final_norm is None else decoder.final_norm(x)
        logits = self.model.network.logits(x)  # (R, T, V)
        return {"logits": logits, **_joined(grown, "keys", "values")}


def check(model: Transformer, encode: Run, decode_step: Run) -> None:
    """Compares the logits of converted functions with the float32 model's, with beams and padding."""
    pairs = RandomPairs.of(model)
    source = pairs.source_ids
    targets = np.stack([pairs.target_ids, pairs.target_ids[::-1]], axis=1)  # (B, K, T)
    targets = targets.reshape(BEAMS * len(source), -1)
    expected = full_logits(model, np.repeat(source, BEAMS, axis=0), targets)
    memory = encode({"source": source})
    _, layers, heads, _, width = memory["memory_keys"].shape
    keys = values = np.zeros((len(targets), layers, heads, 0, width), "float32")
    length = targets.shape[1]
    for start, stop in itertools.pairwise([0, 1, 2, 5, length]):  # one token at a time, and several
        state = {**memory, "past_keys": keys, "past_values": values}
        outputs = decode_step({"ids": targets[:, start:stop], "source": source, **state})
        keys, values = outputs["keys"], outputs["values"]
        real = targets[:, start:stop] != PAD_ID
        assert_close(outputs["logits"][real], expected[:, start:stop][real], "logits of random targets")


def _key_mask(source: tf.Tensor) -> tf.Tensor:
    """Returns the mask (B, 1, 1, S) of real tokens, by a reshape: LiteRT adds no axis to unknown dimensions."""
    batch, length = tf.unstack(tf.shape(source))
    return tf.reshape(tf.not_equal(source, PAD_ID), [batch, 1, 1, length])


def _split(keys: tf.Tensor, values: tf.Tensor) -> list[KeyValueCache]:
    """Splits (R, N, H, t, D) into a cache for each layer."""
    return [KeyValueCache(keys[:, layer], values[:, layer]) for layer in range(keys.shape[1])]


def _joined(caches: list[KeyValueCache], keys: str, values: str) -> dict[str, tf.Tensor]:
    """Stacks the caches of the layers to two tensors (R, N, H, t, D)."""
    return {
        keys: tf.stack([cache.key for cache in caches], axis=1),
        values: tf.stack([cache.value for cache in caches], axis=1),
    }
