"""A first run on a GPU: checks the device, trains `base` for 200 steps on a corpus, decodes, and says how fast.

`make gpu SOURCE=train.en TARGET=train.de`, or `python -m benchmarks.gpu_run SOURCE TARGET`. It takes some minutes, and
needs Keras, JAX and SentencePiece, no TensorFlow. Its figures go into `benchmarks/results/gpu-run.json`. On a machine
without a GPU only `--tiny` makes sense, which shows that everything runs.
"""

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # before Keras is imported; a program that imports this module keeps its own backend
    os.environ.setdefault("KERAS_BACKEND", "jax")

from benchmarks.gpu import ceiling
from benchmarks.harness import RESULTS, machine
from benchmarks.tools.flops import training_flops

if TYPE_CHECKING:
    from keras_attention.text import SubwordTokenizer

HELD_OUT = 128  # pairs, for validation and decoding
BEAMS = {"greedy": 1, "beam 4": 4}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="sentences, one a line")
    parser.add_argument("target", type=Path, help="their translations, line by line")
    parser.add_argument("--steps", type=int, default=200, help="of training (%(default)s)")
    parser.add_argument("--preset", default="base", help="of the model (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="preset tiny, on any device; writes nothing")
    options = parser.parse_args(arguments)
    chip = ceiling()
    if "cpu" in chip["device"].lower() and not options.tiny:
        parser.error(
            "no GPU is visible to JAX: install jax[cuda12] or jax[cuda13] for the driver of this machine, or give "
            f"--tiny to try the program. Received: device {chip['device']}"
        )
    print(f"device: {chip['device']}, matrix product in bfloat16: {chip['bfloat16'] / 1e12:,.1f} TFLOP/s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), options, chip)
    print(json.dumps(found, indent=2))
    if not options.tiny:
        content = {"benchmark": "gpu-run", "date": datetime.now(UTC).isoformat(timespec="seconds")}
        content |= {"machine": machine(), "device": chip, "preset": options.preset, **found}
        path = RESULTS / "gpu-run.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"written: {path.name}")


def run(folder: Path, options: argparse.Namespace, chip: dict) -> dict[str, object]:
    """Trains and decodes in a folder; returns the figures."""
    from keras_attention.pipeline import RunConfig, train

    texts = held_out(folder, options.source, options.target)
    names = ("source", "target", "valid_source", "valid_target")
    dtype = "float32" if options.tiny else "mixed_bfloat16"
    config = RunConfig(
        **{name: str(text) for name, text in zip(names, texts, strict=True)},
        preset="tiny" if options.tiny else options.preset,
        dtype=dtype,
        evaluate_every=options.steps,
    )
    start = time.perf_counter()
    model = train(folder / "run", config, max_steps=options.steps)
    seconds = time.perf_counter() - start
    with (folder / "run" / "history.csv").open(encoding="utf-8") as file:
        row = list(csv.DictReader(file))[-1]
    rate = float(row["tokens_per_second"])
    sizes = {name: getattr(model.config, name) for name in ("hidden_dim", "intermediate_dim", "vocabulary_size")}
    flops = flops_per_token(folder, texts, num_layers=model.config.num_layers, **sizes)
    found = {
        "steps": options.steps,
        "seconds in all, with tokenizer, compilation and evaluation": round(seconds, 1),
        "training tokens a second": round(rate),
        "share of the matrix rate": round(rate * flops / chip["bfloat16"], 4),
        "validation loss": float(row["val_loss"]),
        "peak bytes": peak_bytes(),
    }
    print(f"training: {rate:,.0f} tokens/s, {found['share of the matrix rate']:.1%} of the matrix rate", flush=True)
    return {**found, **decode(folder / "run", texts[2])}


def held_out(folder: Path, source: Path, target: Path) -> list[Path]:
    """Writes the last pairs of a corpus into files of their own; returns both parts of both sides."""
    parts = []
    for name, file in (("source", source), ("target", target)):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        for part, of_part in (("train", lines[:-HELD_OUT]), ("valid", lines[-HELD_OUT:])):
            path = folder / f"{part}.{name}"
            path.write_text("".join(of_part), encoding="utf-8")
            parts.append(path)
    return [parts[0], parts[2], parts[1], parts[3]]


def flops_per_token(folder: Path, texts: Sequence[Path], **sizes: int) -> float:
    """Operations of a training step for each source or target token of the held-out pairs."""
    from keras_attention.pipeline import RunFolder

    tokenizer = RunFolder(folder / "run").tokenizer
    lengths = [tokens_of(tokenizer, file.read_text(encoding="utf-8").splitlines()) for file in texts[2:]]
    return training_flops(*lengths, **sizes) / sum(map(sum, lengths))


def tokens_of(tokenizer: "SubwordTokenizer", lines: list[str]) -> list[int]:
    """Tokens of each line, its end counted."""
    return [len(ids) + 1 for ids in tokenizer.encode(lines)]


def decode(run_folder: Path, source: Path) -> dict[str, object]:
    """Translates the held-out sentences, the second time on the clock."""
    from keras_attention.pipeline import RunFolder

    lines, found = source.read_text(encoding="utf-8").splitlines(), {}
    tokenizer = RunFolder(run_folder).tokenizer
    for name, beam in BEAMS.items():
        translator = RunFolder(run_folder).translator(beam_size=beam)
        translator.translate(lines)
        start = time.perf_counter()
        translations = translator.translate(lines)
        seconds = time.perf_counter() - start
        tokens = sum(tokens_of(tokenizer, translations))
        found[name] = {
            "sentences": len(lines),
            "seconds": round(seconds, 3),
            "tokens a second": round(tokens / seconds),
        }
        print(f"{name}: {len(lines)} sentences in {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s", flush=True)
    return found


def peak_bytes() -> int:
    """The most memory of the device that was in use."""
    import jax

    from benchmarks.peers import side

    found = jax.local_devices()[0].memory_stats()
    return found["peak_bytes_in_use"] if found else side.peak_bytes()


if __name__ == "__main__":
    main()
