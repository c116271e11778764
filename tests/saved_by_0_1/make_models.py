"""Makes the files of this folder: `python tests/saved_by_0_1/make_models.py FOLDER`, with version 0.1 of the package.

Kept to show how the files were made: models of a later version belong in a folder of their own.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

import keras_attention as ka

# Distinct primes: B batch, T target and S source length, V vocabulary.
B, T, S, V = 2, 5, 7, 31


def config(**changes) -> ka.TransformerConfig:
    return ka.TransformerConfig(
        V, **{"num_layers": 1, "hidden_dim": 12, "intermediate_dim": 22, "num_heads": 3, **changes}
    )


def ids(*shape: int) -> np.ndarray:
    """Token ids whose last row ends in two padded positions."""
    tokens = np.random.default_rng(sum(shape)).integers(1, V, shape, dtype="int32")
    tokens[-1, -2:] = 0
    return tokens


def transformer() -> tuple[keras.Model, dict]:
    """A Transformer after three steps, with the state of its optimizer."""
    inputs = {"source": ids(B, S), "target": ids(B, T)}
    model = ka.Transformer(config())
    model.compile(ka.training.paper_optimizer(model.config, warmup_steps=50), loss=ka.training.MaskedCrossEntropy())
    model.fit(inputs, ids(B, T), epochs=3, verbose=0)
    return model, inputs


def pre_norm_transformer() -> tuple[keras.Model, dict]:
    """A Transformer with every choice that the config offers."""
    model = ka.Transformer(
        config(normalize_first=True, use_attention_bias=True, activation="swiglu", dropout=0.2, remat=True)
    )
    return model, {"source": ids(B, S), "target": ids(B, T)}


def causal_transformer() -> tuple[keras.Model, np.ndarray]:
    return ka.CausalTransformer(config()), ids(B, T)


def int8_transformer() -> tuple[keras.Model, dict]:
    model = ka.Transformer(config())
    model.quantize("int8")
    return model, {"source": ids(B, S), "target": ids(B, T)}


def classifier() -> tuple[keras.Model, np.ndarray]:
    """A functional model of layers: each way of saying where a token is, several kinds of heads."""
    tokens = keras.Input((None,), dtype="int32")
    x = ka.TokenEmbedding(V, 12, mask_zero=True)(tokens)
    x = ka.PositionalEncoding()(x)
    x = ka.EncoderLayer(22, 3, position=ka.RelativePositionBias(8, 20), normalization="rms", activation="geglu")(x)
    x = ka.EncoderLayer(22, 4, num_kv_heads=2, qk_norm=True, position=ka.AlibiBias(), normalize_first=True)(x)
    x = ka.MultiHeadSelfAttention(3, position=ka.RotaryPosition(), use_gate=True)(x)
    x = ka.MultiHeadAttention(2, 6, value_dim=5)(x, x)
    y = keras.layers.Dense(1, activation="sigmoid")(keras.layers.GlobalAveragePooling1D()(x))
    return keras.Model(tokens, y), ids(B, T)


def lora_classifier() -> tuple[keras.Model, np.ndarray]:
    """Two layers with adapters that are not zero."""
    tokens = keras.Input((None,), dtype="int32")
    x = ka.TokenEmbedding(V, 12, mask_zero=True)(tokens)
    first, second = ka.EncoderLayer(22, 3, name="first"), ka.EncoderLayer(22, 3, name="second")
    model = keras.Model(tokens, second(first(x)))
    first.enable_lora(rank=2)
    second.enable_lora(rank=2, pattern="query|value")
    for weight in [*first.trainable_weights, *second.trainable_weights]:
        weight.assign(keras.random.normal(weight.shape, stddev=0.3, seed=len(weight.path)))
    return model, ids(B, T)


MODELS: list[Callable] = [
    transformer,
    pre_norm_transformer,
    causal_transformer,
    int8_transformer,
    classifier,
    lora_classifier,
]


def main(folder: Path) -> None:
    for make in MODELS:
        keras.utils.set_random_seed(17)
        model, inputs = make()
        inputs_by_name = inputs if isinstance(inputs, dict) else {"inputs": inputs}
        model.save(folder / f"{make.__name__}.keras")
        np.savez(folder / f"{make.__name__}.npz", outputs=model.predict(inputs, verbose=0), **inputs_by_name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
