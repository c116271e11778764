"""Whether a trained run gives the same hypotheses on every backend, and how fast: `python -m … RUN SOURCE`.

Each backend translates the first sentences of a file twice, in a process of its own; the first time it also compiles.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")


def translate(run: Path, source: Path, sentences: int, beam_size: int) -> dict:
    """Translates with the backend of this process; returns the translations and the seconds of both times."""
    from keras_attention.pipeline import RunFolder

    translator = RunFolder(run).translator(beam_size=beam_size)
    texts = source.read_text(encoding="utf-8").splitlines()[:sentences]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        translations = translator.translate(texts)
        seconds.append(round(time.perf_counter() - start, 2))
    return {"seconds": seconds, "translations": translations}


def compare(run: Path, source: Path, sentences: int, beam_size: int) -> dict:
    """Runs each backend in a process; returns the share of translations that equal TensorFlow's, and the seconds."""
    results = {}
    for backend in BACKENDS:
        command = [sys.executable, "-m", __spec__.name, str(run), str(source), "--backend", backend]
        command += ["--sentences", str(sentences), "--beam-size", str(beam_size)]
        environment = {**os.environ, "KERAS_BACKEND": backend}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        results[backend] = json.loads(done.stdout.splitlines()[-1])
    reference = results["tensorflow"]["translations"]
    report = {"sentences": len(reference), "beam_size": beam_size}
    for backend, result in results.items():
        pairs = list(zip(reference, result["translations"], strict=True))
        differences = [pair for pair in pairs if pair[0] != pair[1]]
        report[backend] = {"same": 1 - len(differences) / len(pairs), "seconds": result["seconds"]}
        for pair in differences[:5]:
            print(*pair, sep="\n", end="\n\n", file=sys.stderr)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--beam-size", type=int, default=4)
    parser.add_argument("--backend", choices=BACKENDS)
    options = vars(parser.parse_args())
    own = options.pop("backend")
    print(json.dumps(translate(**options) if own else compare(**options), ensure_ascii=bool(own)))
