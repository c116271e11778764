"""Memory and speed of text in shards: an epoch of batches from text of several sizes, streamed and in memory.

`python -m benchmarks.shards train.en.gz train.de.gz` writes `benchmarks/results/shards.json`. Each case is a process of
its own. Text that has fewer pairs than a size is repeated, each time with another number at the end of its lines.
"""

import argparse
import gzip
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.harness import RESULTS, machine
from keras_attention.text import (
    PackedBatches,
    ParallelCorpus,
    ShardedPairs,
    StreamedBatches,
    SubwordTokenizer,
    TokenBatches,
    read_lines,
)
from keras_attention.text.streamed_batches import BUFFER_SIZE

SIZES, SHARDS, VOCABULARY_SIZE = (16_000, 160_000), 16, 8000
TOKENS, ROW_LENGTH = 4096, 96
SIDES = ("streamed", "streamed, packed", "streamed, default buffer", "in memory")
_MIB = 2**20


def write_shards(source: str, target: str, num_pairs: int, folder: Path) -> None:
    """Writes shards with this number of pairs in all."""
    folder.mkdir()
    for name, path in (("source", source), ("target", target)):
        lines = read_lines(path)
        if num_pairs < len(lines):  # from all of the text
            lines = [lines[number * len(lines) // num_pairs] for number in range(num_pairs)]
        of_text = itertools.islice(_repeated(lines), num_pairs)
        for number in range(SHARDS):
            count = num_pairs // SHARDS + (number < num_pairs % SHARDS)
            with gzip.open(folder / f"{number:02d}.{name}.gz", "wt", encoding="utf-8", compresslevel=6) as file:
                file.writelines(f"{line}\n" for line in itertools.islice(of_text, count))


def _repeated(lines: Sequence[str]) -> Iterator[str]:
    yield from lines
    for number in itertools.count(1):
        yield from (f"{line} {number}" for line in lines)


class PeakMemory(threading.Thread):
    """The most memory of this process, without that of files such as libraries, whose pages come and go."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = anonymous_memory()
        self._ended = threading.Event()

    def run(self) -> None:
        """Looks every few milliseconds."""
        while not self._ended.wait(0.005):
            self.peak = max(self.peak, anonymous_memory())

    def end(self) -> None:
        """Stops looking."""
        self._ended.set()
        self.join()


def anonymous_memory() -> int:
    """The memory of this process in bytes, without that of files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measure(side: str, folder: Path, buffer_size: int, step_seconds: float) -> dict[str, float]:
    """Makes an epoch of batches, and another with a pause after each batch: bytes, pairs per second, seconds waited."""
    tokenizer = SubwordTokenizer.load(folder.parent / "tokenizer.model")
    tokenizer.encode(["The first call allocates memory."])
    memory, started = PeakMemory(), time.perf_counter()
    memory.start()
    if side == "in memory":
        corpus = ParallelCorpus(folder / "all.source.gz", folder / "all.target.gz")
        batches = TokenBatches.from_pairs(corpus.pairs, tokenizer, tokens_per_batch=TOKENS)
    else:
        pairs = ShardedPairs(folder / "[0-9]*.source.gz", folder / "[0-9]*.target.gz")
        packed = {"row_length": ROW_LENGTH, "rows_per_batch": TOKENS // ROW_LENGTH}
        kind, options = (PackedBatches, packed) if "packed" in side else (TokenBatches, {"tokens_per_batch": TOKENS})
        buffer_size = BUFFER_SIZE if "default" in side else buffer_size
        batches = StreamedBatches(pairs, tokenizer, kind, buffer_size=buffer_size, **options)
    counted = time.perf_counter()
    for index in batches.plan(0):
        batches.batch(index, 0)
    made, waits = time.perf_counter(), []
    for index in batches.plan(1):
        asked = time.perf_counter()
        batches.batch(index, 1)
        waits.append(time.perf_counter() - asked)
        time.sleep(step_seconds)
    memory.end()
    return {
        "pairs": batches.num_pairs,
        "batches": len(batches),
        "padding": batches.padding,
        "bytes_before": memory.before,
        "peak_bytes": memory.peak,
        "seconds_to_start": counted - started,
        "pairs_per_second": batches.num_pairs / (made - counted),
        "mean_wait": sum(waits) / len(waits),
        "longest_wait_after_first": max(waits[1:]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all sides and sizes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add_argument("source", help="text file")
    parser.add_argument("target", help="text file of its translations")
    parser.add_argument("--pairs", type=int, nargs="+", default=SIZES, help="sizes of the text")
    parser.add_argument("--most-in-memory", type=int, default=200_000, help="the most pairs to hold in memory")
    parser.add_argument("--buffer-size", type=int, default=8000, help="lines of a buffer")
    parser.add_argument("--step", type=float, default=0.02, help="seconds of the pause after a batch")
    parser.add_argument("--output", type=Path, default=RESULTS / "shards.json")
    options = parser.parse_args(arguments)
    cases = []
    with tempfile.TemporaryDirectory() as temporary:
        for num_pairs in options.pairs:
            folder = Path(temporary, str(num_pairs))
            write_shards(options.source, options.target, num_pairs, folder)
            if not Path(temporary, "tokenizer.model").exists():
                train_tokenizer(folder)
            for side in SIDES:
                if side != "in memory":
                    cases.append({"side": side, **_in_process(side, folder, options)})
                elif num_pairs <= options.most_in_memory:
                    for name in ("source", "target"):  # gzip files may follow one another in one
                        shards = sorted(folder.glob(f"[0-9]*.{name}.gz"))
                        (folder / f"all.{name}.gz").write_bytes(b"".join(path.read_bytes() for path in shards))
                    cases.append({"side": side, **_in_process(side, folder, options)})
    show(cases)
    content = {"benchmark": "shards", "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    content["setup"] = {"buffer_size": options.buffer_size, "shards": SHARDS, "tokens_per_batch": TOKENS}
    content["setup"] |= {"row_length": ROW_LENGTH, "step_seconds": options.step}
    options.output.write_text(json.dumps({**content, "cases": cases}, indent=2) + "\n", encoding="utf-8")


def train_tokenizer(folder: Path) -> None:
    """Trains the tokenizer of all cases on the shards of the first."""
    size = min(VOCABULARY_SIZE, 100 + len(read_lines(folder / "00.source.gz")))  # less for a trial with little text
    SubwordTokenizer.train(sorted(folder.glob("*.gz")), size).save(folder.parent / "tokenizer.model")


def _in_process(side: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    program = (
        "import json, pathlib, sys; from benchmarks.shards import measure; side, folder, size, step = sys.argv[1:]; "
        "print(json.dumps(measure(side, pathlib.Path(folder), int(size), float(step))))"
    )
    command = [sys.executable, "-c", program, side, str(folder), str(options.buffer_size), str(options.step)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(cases: Sequence[dict[str, float]]) -> None:
    """Prints a table: one line per case."""
    table = Table(title="text in shards: peak memory above the imports, an epoch of batches", box=box.SIMPLE_HEAD)
    headings = ("side", "pairs", "MiB", "padding", "start, s", "pairs/s", "wait, ms", "longest")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "side" else "right")
    for case in cases:
        table.add_row(
            str(case["side"]),
            f"{case['pairs']:,}",
            f"{(case['peak_bytes'] - case['bytes_before']) / _MIB:.0f}",
            f"{case['padding']:.1%}",
            f"{case['seconds_to_start']:.1f}",
            f"{case['pairs_per_second']:,.0f}",
            f"{1000 * case['mean_wait']:.1f}",
            f"{1000 * case['longest_wait_after_first']:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
