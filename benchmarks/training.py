"""Training against peers: useful tokens per second of `fit`, memory, time to the first step, share of the matrix rate.

`python -m benchmarks.training --help` lists the options: text files instead of sampled sentences, workloads,
sides, OpenNMT-tf. Each side is a process of its own; variables such as glibc's MALLOC_ reach all of them.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.peers.opennmt import check as check_opennmt
from benchmarks.peers.side import Task
from benchmarks.tools.agreement import assert_same_function, assert_same_work
from benchmarks.tools.rates import Rates
from benchmarks.tools.sentences import Sentences
from benchmarks.tools.turns import in_turn, run_side

ROUNDS = 3
TOKENS, SENTENCES = 4096, 64
DRAWN_PAIRS = 40_000
OURS, CEILING = "keras_attention", "matrix product"


@dataclass(frozen=True)
class Side:
    """One side: its module, how it cuts its batches, its options."""

    module: str
    by_tokens: bool = False
    options: dict = field(default_factory=dict)


SIDES = {
    OURS: Side("ours", by_tokens=True),
    # Keras' default compiles with XLA anew for each shape of a batch: it is measured where it is asked for.
    "kerashub": Side("kerashub_layers", options={"jit_compile": False}),
    "kerashub-default": Side("kerashub_layers"),
    "keras": Side("keras_layers", options={"jit_compile": False}),
    "keras-our-batches": Side("keras_layers", by_tokens=True, options={"jit_compile": False}),
    "torch": Side("torch_transformer", by_tokens=True),
    "opennmt-tf": Side("opennmt", by_tokens=True),
    "keras_attention-remat": Side("ours", by_tokens=True, options={"remat": True}),
}


@dataclass(frozen=True)
class Workload:
    """What is trained, on which sides, in batches of how many tokens a side."""

    title: str
    changes: dict
    sides: tuple[str, ...]
    tokens: int = TOKENS
    sentences: int = SENTENCES


BASE = {"hidden_dim": 512, "intermediate_dim": 2048, "num_heads": 8}
MIXED = {"dtype": "mixed_bfloat16"}
PEERS = ("kerashub", "keras", "keras-our-batches", "torch")
WORKLOADS = {
    "small": Workload("3 + 3 layers of 256, float32", {}, (OURS, *PEERS, "opennmt-tf")),
    "small-bfloat16": Workload("3 + 3 layers of 256, mixed bfloat16", MIXED, (OURS, *PEERS)),
    "base": Workload("2 + 2 layers of 512, float32", {**BASE, "num_layers": 2}, (OURS, "torch")),
    "base-bfloat16": Workload("2 + 2 layers of 512, mixed bfloat16", {**BASE, **MIXED, "num_layers": 2}, (OURS,)),
}
# Each option of `TransformerConfig` that trades time for memory is a side of its own here.
LARGE = Workload(
    "preset base, 25,000 tokens a side",
    {**BASE, "num_layers": 6, "vocabulary_size": 37_000},
    (OURS, "keras_attention-remat"),
    tokens=25_000,
)


def run(rounds: int = ROUNDS) -> Iterator[Rates]:
    """Measures every workload on sampled sentences, without OpenNMT-tf."""
    return measure(parser().parse_args(["--rounds", str(rounds)]), Console())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    console = Console()
    for rates in measure(parser().parse_args(arguments), console):
        rates.show(console)
        console.print(f"written: {rates.save().name}")


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", metavar="workload", help=f"of: {', '.join(WORKLOADS)}; all by default")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="sides to run instead of those of the workload")
    parser.add_argument("--source", help="text to translate from; with --target instead of sampled sentences")
    parser.add_argument("--target", help="its translations, line by line")
    parser.add_argument("--tokenizer", help="SentencePiece model; by default one is trained from the texts")
    parser.add_argument("--opennmt-python", metavar="PATH", help="Python of an environment that has OpenNMT-tf 2.32")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each workload (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="on the clock (%(default)s)")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the clock starts (%(default)s)")
    parser.add_argument(
        "--large", action="store_true", help=f"runs only our side, instead of the workloads: {LARGE.title}"
    )
    return parser


def measure(options: argparse.Namespace, console: Console) -> Iterator[Rates]:
    """Checks that the sides agree, then measures one workload after the other."""
    workloads = {"large": LARGE} if options.large else WORKLOADS
    names = list(workloads) if options.large else options.workloads or list(workloads)
    unknown = sorted(set(names) - set(workloads))
    if unknown:
        raise SystemExit(f"no workload is called {', '.join(unknown)}; there are: {', '.join(workloads)}")
    console.print(f"the same weights give our loss: {', '.join(assert_same_function(Task('')))}")
    pairs, text = _pairs(options)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            task = Task("", warmup=options.warmup, steps=options.steps, **workloads[name].changes)
            sides = processes(task, workloads[name], pairs, Path(folder), options, console)
            measured = in_turn(sides, options.rounds, console.print)
        ceilings = measured.pop(CEILING)
        assert_same_work(task, measured)
        yield Rates(f"training-{name}", workloads[name].title, text, task, measured, ceilings)


def _pairs(options: argparse.Namespace) -> tuple[Sentences, str]:
    """The sentences, and what they are."""
    if options.source is None or options.target is None:
        return Sentences.drawn(DRAWN_PAIRS, Task("").vocabulary_size), "drawn, as long as Tatoeba's"
    from keras_attention.text import ParallelCorpus, SubwordTokenizer

    files = [options.source, options.target]
    if options.tokenizer is None:
        tokenizer = SubwordTokenizer.train(files, Task("").vocabulary_size)
    else:
        tokenizer = SubwordTokenizer.load(options.tokenizer)
    pairs = ParallelCorpus(*files).pairs
    source, target = (tokenizer.encode(list(texts)) for texts in zip(*pairs, strict=True))
    return Sentences.of(source, target), " and ".join(Path(file).name for file in files)


def processes(
    task: Task, workload: Workload, pairs: Sentences, folder: Path, options: argparse.Namespace, console: Console
) -> dict[str, Callable[[], dict]]:
    """What runs each side of a workload, the machine's own rate among them."""
    processes: dict[str, Callable[[], dict]] = {}
    for name in options.sides or workload.sides:
        side = SIDES[name]
        own = replace(task, options=side.options, tokens_per_batch=workload.tokens if side.by_tokens else 0)
        if side.module == "opennmt":
            if options.opennmt_python is None:
                console.print("opennmt-tf is left out: name its Python with --opennmt-python")
                continue
            check_opennmt(task)  # before any side has run
            own = replace(own, options={"python": options.opennmt_python})
        file = folder / f"{'tokens' if side.by_tokens else 'sentences'}.npz"
        if not file.exists():
            pairs.with_batches(_batches(own, workload, pairs)).save(file)
        processes[name] = partial(run_side, f"benchmarks.peers.{side.module}", replace(own, sentences=str(file)))
    return {**processes, CEILING: partial(run_side, "benchmarks.tools.ceiling")}


def _batches(task: Task, workload: Workload, pairs: Sentences) -> list:
    from benchmarks.peers.ours import first_batches, token_batches

    if task.tokens_per_batch:
        return first_batches(token_batches(pairs, task.tokens_per_batch), task.warmup + task.steps)
    return pairs.random_batches(workload.sentences, task.warmup + task.steps)


if __name__ == "__main__":
    main()
