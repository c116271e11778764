"""Encoder and decoder step as functions of tensors, for runtimes without cache objects.

Shapes: B sentences, R = B·K rows with K beams, S source length, t tokens before, T new tokens, N decoder layers,
H heads of keys and values, D and E widths of a head's keys and values, M model width, V vocabulary.
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
        caches = model.network.decoder.init_cache(1)

        def ids(name: str) -> tf.TensorSpec:
            return tf.TensorSpec([None, None], tf.int32, name=name)

        def cache(name: str, values: tf.Tensor) -> tf.TensorSpec:
            _, heads, _, width = values.shape
            return tf.TensorSpec([None, len(caches), heads, None, width], tf.float32, name=name)

        step = [ids("ids"), ids("source")]
        for part in ("memory", "past"):
            step += [cache(f"{part}_keys", caches[0].key), cache(f"{part}_values", caches[0].value)]
        self.encode = tf.function(self._encode, input_signature=[ids("source")], autograph=False)
        self.decode_step = tf.function(self._decode_step, input_signature=step, autograph=False)

    def _encode(self, source: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns keys (B, N, H, S, D) and values (B, N, H, S, E) of cross-attention for sources (B, S) with eos."""
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
        """Returns logits (R, T, V) after new tokens (R, T), and all keys and values (R, N, H, t + T, ·) so far."""
        # The memory is (B, N, H, S, ·) and the past (R, N, H, t, ·); the K rows of a sentence are adjacent.
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
    keys, values = (np.repeat(memory[name][:, :, :, :0], BEAMS, axis=0) for name in ("memory_keys", "memory_values"))
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
    """Splits (R, N, H, t, ·) into a cache for each layer."""
    return [KeyValueCache(keys[:, layer], values[:, layer]) for layer in range(keys.shape[1])]


def _joined(caches: list[KeyValueCache], keys: str, values: str) -> dict[str, tf.Tensor]:
    """Stacks the caches of the layers to two tensors (R, N, H, t, ·)."""
    return {
        keys: tf.stack([cache.key for cache in caches], axis=1),
        values: tf.stack([cache.value for cache in caches], axis=1),
    }
