"""The computations of `test_backends.py` on each backend.

Keras takes one backend for a whole process, so this file is also a program: `python one_backend.py FOLDER` loads the
models in the folder, and writes its results and the model that it trained there.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from backends import BACKEND, compiled, numpy
from tensors import randomize
from tiny_translator import ODD_TEXTS, tiny_translator

import keras_attention as ka
from keras_attention.decoding import DecodingOptions, beam_search, generate, score, stream
from keras_attention.training import MaskedAccuracy, MaskedCrossEntropy, Perplexity

B, T, S, V, M = 2, 3, 7, 17, 24
SIZES = {"num_layers": 2, "hidden_dim": M, "intermediate_dim": 13, "num_heads": 4, "dropout": 0.0}


def save_models(folder: Path) -> None:
    """Models with random weights, for every backend to load."""
    transformer = ka.Transformer(ka.TransformerConfig(V, **SIZES))
    ids = keras.Input((None,), dtype="int32")
    x = ka.TokenEmbedding(V, M, mask_zero=True)(ids)
    x = ka.Encoder(
        num_layers=2,
        intermediate_dim=13,
        num_heads=4,
        num_kv_heads=2,
        qk_norm=True,
        position=ka.RotaryPosition(),
        normalization="rms",
        activation="swiglu",
        normalize_first=True,
    )(x)
    language_model = ka.CausalTransformer(ka.TransformerConfig(V, **SIZES))
    models = {"transformer": transformer, "encoder": keras.Model(ids, x), "language_model": language_model}
    for name, model in models.items():
        randomize(model)
        model.save(folder / f"{name}.keras")
    translator = tiny_translator()
    translator.model.save(folder / "translator.keras")
    translator.tokenizer.save(folder / "tokenizer.model")


def batch() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Source and target ids with padding, and labels; the same numbers in every process."""
    numbers = np.random.default_rng(3)
    source, target, labels = (numbers.integers(1, V, (B, length)).astype("int32") for length in (S, T, T))
    source[0, 4:] = target[1, 2:] = labels[1, 2:] = 0
    return {"source": source, "target": target}, labels


def answers(folder: Path) -> dict[str, np.ndarray]:
    """Everything that has to be the same on each backend, by name; the trained model goes into the folder."""
    transformer = keras.models.load_model(folder / "transformer.keras")
    encoder = keras.models.load_model(folder / "encoder.keras")
    inputs, labels = batch()
    logits = compiled(transformer)(inputs)
    found = {
        "logits": logits,
        "encoder": compiled(encoder)(inputs["source"]),
        "loss": MaskedCrossEntropy(label_smoothing=0.1)(labels, logits),
    }
    for kind, loop in loops().items():
        found[f"decoding/{kind}"] = loop(transformer, inputs["source"], inputs["target"])

    language_model = keras.models.load_model(folder / "language_model.keras")
    found |= searches(transformer, language_model, **inputs)
    found["translations"] = np.array(translations(folder))

    compile_model(transformer)
    history = transformer.fit(inputs, labels, batch_size=B, epochs=1, verbose=0).history
    found |= {f"fit/{name}": np.array(values) for name, values in history.items()}
    found["trained/logits"] = compiled(transformer)(inputs)
    found |= {f"trained/{weight.path}": weight for weight in transformer.weights}
    transformer.save(folder / f"trained_on_{BACKEND}.keras")
    return numpy(found)


def searches(model: Any, language_model: Any, source: Any, target: Any) -> dict[str, Any]:
    """Hypotheses by every option that is not random, a stream and scores, by name."""
    rules = {"min_length": 3, "no_repeat_ngram": 2, "length_normalization": "average"}
    results = {
        "beams": generate(model, source, DecodingOptions(num_return=3, max_length=9, **rules), prefix=target[:, :2]),
        "best of each": generate(model, source, DecodingOptions(sample=True, top_k=1, num_return=2, max_length=5)),
        "language model": generate(language_model, target, DecodingOptions(beam_size=2, max_length=7)),
        "score": score(model, source, target),
        "table": search_in_table(),
    }
    streamed = list(stream(language_model, target, DecodingOptions(beam_size=1, max_length=7, no_repeat_ngram=1)))
    results["stream"] = [np.stack(each) for each in zip(*streamed, strict=True)]
    return {f"{name}/{number}": x for name, each in results.items() for number, x in enumerate(each)}


def search_in_table() -> Any:
    """The hypotheses of a model whose logits depend on the sentence and the last token."""
    table = np.random.default_rng(5).normal(size=(B, V, V)).astype("float32")

    def step(ids: Any, sentence: Any) -> tuple[Any, Any]:
        rows = keras.ops.reshape(keras.ops.array(table), (-1, V))
        return keras.ops.take(rows, sentence * V + ids, axis=0), sentence

    sentence = np.repeat(np.arange(B, dtype="int32"), 3)
    return beam_search(step, sentence, batch_size=B, beam_size=3, num_return=3, max_length=[5, 8])


def translations(folder: Path) -> list[str]:
    """The translations of odd texts."""
    tokenizer = ka.text.SubwordTokenizer.load(folder / "tokenizer.model")
    model = keras.models.load_model(folder / "translator.keras")
    translator = ka.serving.Translator(model, tokenizer, beam_size=3, max_source_length=61)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one text is too long
        return translator.translate(ODD_TEXTS)


def compile_model(model: Any) -> None:
    """Plain gradient descent, whose steps differ no more than the gradients do."""
    metrics = [MaskedAccuracy(), Perplexity()]
    model.compile(keras.optimizers.SGD(0.02), MaskedCrossEntropy(label_smoothing=0.1), metrics=metrics)


def loops() -> dict[str, Callable[..., Any]]:
    """Ways to decode a given target in steps of one token, each from a model, source and target to the logits."""
    ways: dict[str, Callable[..., Any]] = {
        "growing": lambda *arguments: steps_in_python(*arguments, capacity=None),
        "fixed": lambda *arguments: steps_in_python(*arguments, capacity=11),
    }
    if BACKEND == "tensorflow":
        ways |= {
            "growing in tf.while_loop": lambda *arguments: tensorflow_loop(*arguments, capacity=None, xla=False),
            "fixed in tf.while_loop": lambda *arguments: tensorflow_loop(*arguments, capacity=11, xla=False),
            "fixed under XLA": lambda *arguments: tensorflow_loop(*arguments, capacity=11, xla=True),
        }
    if BACKEND == "jax":
        ways |= {"fixed in jax.lax.while_loop": jax_while_loop, "fixed in jax.lax.fori_loop": jax_fori_loop}
    return ways


def steps_in_python(model: Any, source: Any, target: Any, capacity: int | None) -> Any:
    memory, mask = model.encode(keras.ops.array(source))
    cache, logits = model.init_cache(memory, B, capacity), []
    for t in range(T):
        now, cache = model.decode_step(keras.ops.array(target[:, t : t + 1]), cache, mask)
        logits.append(now)
    return keras.ops.concatenate(logits, axis=1)


def step(model: Any, mask: Any, cross: Any, target: Any, t: Any, layers: Any, logits: Any) -> Any:
    """The body of a compiled loop: one token, its logits written where they belong."""
    ids = keras.ops.slice(target, (0, t), (B, 1))
    now, cache = model.decode_step(ids, ka.models.DecoderCache(layers, cross), mask)
    return t + 1, cache.layers, keras.ops.slice_update(logits, (0, t, 0), now)


def tensorflow_loop(model: Any, source: Any, target: Any, capacity: int | None, xla: bool) -> Any:
    import tensorflow as tf

    @tf.function(jit_compile=xla)
    def decode(source: Any, target: Any) -> Any:
        memory, mask = model.encode(source)
        cache = model.init_cache(memory, B, capacity)
        start = tf.constant(0), cache.layers, tf.zeros((B, T, V))
        grows = capacity is None
        shapes = tf.nest.map_structure(
            lambda x: tf.TensorShape([*x.shape[:2], None, x.shape[3]]) if grows and x.shape.rank == 4 else x.shape,
            start,
        )
        return tf.while_loop(
            lambda t, layers, logits: t < T,
            lambda t, layers, logits: step(model, mask, cache.cross, target, t, layers, logits),
            start,
            shape_invariants=shapes,
        )[2]

    return decode(source, target)


def jax_while_loop(model: Any, source: Any, target: Any) -> Any:
    import jax

    @jax.jit
    def decode(source: Any, target: Any) -> Any:
        memory, mask = model.encode(source)
        cache = model.init_cache(memory, B, capacity=11)
        return jax.lax.while_loop(
            lambda carried: carried[0] < T,
            lambda carried: step(model, mask, cache.cross, target, *carried),
            (0, cache.layers, jax.numpy.zeros((B, T, V))),
        )[2]

    return decode(source, target)


def jax_fori_loop(model: Any, source: Any, target: Any) -> Any:
    import jax

    # The whole cache goes in and out of compiled functions: a tree, since it is made of named tuples.
    start = jax.jit(lambda memory: model.init_cache(memory, B, capacity=11))

    @jax.jit
    def decode(cache: Any, mask: Any, target: Any) -> Any:
        def body(t: Any, carried: Any) -> Any:
            return step(model, mask, cache.cross, target, t, *carried)[1:]

        return jax.lax.fori_loop(0, T, body, (cache.layers, jax.numpy.zeros((B, T, V))))[1]

    memory, mask = model.encode(source)
    return decode(start(memory), mask, target)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    np.savez(place / f"answers_of_{BACKEND}.npz", **answers(place))
