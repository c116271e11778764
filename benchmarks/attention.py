"""MultiHeadAttention against Keras' own on short sequences: forward, with the gradients, with dropout and without."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import keras_attention as ka
from benchmarks.harness import Case, Report, measure_in_turn

BATCH, TOKENS, HEADS, KEY_DIM = 64, 64, 8, 64
WIDTH = HEADS * KEY_DIM
OURS, PEER = "keras_attention", "keras"
DROPOUT = 0.1
PLAIN = {"training": False}
CALLS = {"plain": PLAIN, "causal": {**PLAIN, "use_causal_mask": True}, f"dropout {DROPOUT}": {"training": True}}
# float32 sums of WIDTH or BATCH * TOKENS terms in another order: outputs are of order 0.1,
# gradients are compared relative to their largest entry.
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4


def run(rounds: int) -> Report:
    """Asserts that both layers agree, then measures them in turn."""
    x = tf.constant(np.random.default_rng(1).standard_normal((BATCH, TOKENS, WIDTH)), "float32")
    layers = _layers_with_equal_weights(x)
    setup = {"batch": BATCH, "tokens": TOKENS, "heads": HEADS, "key_dim": KEY_DIM, "rounds": rounds}
    report = Report("attention", PEER, {**setup, "dtype": keras.config.floatx()})
    for name, options in CALLS.items():
        for kind, build in {"forward": _forward, "gradients": _with_gradients}.items():
            steps = {side: build(layer, x, options) for side, layer in layers.items()}
            if not options["training"]:  # with dropout each draws its own
                _assert_equal(f"{kind}, {name}", steps[OURS](), steps[PEER]())
            report.cases.append(Case(f"{kind}, {name}", measure_in_turn(steps, rounds)))
    return report


def _layers_with_equal_weights(x: tf.Tensor) -> dict[str, keras.layers.Layer]:
    kinds = {OURS: ka.MultiHeadAttention, PEER: keras.layers.MultiHeadAttention}
    layers = {side: kind(num_heads=HEADS, key_dim=KEY_DIM, dropout=DROPOUT) for side, kind in kinds.items()}
    for layer in layers.values():
        layer(x, x)
    layers[OURS].set_weights(layers[PEER].get_weights())
    return layers


def _forward(layer: keras.layers.Layer, x: tf.Tensor, options: dict) -> Callable[[], list]:
    @tf.function
    def step() -> tf.Tensor:
        return layer(x, x, **options)

    return lambda: [step().numpy()]


def _with_gradients(layer: keras.layers.Layer, x: tf.Tensor, options: dict) -> Callable[[], list]:
    @tf.function
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, x, **options)
            loss = tf.reduce_mean(tf.square(y))
        variables = [variable.value for variable in layer.trainable_variables]
        return [y, *tape.gradient(loss, [x, *variables])]

    return lambda: [tensor.numpy() for tensor in step()]


def _assert_equal(case: str, ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=OUTPUT_TOLERANCE, err_msg=case)
    # The bias of the keys has no gradient, so what rounding leaves of it is measured by the gradient of x.
    largest = np.abs(theirs[1]).max() if len(theirs) > 1 else 0.0
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        scale = max(np.abs(other).max(), largest)
        np.testing.assert_allclose(mine, other, rtol=0, atol=GRADIENT_TOLERANCE * scale, err_msg=f"gradient, {case}")
