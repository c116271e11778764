"""Causal self-attention over one long sequence against Keras' own: time and memory of a step with its gradients."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_attention as ka
from benchmarks.harness import Case, Report, measure_in_turn

HEADS, KEY_DIM = 8, 64
WIDTH = HEADS * KEY_DIM
OURS, PEER = "keras_attention", "keras"
LENGTHS, LONGER = (1024, 2048, 4096, 8192), (16384, 32768)
ROUNDS = 5
# For float32 sums of many terms in another order, relative to the largest entry.
TOLERANCE = 1e-4


def run(rounds: int) -> Report:
    """Asserts that both sides agree, then measures them in turn; the longest sequences on our side only."""
    memory = {side: {} for side in (OURS, PEER)}
    setup = {"batch": 1, "heads": HEADS, "key_dim": KEY_DIM, "rounds": rounds, "additional_memory_mib": memory}
    report = Report("long_attention", OURS, {**setup, "dtype": keras.config.floatx()})
    for length in (*LENGTHS, *LONGER):
        sides = (OURS, PEER) if length in LENGTHS else (OURS,)
        for side in sides:
            memory[side][length] = _additional_memory(side, length)
        steps = _steps(sides, length)
        if len(steps) > 1:
            _assert_equal(length, *(step() for step in steps.values()))
        seconds = measure_in_turn(steps, rounds if length in LENGTHS else 2, warmup=1)
        report.cases.append(Case(f"{length} tokens", seconds))
    return report


def _steps(sides: tuple[str, ...], length: int) -> dict[str, Callable[[], list[np.ndarray]]]:
    x = tf.constant(np.random.default_rng(1).standard_normal((1, length, WIDTH)), "float32")
    layers = {side: _layer(side) for side in sides}
    weights = [np.random.default_rng(2).standard_normal(each.shape) * 0.05 for each in layers[sides[0]].get_weights()]
    for layer in layers.values():
        layer.set_weights(weights)
    return {side: _step(layer, x) for side, layer in layers.items()}


def _layer(side: str) -> keras.layers.Layer:
    kind = ka.MultiHeadAttention if side == OURS else keras.layers.MultiHeadAttention
    layer = kind(num_heads=HEADS, key_dim=KEY_DIM)
    layer.build((None, None, WIDTH), (None, None, WIDTH))
    return layer


def _step(layer: keras.layers.Layer, x: tf.Tensor) -> Callable[[], list[np.ndarray]]:
    @tf.function
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, x, use_causal_mask=True)
            loss = tf.reduce_mean(tf.square(y))
        variables = [variable.value for variable in layer.trainable_variables]
        return [y, *tape.gradient(loss, [x, *variables])]

    return lambda: [tensor.numpy() for tensor in step()]


def _assert_equal(length: int, ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    # The bias of the keys has no gradient, so what rounding leaves of it is measured by the largest of them all.
    for mine, other in zip(ours, theirs, strict=True):
        scale = max(np.abs(other).max(), np.abs(theirs[1]).max())
        np.testing.assert_allclose(mine, other, rtol=0, atol=TOLERANCE * scale, err_msg=f"{length} tokens")


def _additional_memory(side: str, length: int) -> int:
    """The most that a step takes, in MiB, beyond what the process had after a step of 64 tokens."""
    command = [sys.executable, "-m", "benchmarks.long_attention", side, str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    return json.loads(done.stdout.splitlines()[-1])


def _measure_memory(side: str, length: int) -> None:
    """What the subprocess does."""
    _steps((side,), 64)[side]()
    before = _most_memory()
    _steps((side,), length)[side]()
    print(json.dumps(_most_memory() - before))


def _most_memory() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


if __name__ == "__main__":
    _measure_memory(sys.argv[1], int(sys.argv[2]))
