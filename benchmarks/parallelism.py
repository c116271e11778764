"""Is parallelism reached? Time per token of decoder layers and of GRUs in training, scoring and decoding.

`python -m benchmarks.parallelism` times two decoder layers and a stack of GRUs with as many weights at lengths of 16 to
1,024, with one thread and with two, each in a process of its own. A batch always has 4,096 tokens: a longer sequence
leaves the work of the products the same, and makes more of it serial. It saves after each part and resumes where it
stopped.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS
from benchmarks.tools.parts import markdown, panels, resume, save

ROOT = RESULTS.parent.parent
IMAGE = ROOT / "docs" / "images" / "parallelism.png"
TRANSFORMER, GRU = "Transformer", "GRU"
# Forward, backward and update of the weights; forward over all positions at once; forward, one position after another.
JOBS = ("training", "scoring", "decoding")
# Of the picture, in µs per token: one scale, so that the jobs can be compared.
LIMITS, TICKS = (10, 1000), (10, 20, 50, 100, 200, 500, 1000)
TOLERANCE = 1e-3  # of outputs of order 1 that feed back into the stack


@dataclass(frozen=True)
class Setting:
    """Sizes of the stacks, and what is measured."""

    lengths: tuple[int, ...] = (16, 64, 256, 1024)
    threads: tuple[int, ...] = (1, 2)
    width: int = 256
    num_layers: int = 2  # twice as many GRUs have about as many weights
    num_heads: int = 4
    tokens: int = 4096
    rounds: int = 3


SMOKE = Setting(lengths=(4, 8), threads=(1,), width=8, num_layers=1, num_heads=2, tokens=16, rounds=1)


class DecoderStack:
    """Causal decoder layers without a memory."""

    def __init__(self, setting: Setting):
        import keras_attention as ka

        self.layer = ka.layers.Decoder(setting.num_layers, 4 * setting.width, setting.num_heads)
        self.layer.build((None, None, setting.width))
        self.variables = self.layer.trainable_variables

    def __call__(self, x: Any) -> Any:
        """The outputs of all positions (B, T, M)."""
        return self.layer(x)

    def start(self, batch: int, length: int) -> Any:
        """The state before the first position."""
        return self.layer.init_cache(batch, length)

    def step(self, x: Any, state: Any) -> tuple[Any, Any]:
        """The output of the next position (B, M), and the new state."""
        y, state = self.layer(x[:, None], self_attention_caches=state)
        return y[:, 0], state


class GruStack:
    """GRUs, each on the outputs of the one before."""

    def __init__(self, setting: Setting):
        import keras

        self.layers = [keras.layers.GRU(setting.width, return_sequences=True) for _ in range(2 * setting.num_layers)]
        for layer in self.layers:
            layer.build((None, None, setting.width))
        self.variables = [variable for layer in self.layers for variable in layer.trainable_variables]

    def __call__(self, x: Any) -> Any:
        """The outputs of all positions (B, T, M)."""
        for layer in self.layers:
            x = layer(x)
        return x

    def start(self, batch: int, length: int) -> Any:
        """The state before the first position."""
        return tuple(layer.get_initial_state(batch)[0] for layer in self.layers)

    def step(self, x: Any, state: Any) -> tuple[Any, Any]:
        """The output of the next position (B, M), and the new state."""
        states = []
        for layer, each in zip(self.layers, state, strict=True):
            x, (each,) = layer.cell(x, [each])
            states.append(each)
        return x, tuple(states)


STACKS = {TRANSFORMER: DecoderStack, GRU: GruStack}


def parameters(setting: Setting) -> dict[str, int]:
    """Weights of each stack."""
    return {
        name: sum(math.prod(variable.shape) for variable in stack(setting).variables) for name, stack in STACKS.items()
    }


def decode(stack: Any, first: Any, length: int) -> Any:
    """The outputs (T, B, M) of a stack whose input at each position is its output at the position before."""
    import tensorflow as tf

    def step(index: Any, x: Any, state: Any, outputs: Any) -> tuple[Any, ...]:
        x, state = stack.step(x, state)
        return index + 1, x, state, outputs.write(index, x)

    state = stack.start(first.shape[0], length)
    outputs = tf.TensorArray(first.dtype, length, element_shape=first.shape)
    *_, outputs = tf.while_loop(
        lambda index, *_: index < length, step, (0, first, state, outputs), maximum_iterations=length
    )
    return outputs.stack()


def jobs(name: str, stack: Any, x: Any) -> dict[str, Callable[[], Any]]:
    """The compiled jobs on a batch x (B, T, M); XLA makes loops faster, and is left out where there is none."""
    import keras
    import tensorflow as tf

    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(stack.variables)

    @tf.function(jit_compile=name == GRU)
    def train(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(stack(x)))
        optimizer.apply(tape.gradient(loss, [variable.value for variable in stack.variables]), stack.variables)
        return loss

    score = tf.function(stack, jit_compile=name == GRU)
    decoding = tf.function(lambda first: decode(stack, first, x.shape[1]), jit_compile=True)
    return {
        "training": lambda: train(x).numpy(),
        "scoring": lambda: score(x).numpy(),
        "decoding": lambda: decoding(x[:, 0]).numpy(),
    }


def assert_correct(stack: Any, x: Any) -> None:
    """Asserts that decoding computes, position after position, what scoring does at once."""
    import numpy as np

    decoded = np.moveaxis(decode(stack, x[:, 0], x.shape[1]).numpy(), 0, 1)  # (B, T, M)
    inputs = np.concatenate([x[:, :1], decoded[:, :-1]], axis=1)
    np.testing.assert_allclose(decoded, stack(inputs), rtol=0, atol=TOLERANCE)


def measure(setting: Setting, length: int) -> dict[str, dict[str, float]]:
    """Microseconds per token of each job and stack, in this process."""
    import keras
    import numpy as np
    import tensorflow as tf

    from benchmarks.harness import Case, measure_in_turn

    keras.utils.set_random_seed(1)
    shape = (max(1, setting.tokens // length), length, setting.width)
    x = tf.constant(np.random.default_rng(1).standard_normal(shape), "float32")
    sides = {}
    for name, kind in STACKS.items():
        stack = kind(setting)
        assert_correct(stack, x[:2, : setting.lengths[0]])
        sides |= {f"{name}, {job}": work for job, work in jobs(name, stack, x).items()}
    case = Case(str(length), measure_in_turn(sides, setting.rounds, warmup=1))
    tokens = shape[0] * shape[1]
    return {job: {name: 1e6 * case.median(f"{name}, {job}") / tokens for name in STACKS} for job in JOBS}


def in_process(setting: Setting, length: int, threads: int) -> dict[str, dict[str, float]]:
    """`measure`, in a process with this number of threads, which TensorFlow reads when it starts."""
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.parallelism", "--measure", json.dumps(asdict(setting)), str(length)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"length {length} with {threads} threads failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(setting: Setting, path: Path) -> dict[str, Any]:
    """Measures what the file does not have yet, and saves after each length."""
    content = resume(path, asdict(setting), parameters=parameters(setting), microseconds={})
    for threads in setting.threads:
        of_threads = content["microseconds"].setdefault(str(threads), {})
        for length in setting.lengths:
            if str(length) not in of_threads:
                of_threads[str(length)] = in_process(setting, length, threads)
                save(path, content)
                print(f"{threads} threads, length {length}: {of_threads[str(length)]}", flush=True)
    return content


def tables(content: dict[str, Any]) -> str:
    """The results as Markdown: microseconds per token, gains of the second thread, cost of decoding serially."""
    columns = [(job, name) for job in JOBS for name in STACKS]
    heads = [f"{name}, {job}" for job, name in columns]
    all_threads = content["microseconds"]
    parts = [f"weights: {', '.join(f'{name} {number:,}' for name, number in content['parameters'].items())}"]
    for threads, by_length in all_threads.items():
        rows = [
            (f"{int(n):,}", *(f"{times[job][name]:.3g}" for job, name in columns)) for n, times in by_length.items()
        ]
        parts.append(markdown((f"length, µs/token, threads: {threads}", *heads), rows))
    few, many = min(all_threads, key=int), max(all_threads, key=int)
    if few != many:
        rows = [
            (f"{int(n):,}", *(f"{times[job][name] / all_threads[many][n][job][name]:.2f}" for job, name in columns))
            for n, times in all_threads[few].items()
        ]
        parts.append(markdown((f"length, speed-up of {many} threads over {few}", *heads), rows))
    rows = [
        (f"{int(n):,}", *(f"{times['decoding'][name] / times['scoring'][name]:.2f}" for name in STACKS))
        for n, times in all_threads[many].items()
    ]
    parts.append(markdown((f"length, decoding / scoring, threads: {many}", *STACKS), rows))
    return "\n\n".join(parts)


def draw(content: dict[str, Any], image: Path) -> None:
    """Draws the time per token of each job against the length."""
    pyplot, figure, axes = panels(len(JOBS))
    for job, panel in zip(JOBS, axes, strict=True):
        for threads, line in zip(content["microseconds"], ("--", "-"), strict=False):
            by_length = content["microseconds"][threads]
            for name, color in zip(STACKS, ("C0", "C3"), strict=True):
                times = [by_length[n][job][name] for n in by_length]
                label = f"{name}, threads: {threads}"
                panel.plot([int(n) for n in by_length], times, line, marker="o", color=color, label=label)
        panel.set(title=job, xlabel="length", xscale="log", yscale="log", ylim=LIMITS)
        panel.set_xticks(content["setting"]["lengths"], [f"{n:,}" for n in content["setting"]["lengths"]])
        panel.set_yticks(TICKS, [str(each) for each in TICKS])
        panel.minorticks_off()
        panel.grid(axis="y", color="0.9")
    axes[0].set(ylabel="µs per token")
    axes[0].legend(frameon=False, fontsize="small")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallelism", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=Setting.rounds, help="(%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument(
        "--results", type=Path, help="JSON file, read and written (benchmarks/results/parallelism.json)"
    )
    parser.add_argument("--image", type=Path, help="PNG to draw (docs/images/parallelism.png)")
    parser.add_argument("--measure", nargs=2, metavar=("SETTING", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        setting = Setting(**json.loads(options.measure[0]))
        print(json.dumps(measure(setting, int(options.measure[1]))))
        return
    name = "parallelism-smoke" if options.smoke else "parallelism"
    setting = SMOKE if options.smoke else Setting(rounds=options.rounds)
    content = run(setting, options.results or RESULTS / f"{name}.json")
    print(tables(content))
    draw(content, options.image or IMAGE.with_stem(name))


if __name__ == "__main__":
    main()
