"""Table 1 of the paper, measured: operations, sequential steps, path lengths and time of four kinds of layer.

`python -m benchmarks.complexity` times the layers at lengths of 128 to 8,192, compiled, prints the exponents of length
and width that fit the times, and draws them; `--threads 1` uses one core. It saves after each part and resumes where it
stopped.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_attention as ka
from benchmarks.harness import RESULTS, measure_in_turn
from benchmarks.tools.parts import markdown, panels, resume, save

IMAGE = RESULTS.parent.parent / "docs" / "images" / "complexity.png"
ATTENTION, RESTRICTED, RECURRENT, CONVOLUTION = "self-attention", "restricted", "recurrent", "convolutional"
TABLE_1 = {ATTENTION: "n² · d", RESTRICTED: "r · n · d", RECURRENT: "n · d²", CONVOLUTION: "k · n · d²"}
MODES = ("forward", "gradients")
# float32 sums of many terms in another order.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    widths: tuple[int, ...] = (64, 128, 256)
    head_dim: int = 64
    window: int = 64
    kernel: int = 3
    # Lengths from which the exponents are fitted; the window saves time only where attention works in blocks.
    fit_from: int = 1024
    restricted_fit_from: int = 4096
    windows: tuple[int, ...] = (64, 128, 256, 512)
    kernels: tuple[int, ...] = (3, 7, 15)
    threads: int | None = None
    rounds: int = 3
    path_length: int = 33


SMOKE = Setting(
    lengths=(16, 32), widths=(8, 16), head_dim=8, window=4, fit_from=16, restricted_fit_from=16, windows=(2, 4),
    kernels=(3, 5), rounds=1, path_length=9,
)  # fmt: skip


def operations(kind: str, length: int, width: int, *, window: int = 0, kernel: int = 0) -> int:
    """Multiplications of the products of a layer, projections included, which table 1 leaves out.

    Attention has four projections, a GRU three gates with a kernel for the input and another for the state.
    """
    projections = 4 * length * width**2
    if kind == ATTENTION:
        return 2 * length**2 * width + projections
    if kind == RESTRICTED:
        return 2 * visible_pairs(length, window) * width + projections
    if kind == RECURRENT:
        return 6 * length * width**2
    return kernel * length * width**2


def visible_pairs(length: int, window: int) -> int:
    """Pairs of positions at a distance below the window."""
    window = min(window, length)
    return length * (2 * window - 1) - window * (window - 1)


def sequential_steps(kind: str, length: int) -> int:
    """Operations that wait for each other, those inside a product not counted."""
    return length if kind == RECURRENT else 1


def path_length(kind: str, length: int, *, window: int = 0, kernel: int = 0) -> int:
    """Steps from the first to the last position: layers, or steps of time of the recurrent layer."""
    distance = length - 1
    if kind == ATTENTION:
        return 1
    if kind == RECURRENT:
        return distance
    return math.ceil(distance / ((window if kind == RESTRICTED else kernel) - 1))


def build(kind: str, setting: Setting, width: int, *, window: int = 0, kernel: int = 0) -> keras.layers.Layer:
    """A layer, built for this width."""
    if kind in (ATTENTION, RESTRICTED):
        window = (window or setting.window) if kind == RESTRICTED else None
        layer = ka.MultiHeadSelfAttention(width // setting.head_dim, setting.head_dim, sliding_window=window)
    elif kind == RECURRENT:
        layer = keras.layers.GRU(width, return_sequences=True)
    else:
        layer = keras.layers.Conv1D(width, kernel or setting.kernel, padding="causal")
    layer.build((None, None, width))
    return layer


def compiled(kind: str, layer: keras.layers.Layer, mode: str, x: Any) -> Callable[[], Any]:
    """The layer, or the layer and its gradients, compiled for x (1, n, d) and called with it."""

    # XLA makes the steps of a long loop faster; the others are a few large operations, fast without it.
    @tf.function(jit_compile=kind == RECURRENT and x.shape[1] >= 64)
    def step(x: Any) -> list[Any]:
        if mode == "forward":
            return [layer(x)]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_mean(tf.square(y))
        return tape.gradient(loss, [x, *(variable.value for variable in layer.trainable_variables)])

    program = step.get_concrete_function(x)
    return lambda: program(x)[0].numpy()


def seconds(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each; short ones are repeated until a round takes 20 ms."""
    repeats = {}
    for name, step in steps.items():
        step()
        start = time.perf_counter()
        step()
        repeats[name] = min(100, math.ceil(0.02 / (time.perf_counter() - start)))

    def work(name: str) -> None:
        for _ in range(repeats[name]):
            steps[name]()

    measured = measure_in_turn({name: partial(work, name) for name in steps}, rounds, warmup=0)
    return {name: statistics.median(times) / repeats[name] for name, times in measured.items()}


def fits(step: Callable[[], Any]) -> bool:
    """Runs a step once; returns False if memory does not suffice for it."""
    try:
        step()
    except tf.errors.ResourceExhaustedError:
        return False
    return True


def sequence(length: int, width: int) -> Any:
    """A sequence (1, n, d)."""
    return tf.constant(np.random.default_rng(1).standard_normal((1, length, width)), "float32")


def assert_correct(setting: Setting) -> None:
    """Asserts that a window that covers all changes nothing, and that the blocks compute what the mask says."""
    width, short, long = setting.widths[0], setting.lengths[0], setting.restricted_fit_from
    full = build(ATTENTION, setting, width)
    covering, restricted = (build(RESTRICTED, setting, width, window=window) for window in (short, setting.window))
    for layer in (covering, restricted):
        layer.set_weights(full.get_weights())
    x = sequence(short, width)
    np.testing.assert_allclose(covering(x), full(x), rtol=0, atol=TOLERANCE)
    x = sequence(long, width)
    with_scores, _ = restricted(x, return_attention_scores=True)  # the scores of all pairs, masked
    np.testing.assert_allclose(restricted(x), with_scores, rtol=0, atol=TOLERANCE)


def measured_path_length(kind: str, setting: Setting) -> int:
    """Layers through which the first position reaches the last, by gradients; steps of time of the recurrent layer."""
    x, width = sequence(setting.path_length, setting.widths[0]), setting.widths[0]
    window, kernel = min(setting.window, 5), setting.kernel
    for depth in range(1, setting.path_length + 1):
        layers = [build(kind, setting, width, window=window, kernel=kernel) for _ in range(depth)]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for layer in layers:
                y = layer(y)
            last = tf.reduce_sum(y[:, -1])
        if np.abs(tape.gradient(last, x)[:, 0]).max() > 0:
            break
    expected = path_length(kind, setting.path_length, window=window, kernel=kernel)
    found = depth * (setting.path_length - 1) if kind == RECURRENT else depth
    if found != expected:
        raise AssertionError(f"{kind}: the path has {found} steps, not {expected}")
    return found


def exponents(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The exponents of length and width that fit value = c · lengthᵃ · widthᵇ, by least squares of the logarithms."""
    logs = np.log(points)
    columns = np.column_stack([np.ones(len(logs)), logs[:, :2]])
    _, of_length, of_width = np.linalg.lstsq(columns, logs[:, 2], rcond=None)[0]
    return float(of_length), float(of_width)


def run(setting: Setting, path: Path) -> dict[str, Any]:
    """Measures what the file does not have yet, and saves after each length and width."""
    content = resume(path, asdict(setting), paths={}, times={}, sizes={})
    if not content["paths"]:
        assert_correct(setting)
        content["paths"] = {kind: measured_path_length(kind, setting) for kind in TABLE_1}
        save(path, content)
    for width, length, mode in product(setting.widths, setting.lengths, MODES):
        name = f"{length} × {width}, {mode}"
        if name not in content["times"]:
            x = sequence(length, width)
            steps = {kind: compiled(kind, build(kind, setting, width), mode, x) for kind in TABLE_1}
            measured = seconds({kind: step for kind, step in steps.items() if fits(step)}, setting.rounds)
            content["times"][name] = {kind: measured.get(kind) for kind in TABLE_1}
            save(path, content)
            shown = ", ".join(f"{kind} {milliseconds(value)}" for kind, value in content["times"][name].items())
            print(f"{name}, milliseconds: {shown}", flush=True)
    if not content["sizes"]:
        length, width = setting.lengths[-1], setting.widths[0]
        layers = {f"r {size}": (RESTRICTED, {"window": size}) for size in setting.windows}
        layers |= {f"k {size}": (CONVOLUTION, {"kernel": size}) for size in setting.kernels}
        x = sequence(length, width)
        steps = {
            name: compiled(kind, build(kind, setting, width, **sizes), "forward", x)
            for name, (kind, sizes) in layers.items()
        }
        content["sizes"] = seconds(steps, setting.rounds)
        save(path, content)
    return content


def times_of(content: dict[str, Any], kind: str, mode: str) -> list[tuple[int, int, float]]:
    """Length, width and seconds of each measurement of a layer."""
    setting = content["setting"]
    points = [
        (length, width, content["times"][f"{length} × {width}, {mode}"][kind])
        for width in setting["widths"]
        for length in setting["lengths"]
    ]
    return [point for point in points if point[2] is not None]


def milliseconds(seconds: float | None) -> str:
    """The cell of a table; the memory did not suffice for None."""
    return "no memory" if seconds is None else f"{1000 * seconds:.3g}"


def fitted_exponents(content: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """The exponents of length and width of the operations and of the times, over the same points."""
    setting = content["setting"]
    result = {}
    for kind in TABLE_1:
        start = setting["restricted_fit_from" if kind == RESTRICTED else "fit_from"]
        points = {mode: [point for point in times_of(content, kind, mode) if point[0] >= start] for mode in MODES}
        sizes = {"window": setting["window"], "kernel": setting["kernel"]}
        points["operations"] = [(n, d, operations(kind, n, d, **sizes)) for n, d, _ in points["forward"]]
        result[kind] = {name: exponents(each) for name, each in points.items()}
    return result


def size_exponents(content: dict[str, Any]) -> dict[str, float]:
    """The exponents of the window r and of the kernel k."""
    result = {}
    for letter in ("r", "k"):
        of_letter = {name: value for name, value in content["sizes"].items() if name.startswith(letter)}
        sizes = [float(name.split()[1]) for name in of_letter]
        result[letter] = float(np.polyfit(np.log(sizes), np.log(list(of_letter.values())), 1)[0])
    return result


def tables(content: dict[str, Any]) -> str:
    """The results as Markdown: exponents, times of the widest layers, where attention is faster than recurrence."""
    setting = content["setting"]
    fitted, of_size = fitted_exponents(content), size_exponents(content)
    length, last = setting["path_length"], setting["lengths"][-1]

    def cells(kind: str, index: int) -> list[str]:
        return [f"{fitted[kind][name][index]:.2f}" for name in ("operations", *MODES)]

    rows = [
        (kind, formula, *cells(kind, 0), *cells(kind, 1), f"{sequential_steps(kind, last):,}", content["paths"][kind])
        for kind, formula in TABLE_1.items()
    ]
    heads = ("layer", "table 1", "n: operations", "forward", "with gradients", "d: operations", "forward",
             "with gradients", f"sequential steps, n = {last:,}", f"path, n = {length}")  # fmt: skip
    width = setting["widths"][-1]
    times = []
    for n in setting["lengths"]:
        of_length = [content["times"][f"{n} × {width}, {mode}"][kind] for mode in MODES for kind in TABLE_1]
        times.append((f"{n:,}", *map(milliseconds, of_length)))
    of_sizes = [(name, milliseconds(value)) for name, value in content["sizes"].items()]
    faster = [(f"d = {width}", *(faster_up_to(content, width, mode) for mode in MODES)) for width in setting["widths"]]
    return "\n\n".join(
        [
            markdown(heads, rows),
            f"exponent of r {of_size['r']:.2f}, of k {of_size['k']:.2f} (n = {last:,}, d = {setting['widths'][0]})",
            markdown((f"d = {width}, ms", *(f"{kind}, {mode}" for mode in MODES for kind in TABLE_1)), times),
            markdown(("window r or kernel k, forward", "ms"), of_sizes),
            markdown(("attention is faster than the GRU up to n =", *MODES), faster),
        ]
    )


def faster_up_to(content: dict[str, Any], width: int, mode: str) -> str:
    """The largest measured length up to which attention takes less time than the recurrent layer."""
    result = "none"
    for length in content["setting"]["lengths"]:
        times = content["times"][f"{length} × {width}, {mode}"]
        if times[RECURRENT] is not None and times[ATTENTION] >= times[RECURRENT]:
            return result
        result = f"{length:,}"
    return f"{result} (all)"


def draw(content: dict[str, Any], image: Path) -> None:
    """Draws operations, sequential steps and times against the length."""
    setting = content["setting"]
    pyplot, figure, (left, middle, right) = panels(3)
    lengths, width = np.array(setting["lengths"]), setting["widths"][len(setting["widths"]) // 2]
    sizes = {"window": setting["window"], "kernel": setting["kernel"]}
    for color, kind in zip(("C0", "C2", "C3", "C1"), TABLE_1, strict=True):
        counts = np.array([operations(kind, int(n), width, **sizes) for n in lengths])
        points = [(n, each) for n, d, each in times_of(content, kind, "gradients") if d == width]
        measured_lengths, measured = map(np.array, zip(*points, strict=True))
        line = "--" if kind in (RESTRICTED, CONVOLUTION) else "-"
        left.plot(lengths, counts, line, color=color, label=f"{kind}: {TABLE_1[kind]}", zorder=3 if line == "--" else 2)
        middle.plot(lengths, [sequential_steps(kind, int(n)) for n in lengths], line, color=color, label=kind)
        right.plot(measured_lengths, measured, "o", color=color, label=f"{kind}, measured")
        last = list(lengths).index(measured_lengths[-1])
        right.plot(lengths, counts * measured[-1] / counts[last], color=color, linewidth=1)
    left.set(title=f"multiplications, d = {width}", yscale="log")
    middle.set(title="sequential steps", yscale="log")
    right.set(title=f"seconds with gradients, d = {width}\nlines: operations, scaled to the last point", yscale="log")
    for axes in (left, middle, right):
        axes.set(xlabel="length n", xscale="log")
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=45)
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize="small")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.complexity", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="threads of TensorFlow (one for each core)")
    parser.add_argument("--rounds", type=int, default=Setting.rounds, help="(%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--results", type=Path, help="JSON file, read and written (benchmarks/results/complexity.json)")
    parser.add_argument("--image", type=Path, help="PNG to draw (docs/images/complexity.png)")
    options = parser.parse_args(arguments)
    if options.threads is not None:  # before the first operation
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    setting = SMOKE if options.smoke else Setting(threads=options.threads, rounds=options.rounds)
    suffix = "-smoke" if options.smoke else "" if options.threads is None else f"-{options.threads}-thread"
    content = run(setting, options.results or RESULTS / f"complexity{suffix}.json")
    print(tables(content))
    draw(content, options.image or IMAGE.with_stem(f"complexity{suffix}"))


if __name__ == "__main__":
    main()
