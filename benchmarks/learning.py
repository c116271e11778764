"""How fast post-norm models learn from where they start: perplexity of unseen text after some steps.

`python -m benchmarks.learning train.en train.de dev.en dev.de` trains each curve on the same batches, with Adam and the
paper's schedule, and draws the curves. A curve is an initialization of `TransformerConfig`, "torch" for
`torch.nn.Transformer`, a method of `benchmarks.tools.residual_branches`, or gains on Glorot's kernels, such as
"query,key,value=0.2;output=0.5".
"""

import argparse
import json
import math
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, machine
from benchmarks.peers.side import LABEL_SMOOTHING, Task

CURVES = ("residual_branch", "glorot", "torch")
IMAGE = RESULTS.parent.parent / "docs" / "images" / "learning.png"


@dataclass(frozen=True)
class Setting:
    """What every curve shares."""

    tokenizer: str
    texts: tuple[str, str, str, str]
    task: Task
    pairs: int
    marks: tuple[int, ...]
    seed: int
    threads: int
    normalize_first: bool
    optimizer: str

    def batches(self) -> tuple[Iterator[Any], list[Any]]:
        """The batches of training, epoch after epoch, and those of the unseen text."""
        from keras_attention.text import ParallelCorpus, SubwordTokenizer, TokenBatches

        tokenizer = SubwordTokenizer.load(self.tokenizer)
        train, valid = ParallelCorpus(*self.texts[:2]), ParallelCorpus(*self.texts[2:])
        pairs = train.sample(min(self.pairs, len(train)), seed=1)
        size = {"tokens_per_batch": self.task.tokens_per_batch}
        batches = TokenBatches.from_pairs(pairs, tokenizer, **size, seed=self.seed)
        unseen = TokenBatches.from_pairs(valid.pairs, tokenizer, **size, shuffle=False)
        return (
            (batches.batch(index) for epoch in range(10**6) for index in batches.plan(epoch)),
            [unseen.batch(index) for index in unseen.plan(0)],
        )


def perplexities(
    setting: Setting, step: Callable[[Any], None], log_likelihood: Callable[[Any], float]
) -> dict[int, float]:
    """Trains by `step` and returns the perplexity of the unseen text at each mark."""
    training, unseen = setting.batches()
    tokens = sum(int(np.count_nonzero(labels)) for _, labels in unseen)
    curve = {}
    for done, batch in enumerate(training, start=1):
        step(batch)
        if done in setting.marks:
            curve[done] = math.exp(-sum(map(log_likelihood, unseen)) / tokens)
        if done == max(setting.marks):
            return curve
    raise AssertionError("the batches have no end")


def learn_ours(setting: Setting, curve: str) -> dict[int, float]:
    """The curve of this library's Transformer."""
    import keras

    import keras_attention as ka
    from benchmarks.tools.residual_branches import METHODS, residual_branches
    from keras_attention.layers.initializers import INITIALIZATIONS

    keras.utils.set_random_seed(setting.seed)
    keras.config.set_dtype_policy(setting.task.dtype)
    names = ("vocabulary_size", "num_layers", "hidden_dim", "intermediate_dim", "num_heads", "dropout")
    config = ka.TransformerConfig(
        **{name: getattr(setting.task, name) for name in names},
        normalize_first=setting.normalize_first,
        initialization=curve if curve in INITIALIZATIONS else "glorot",
    )
    if curve in METHODS:
        branches = residual_branches(curve, config)
    else:
        branches = nullcontext(partial(scale_kernels, gains={} if curve in INITIALIZATIONS else gains_of(curve)))
    with branches as start:
        model = ka.Transformer(config)
        start(model, next(setting.batches()[0])[0])
        return train_ours(model, setting)


def train_ours(model: Any, setting: Setting) -> dict[int, float]:
    """The curve of a model that has its weights."""
    import tensorflow as tf

    from keras_attention.training import ChunkedTrainer
    from keras_attention.training.presets import OPTIMIZERS

    trainer = ChunkedTrainer(model, label_smoothing=LABEL_SMOOTHING)
    make_optimizer = OPTIMIZERS[setting.optimizer]
    trainer.compile(make_optimizer(model.config, setting.task.warmup_steps, setting.task.learning_rate_scale))

    @tf.function(reduce_retracing=True)
    def log_likelihood(inputs: Any, labels: Any) -> Any:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(inputs, training=False))
        return -tf.reduce_sum(tf.where(labels == 0, 0.0, losses))

    return perplexities(
        setting, lambda batch: trainer.train_on_batch(*batch), lambda batch: float(log_likelihood(*batch))
    )


def gains_of(curve: str) -> dict[str, float]:
    """The gains of "query,key=0.2;output=0.5", by the name of the kernel."""
    parts = [part.partition("=") for part in curve.split(";")]
    return {name: float(gain) for names, _, gain in parts for name in names.split(",")}


def scale_kernels(model: Any, inputs: Any, gains: dict[str, float]) -> None:
    """Multiplies the kernels of these names. No inputs are measured."""
    unused = set(gains)
    for weight in model.trainable_weights:
        *_, layer, name = weight.path.split("/")
        if name == "kernel" and layer in gains:
            weight.assign(weight * gains[layer])
            unused.discard(layer)
    if unused:
        raise SystemExit(f"no kernel is called {', '.join(sorted(unused))}")


def learn_torch(setting: Setting) -> dict[int, float]:
    """The curve of `torch.nn.Transformer`, initialized as its `_reset_parameters` does."""
    import torch
    from torch import nn

    from benchmarks.peers.torch_transformer import Translator

    torch.set_num_threads(setting.threads)
    torch.manual_seed(setting.seed)
    model = Translator(setting.task).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: setting.task.learning_rate(done + 1))

    def loss_of(batch: Any, **options: Any) -> Any:
        inputs, labels = batch
        source, target, labels = (
            torch.from_numpy(ids.astype("int64")) for ids in (inputs["source"], inputs["target"], labels)
        )
        logits = model(source, target).flatten(0, 1)
        return nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=0, **options)

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        loss_of(batch, label_smoothing=LABEL_SMOOTHING).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as `paper_optimizer` does
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def log_likelihood(batch: Any) -> float:
        model.eval()
        loss = float(loss_of(batch, reduction="sum"))
        model.train()
        return -loss

    return perplexities(setting, step, log_likelihood)


def learn(curve: str, setting: Setting) -> tuple[str, dict[int, float]]:
    """One curve, in a process of its own."""
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(setting.threads)  # before TensorFlow is imported
    return curve, learn_torch(setting) if curve == "torch" else learn_ours(setting, curve)


def draw(content: dict[str, Any], image: Path) -> None:
    """Draws the curves of a result."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, curve in content["perplexity"].items():
        axes.plot([int(step) for step in curve], list(curve.values()), marker="o", label=name)
    axes.set(xlabel="steps", ylabel="perplexity of unseen text", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=130)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parser().parse_args(arguments)
    marks = tuple(sorted({*range(options.every, options.steps + 1, options.every), options.steps}))
    scale = options.rate * options.hidden_dim**0.5 * options.warmup_steps**0.5
    with tempfile.TemporaryDirectory() as folder:
        from keras_attention.text import SubwordTokenizer

        tokenizer = SubwordTokenizer.train(options.texts[:2], options.vocabulary_size)
        tokenizer.save(f"{folder}/tokenizer.model")
        names = ("num_layers", "hidden_dim", "intermediate_dim", "num_heads", "dropout", "warmup_steps", "dtype")
        task = Task(
            "",
            vocabulary_size=tokenizer.vocabulary_size,
            tokens_per_batch=options.tokens_per_batch,
            learning_rate_scale=scale,
            **{name: getattr(options, name) for name in names},
        )
        setting = Setting(
            f"{folder}/tokenizer.model", tuple(options.texts), task, options.pairs, marks, options.seed,
            options.threads, options.normalize_first, options.optimizer,
        )  # fmt: skip
        content = {
            "benchmark": options.name, "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(),
            "texts": [Path(text).name for text in options.texts], "pairs": options.pairs, "seed": options.seed,
            "optimizer": options.optimizer, "normalize_first": options.normalize_first, "task": asdict(task),
            "perplexity": {},
        }  # fmt: skip
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.processes, mp_context=spawn, max_tasks_per_child=1) as pool:
            for curve, values in pool.map(partial(learn, setting=setting), options.curves):
                print(
                    f"{curve}: " + ", ".join(f"{value:.1f} at {step:,}" for step, value in values.items()), flush=True
                )
                content["perplexity"][curve] = values
                (RESULTS / f"{options.name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if options.image is not None:
        draw(content, Path(options.image))


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs=4, metavar="text", help="training source and target, unseen source and target")
    parser.add_argument("--curves", nargs="+", default=CURVES, help="(%(default)s)")
    parser.add_argument("--name", default="learning", help="name of the JSON file in benchmarks/results (%(default)s)")
    parser.add_argument("--image", help=f"PNG to draw, such as {IMAGE.relative_to(IMAGE.parent.parent.parent)}")
    parser.add_argument("--pairs", type=int, default=29_000, help="of the training text (%(default)s)")
    parser.add_argument("--steps", type=int, default=700, help="(%(default)s)")
    parser.add_argument("--every", type=int, default=100, help="steps between two points (%(default)s)")
    parser.add_argument("--vocabulary-size", type=int, default=9_700, help="(%(default)s)")
    parser.add_argument("--num-layers", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--hidden-dim", type=int, default=128, help="(%(default)s)")
    parser.add_argument("--intermediate-dim", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--num-heads", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--dropout", type=float, default=0.3, help="(%(default)s)")
    parser.add_argument("--normalize-first", action="store_true", help="pre-norm (not for torch)")
    parser.add_argument("--tokens-per-batch", type=int, default=2_048, help="(%(default)s)")
    parser.add_argument("--dtype", default="float32", help="(%(default)s)")
    parser.add_argument("--optimizer", default="adam", choices=("adam", "muon"), help="of ours (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.005, help="highest learning rate (%(default)s)")
    parser.add_argument("--warmup-steps", type=int, default=2_000, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="curves at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each process (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
