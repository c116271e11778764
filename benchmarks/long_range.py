"""Recall over a distance: accuracy and gradients of a Transformer, of windows in it, and of a GRU of equal size.

`python -m benchmarks.long_range` trains, prints and draws everything, in about ten minutes on two cores. It saves after
each part and resumes where it stopped; `--smoke` is a form of a few seconds.

A sequence starts with one of 8 symbols, noise of 8 other tokens follows, and at the end a query asks for the symbol.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_attention as ka
from benchmarks.harness import RESULTS
from benchmarks.tools.parts import markdown, panels, resume, save

IMAGE = RESULTS.parent.parent / "docs" / "images" / "long_range.png"
SYMBOLS, NOISE = 8, 8
QUERY = SYMBOLS + NOISE
FULL, GRU = "Transformer", "GRU"
LEARNED = 0.99  # accuracy of the last training batches at which a training stops


@dataclass(frozen=True)
class Setting:
    """Sizes of the models and of the experiment."""

    distances: tuple[int, ...] = (4, 16, 64, 128, 256, 1024)
    windows: tuple[int, ...] = (4, 16, 64)
    width: int = 32
    num_layers: int = 2
    units: int = 60
    steps: int = 400
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    tuning_distance: int = 16
    stacked_window: int = 16
    stacks: tuple[int, ...] = (1, 2, 3)
    stacked_distances: tuple[int, ...] = (14, 28, 42, 56)
    test_sequences: int = 512
    seed: int = 1

    def batch_size(self, distance: int) -> int:
        """64 sequences, fewer of long ones."""
        return min(64, max(4, 4096 // distance))

    def most_steps(self, distance: int) -> int:
        """A quarter for the longest sequences, whose steps take most of the time."""
        return self.steps if distance <= 256 else self.steps // 4

    def tests(self, distance: int) -> int:
        """Sequences of a test, fewer long ones."""
        return min(self.test_sequences, 131_072 // distance)

    def models(self) -> dict[str, int | None]:
        """Names of the models and their windows."""
        return {FULL: None, GRU: None} | {f"window {window}": window for window in self.windows}


SMOKE = Setting(
    distances=(2, 9), windows=(3,), width=16, units=19, num_layers=1, steps=120, rates=(0.01,), stacked_window=3,
    stacks=(2,), stacked_distances=(4,), test_sequences=128,
)  # fmt: skip


def sequences(distance: int, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (count, distance + 1), whose last is the query, and the symbols that they start with (count,)."""
    ids = random.integers(SYMBOLS, SYMBOLS + NOISE, (count, distance + 1))
    labels = random.integers(0, SYMBOLS, count)
    ids[:, 0], ids[:, -1] = labels, QUERY
    return ids.astype("int32"), labels.astype("int32")


def reach(window: int, num_layers: int) -> int:
    """The longest distance over which layers of attention with a sliding window carry anything."""
    return num_layers * (window - 1)


def build_transformer(setting: Setting, window: int | None = None, num_layers: int | None = None) -> keras.Sequential:
    """Embedding and, as the second layer, pre-norm decoder layers whose last position gives the logits."""
    embedded = keras.Input((None, setting.width))  # (B, T, M)
    x = ka.PositionalEncoding()(embedded)
    small = ka.layers.ResidualBranchInitializer()
    for _ in range(num_layers or setting.num_layers):
        attention = ka.MultiHeadSelfAttention(num_heads=2, sliding_window=window, kernel_initializer=small)
        x = x + attention(keras.layers.LayerNormalization()(x), use_causal_mask=True)
        x = x + ka.FeedForward(2 * setting.width, kernel_initializer=small)(keras.layers.LayerNormalization()(x))
    x = keras.layers.LayerNormalization()(x)[:, -1]  # (B, M)
    body = keras.Model(embedded, keras.layers.Dense(SYMBOLS)(x))  # (B, symbols)
    return keras.Sequential([ka.TokenEmbedding(QUERY + 1, setting.width), body])


def build_gru(setting: Setting) -> keras.Sequential:
    """Embedding and, as the second layer, a GRU whose last state gives the logits."""
    embedded = keras.Input((None, setting.width))
    x = keras.layers.Rescaling(setting.width**0.5)(embedded)  # as PositionalEncoding scales
    body = keras.Model(embedded, keras.layers.Dense(SYMBOLS)(keras.layers.GRU(setting.units)(x)))
    return keras.Sequential([ka.TokenEmbedding(QUERY + 1, setting.width), body])


def build(setting: Setting, name: str, num_layers: int | None = None) -> keras.Sequential:
    """A new model, from the setting's seed."""
    keras.utils.set_random_seed(setting.seed)
    window = setting.models().get(name, setting.stacked_window)
    model = build_gru(setting) if name == GRU else build_transformer(setting, window, num_layers)
    model.build((None, None))
    return model


def gradient_norm(model: keras.Sequential, distance: int, setting: Setting) -> float:
    """Mean norm of the gradient of the right answer's logit with respect to the embedded symbol."""
    count = min(16, setting.batch_size(distance))
    ids, labels = sequences(distance, count, np.random.default_rng(setting.seed + 2))
    embedding, body = model.layers
    embedded = embedding(ids)  # (B, T, M)
    with tf.GradientTape() as tape:
        tape.watch(embedded)
        logits = body(embedded, training=False)
        answers = tf.gather(logits - tf.reduce_mean(logits, -1, keepdims=True), labels, batch_dims=1)
    gradients = tape.gradient(answers, embedded)[:, 0]  # (B, M)
    return float(np.linalg.norm(gradients.numpy(), axis=-1).mean())


def train(model: keras.Sequential, distance: int, rate: float, setting: Setting) -> dict[str, float]:
    """Trains until the task is learned, at most the setting's steps, and tests on new sequences."""
    random = np.random.default_rng([setting.seed, distance])
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=1.0)
    optimizer.build(model.trainable_variables)
    is_recurrent = any(isinstance(layer, keras.layers.GRU) for layer in model.layers[1].layers)

    # XLA makes the steps of a loop faster; elsewhere its compilation would take longer than it saves.
    @tf.function(jit_compile=is_recurrent and distance >= 64)
    def step(ids: Any, labels: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            logits = model(ids, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)
        return loss, tf.reduce_mean(tf.cast(tf.argmax(logits, -1, tf.int32) == labels, "float32"))

    start, losses, hits, done = time.perf_counter(), [], [], 0
    most = setting.most_steps(distance)
    for done in range(1, most + 1):
        loss, hit = step(*sequences(distance, setting.batch_size(distance), random))
        losses.append(float(loss))
        hits.append(float(hit))
        if done >= 20 and np.mean(hits[-20:]) >= LEARNED:
            break
    # A training that stops early would have gone on at its last loss.
    area = (sum(losses) + losses[-1] * (most - done)) / most
    seconds = round(time.perf_counter() - start, 1)
    return {"accuracy": test(model, distance, setting), "steps": done, "mean_loss": area, "seconds": seconds}


def test(model: keras.Sequential, distance: int, setting: Setting) -> float:
    """Accuracy on sequences of another seed."""
    ids, labels = sequences(distance, setting.tests(distance), np.random.default_rng([setting.seed, distance, 1]))
    predict = tf.function(lambda ids: tf.argmax(model(ids, training=False), -1), reduce_retracing=True)
    size = setting.batch_size(distance)
    hits = [predict(ids[i : i + size]).numpy() == labels[i : i + size] for i in range(0, len(ids), size)]
    return float(np.mean(np.concatenate(hits)))


def train_within_reach(
    model: keras.Sequential, distance: int, rate: float, setting: Setting, window: int | None, num_layers: int
) -> dict[str, Any]:
    """`train`, unless no window reaches that far: the gradient is then exactly 0, and no training can help."""
    if window is None or distance <= reach(window, num_layers):
        return train(model, distance, rate, setting)
    if (norm := gradient_norm(model, distance, setting)) != 0:
        raise AssertionError(f"{num_layers} layers with window {window} see further than their reach: {norm}")
    return {"accuracy": test(model, distance, setting), "steps": 0, "beyond_reach": True}


def tune(setting: Setting) -> dict[str, dict[str, float]]:
    """The mean loss of a training from scratch at each learning rate, of the Transformer and of the GRU."""
    return {
        name: {
            str(rate): train(build(setting, name), setting.tuning_distance, rate, setting)["mean_loss"]
            for rate in setting.rates
        }
        for name in (FULL, GRU)
    }


def best_rate(setting: Setting, losses: dict[str, dict[str, float]], name: str) -> float:
    """The rate with the lowest mean loss; the windows take that of the Transformer."""
    of_model = losses.get(name if name == GRU else FULL, {})
    return float(min(of_model, key=of_model.get, default=setting.rates[0]))


def learn(name: str, rate: float, setting: Setting) -> dict[str, Any]:
    """One model from distance to distance, each training starting from the weights of the one before."""
    model = build(setting, name)
    result: dict[str, Any] = {"parameters": model.count_params(), "rate": rate, "distances": {}}
    untrained = model.get_weights()
    weights = untrained
    for distance in setting.distances:
        model.set_weights(untrained)
        before = gradient_norm(model, distance, setting)
        model.set_weights(weights)
        outcome = train_within_reach(model, distance, rate, setting, setting.models()[name], setting.num_layers)
        weights = model.get_weights()
        after = gradient_norm(model, distance, setting)
        result["distances"][str(distance)] = outcome | {"gradient_untrained": before, "gradient_trained": after}
        report(name, distance, outcome)
    return result


def learn_from_scratch(name: str, rate: float, setting: Setting) -> dict[str, Any]:
    """One model for each distance but the first, each from its own start."""
    outcomes = {}
    for distance in setting.distances[1:]:
        outcomes[str(distance)] = train(build(setting, name), distance, rate, setting)
        report(f"{name} from scratch", distance, outcomes[str(distance)])
    return outcomes


def learn_stack(num_layers: int, rate: float, setting: Setting) -> dict[str, Any]:
    """A number of layers with a window, from distance to distance."""
    window = setting.stacked_window
    model = build(setting, "stack", num_layers)
    result: dict[str, Any] = {"reach": reach(window, num_layers), "distances": {}}
    for distance in setting.stacked_distances:
        outcome = train_within_reach(model, distance, rate, setting, window, num_layers)
        result["distances"][str(distance)] = outcome
        report(f"{num_layers} layers with window {window}", distance, outcome)
    return result


def report(name: str, distance: int, outcome: dict[str, Any]) -> None:
    """Prints a line of progress."""
    print(f"{name}, distance {distance}: {outcome['accuracy']:.1%} after {outcome['steps']} steps", flush=True)


def tables(content: dict[str, Any]) -> str:
    """The results as Markdown: accuracy by distance, gradients by distance, layers of a window."""
    models, distances = content["models"], [str(each) for each in content["setting"]["distances"]]

    def accuracy(outcome: dict[str, Any]) -> str:
        return f"{outcome['accuracy']:.1%}" + (" (beyond reach)" if "beyond_reach" in outcome else "")

    accuracies = {
        f"{name} ({model['parameters']:,} parameters)": [accuracy(model["distances"][each]) for each in distances]
        for name, model in models.items()
    } | {
        f"{name}, from scratch": [accuracy(outcomes[each]) if each in outcomes else "" for each in distances]
        for name, outcomes in content["from_scratch"].items()
    }
    gradients = {
        f"{name}, {state}": [f"{model['distances'][each][f'gradient_{state}']:.1e}" for each in distances]
        for name, model in models.items()
        for state in ("untrained", "trained")
    }
    stacks = {
        f"{number} (reach {stack['reach']})": [accuracy(outcome) for outcome in stack["distances"].values()]
        for number, stack in content["stacks"].items()
    }
    stacked = [str(each) for each in content["setting"]["stacked_distances"]]
    parts = (
        ("accuracy at distance", distances, accuracies),
        ("gradient at distance", distances, gradients),
        (f"layers with window {content['setting']['stacked_window']}, accuracy at distance", stacked, stacks),
    )
    return "\n\n".join(
        markdown((corner, *columns), [(name, *cells) for name, cells in rows.items()])
        for corner, columns, rows in parts
    )


def draw(content: dict[str, Any], image: Path) -> None:
    """Draws accuracy and gradients by distance, and the accuracy by layers of a window."""
    pyplot, figure, (left, middle, right) = panels(3)
    for (name, model), color, marker in zip(
        content["models"].items(), ("C0", "C3", "C7", "C8", "C2"), "osv^D", strict=False
    ):
        distances = [int(each) for each in model["distances"]]
        outcomes = list(model["distances"].values())
        style = {"color": color, "marker": marker}
        left.plot(distances, [outcome["accuracy"] for outcome in outcomes], **style, label=name)
        if scratch := content["from_scratch"].get(name):
            values = [outcomes[0]["accuracy"], *(outcome["accuracy"] for outcome in scratch.values())]
            left.plot(distances, values, "--", **style, label=f"{name}, from scratch")
        for state, line in (("untrained", "--"), ("trained", "-")):
            # A gradient of 0, or of less than float32 holds, has no place on a logarithmic axis.
            norms = [outcome[f"gradient_{state}"] or math.nan for outcome in outcomes]
            label = f"{name}, {state}" if name in (FULL, GRU) else None
            middle.plot(distances, norms, line, **style, label=label, alpha=1 if label else 0.4)
    left.axhline(1 / SYMBOLS, color="0.6", linestyle=":")
    left.set(title="accuracy", xlabel="distance", xscale="log", ylim=(0, 1.05))
    middle.set(title="gradient of the answer at the symbol", xlabel="distance", xscale="log", yscale="log")
    stacks, setting = content["stacks"], content["setting"]
    grid = [[outcome["accuracy"] for outcome in stack["distances"].values()] for stack in stacks.values()]
    right.imshow(grid, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            right.text(column, row, f"{value:.0%}", ha="center", va="center")
    right.set(title=f"accuracy of layers with window {setting['stacked_window']}", xlabel="distance")
    right.set_xticks(range(len(setting["stacked_distances"])), setting["stacked_distances"])
    right.set_yticks(range(len(stacks)), [f"{number} (reach {stack['reach']})" for number, stack in stacks.items()])
    right.set(ylabel="layers")
    for axes in (left, middle):
        axes.set_xticks(setting["distances"], setting["distances"])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize="small")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=120)
    pyplot.close(figure)


def run(setting: Setting, path: Path) -> dict[str, Any]:
    """Runs the parts that the file does not have yet, and saves after each."""
    content = resume(path, asdict(setting), mean_loss_by_rate={}, models={}, from_scratch={}, stacks={})
    if not content["mean_loss_by_rate"] and len(setting.rates) > 1:
        content["mean_loss_by_rate"] = tune(setting)
        save(path, content)
        print("mean loss by learning rate:", content["mean_loss_by_rate"], flush=True)
    rate = {name: best_rate(setting, content["mean_loss_by_rate"], name) for name in setting.models()}
    parts = [
        *(("models", name, partial(learn, name, rate[name])) for name in setting.models()),
        *(("from_scratch", name, partial(learn_from_scratch, name, rate[name])) for name in (FULL, GRU)),
        *(("stacks", str(number), partial(learn_stack, number, rate[FULL])) for number in setting.stacks),
    ]
    for kind, name, part in parts:
        if name not in content[kind]:
            content[kind][name] = part(setting)
            save(path, content)
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_range", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--results", type=Path, help="JSON file, read and written (benchmarks/results/long_range.json)")
    parser.add_argument("--image", type=Path, help="PNG to draw (docs/images/long_range.png)")
    options = parser.parse_args(arguments)
    name = "long_range-smoke" if options.smoke else "long_range"
    content = run(SMOKE if options.smoke else Setting(), options.results or RESULTS / f"{name}.json")
    print(tables(content))
    draw(content, options.image or IMAGE.with_stem(name))


if __name__ == "__main__":
    main()
