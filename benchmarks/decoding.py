"""Decoding against peers: seconds and memory for the same weights in CTranslate2 and KerasHub, and their agreement.

`python -m benchmarks.decoding --help` lists the options, such as a training run and a file instead of random weights
and ids. Each side is a process of its own, which waits while the others run.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console

from benchmarks.harness import RESULTS, Case
from benchmarks.peers.decoding import DecodingTask
from benchmarks.tools.decoding_files import Sizes, write_random, write_run
from benchmarks.tools.serving_c import measure_program
from benchmarks.tools.speeds import Speeds, share_of_equal, time_over
from benchmarks.tools.translating import Translation
from benchmarks.tools.turns import in_turn
from benchmarks.tools.workers import Worker, lines_of, plain_copy

ROUNDS = 5
GREEDY, BEAM = 1, 4
# Of the float32 sides' hypotheses, from random weights, whose tokens are often nearly as likely as each other.
LEAST_SAME = 0.9


@dataclass(frozen=True)
class Side:
    """One side: its module and its options."""

    module: str
    options: dict = field(default_factory=dict)


OURS, EXACT, KERASHUB = "keras_attention", "ctranslate2", "kerashub"
SIDES = {
    OURS: Side("decoding_ours"),
    "keras_attention-bfloat16": Side("decoding_ours", {"weights": "bfloat16"}),
    "keras_attention-x86-bfloat16": Side("decoding_ours", {"weights": "bfloat16", "runtime": "x86"}),
    "keras_attention-x86-int8": Side("decoding_ours", {"weights": "int8", "runtime": "x86"}),
    EXACT: Side("decoding_ctranslate2", {"weights": "float32"}),
    "ctranslate2-int8": Side("decoding_ctranslate2", {"weights": "int8"}),
    # Compiled by XLA, which is Keras' default: without, its beam search takes several times as long.
    KERASHUB: Side("decoding_kerashub", {"jit_compile": True}),
}


@dataclass(frozen=True)
class Workload:
    """Sizes of a model with random weights and of its batch; one sentence is also decoded by itself."""

    sizes: Sizes
    sentences: int
    tokens_in: int
    tokens_out: int


BASE = Workload(Sizes(6, 512, 2048, 8, 8000), sentences=32, tokens_in=24, tokens_out=32)
SMALL = Workload(Sizes(2, 24, 46, 3, 97), sentences=5, tokens_in=7, tokens_out=11)


def run(rounds: int = ROUNDS) -> Iterator[Speeds]:
    """Measures random weights and ids on every side."""
    return measure(parser().parse_args(["--rounds", str(rounds)]), Console())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    console, options = Console(), parser().parse_args(arguments)
    for speeds in measure(options, console):
        speeds.show(console)
        console.print(f"written: {speeds.save(Path(options.results)).name}")


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__.splitlines()[0])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="all by default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each row (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="that a side may use (%(default)s)")
    parser.add_argument(
        "--at-once",
        type=int,
        default=1,
        help="parts of random ids that ours and CTranslate2 decode at a time (%(default)s)",
    )
    parser.add_argument("--small", action="store_true", help="small sizes: shows that everything runs")
    parser.add_argument("--run", help="folder of a training run; with --source instead of random weights and ids")
    parser.add_argument("--source", help="text to translate, one sentence per line")
    parser.add_argument("--target", help="its translations, for BLEU")
    parser.add_argument("--length-penalty", type=float, default=0.6, help="α of the score log p / nᵅ (%(default)s)")
    parser.add_argument("--program", metavar="PATH", help="examples/serving_c/serve, once built: is measured, too")
    parser.add_argument("--results", default=str(RESULTS), help="folder of the JSON file")
    return parser


def measure(options: argparse.Namespace, console: Console) -> Iterator[Speeds]:
    """Measures what the options name."""
    if (options.run is None) != (options.source is None):
        raise SystemExit("--run and --source go together: a model, and text in its language")
    if options.at_once < 1 or (options.at_once > 1 and options.run is not None):
        raise SystemExit(
            "--at-once is for random ids, 1 part or more; of a text ours works on two batches, and CTranslate2 "
            f"on as many as it is faster with. Received: --at-once {options.at_once}"
        )
    with tempfile.TemporaryDirectory() as folder:
        if options.run is None:
            workload = SMALL if options.small else BASE
            write_random(Path(folder), workload.sizes, workload.sentences, workload.tokens_in)
        else:
            write_run(Path(folder), options.run)
            source, target = (
                None if file is None else plain_copy(file, Path(folder, name))
                for name, file in (("lines.source", options.source), ("lines.target", options.target))
            )
            lines = lines_of(source)
        with started(DecodingTask(folder, options.threads, options.at_once), options.sides) as workers:
            console.print(f"started: {', '.join(workers)}")
            if options.run is None:
                cases, found = _random(workers, workload, options.rounds)
                setup = {**asdict(workload.sizes), "tokens in": workload.tokens_in, "tokens out": workload.tokens_out}
                setup["parts at once"] = options.at_once
            else:
                text = Translation(source, target, Path(folder), BEAM, options.length_penalty)
                case, found = text.measure(workers, options.rounds)
                cases, setup = [case], {"run": Path(options.run).name, "source": Path(options.source).name}
                setup["length penalty"] = options.length_penalty
            found["peak GB of the process"] = {name: worker.peak_bytes / 1e9 for name, worker in workers.items()}
    if options.run is not None and options.program is not None:
        found["the C program"] = measure_program(options.program, options.run, lines)
    setup |= {"threads": options.threads, "rounds": options.rounds}
    name = "decoding-file" if options.run is not None else "decoding-small" if options.small else "decoding"
    name += "-at-once" if options.at_once > 1 else ""
    yield Speeds(name, setup, cases, _ours(workers), found)


@contextmanager
def started(task: DecodingTask, sides: Sequence[str]) -> Iterator[dict[str, Worker]]:
    """The processes of some sides, until the block ends."""
    workers = {}
    try:
        for name in sides:
            own = replace(task, options=SIDES[name].options)
            workers[name] = Worker(f"benchmarks.peers.{SIDES[name].module}", own, task.threads)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def _random(
    workers: dict[str, Worker], workload: Workload, rounds: int
) -> tuple[list[Case], dict[str, dict[str, object]]]:
    """Every side writes exactly as many tokens."""
    cases, found = [], {}
    for sentences in (workload.sentences, 1):
        for beam in (GREEDY, BEAM):
            row = f"{_counted(sentences)}, {'greedy' if beam == GREEDY else f'beam {beam}'}"
            asked = {"sentences": sentences, "beam": beam, "length": workload.tokens_out}
            shares = agreement(workers, asked)
            exact = [share for name, share in shares.items() if name in (OURS, KERASHUB)]
            assert sentences == 1 or all(share >= LEAST_SAME for share in exact), f"{row}: {shares}"
            found[f"same hypotheses, {row}"] = shares
            cases.append(_timed(row, workers, rounds, asked))
        found[f"time of beam {BEAM} over greedy, {_counted(sentences)}"] = time_over(cases[-1], cases[-2])
    return cases, found


def agreement(workers: dict[str, Worker], asked: dict) -> dict[str, float]:
    """The share of hypotheses that are CTranslate2's in float32; the search also warms the sides up.

    Our hypotheses end with their last token, those of the others may continue, so each is compared with its own kind.
    """
    found = {name: worker.ask("search", **asked)["found"] for name, worker in workers.items()}
    if EXACT not in workers:
        return {}
    ending = workers[EXACT].ask("ending", **asked)["found"]
    shares = {name: share_of_equal([row[:-1] for row in found[name]], ending) for name in _ours(workers)}
    if KERASHUB in found:
        shares[KERASHUB] = share_of_equal(found[KERASHUB], found[EXACT])
    return shares


def _timed(row: str, workers: dict[str, Worker], rounds: int, asked: dict) -> Case:
    work = {name: lambda worker=worker: worker.ask("search", **asked) for name, worker in workers.items()}
    measured = in_turn(work, rounds, report=lambda line: None)
    return Case(row, {name: [each["seconds"] for each in answers] for name, answers in measured.items()})


def _ours(sides: Sequence[str] | dict) -> list[str]:
    return [name for name in sides if name.startswith(OURS)]


def _counted(sentences: int) -> str:
    return "1 sentence" if sentences == 1 else f"{sentences} sentences"


if __name__ == "__main__":
    main()
