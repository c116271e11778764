"""`make mutants`: changes the code of each room in small ways, one at a time, and says which changes no test notices.

mutmut reads its settings from the folder it runs in, so each room has a folder of its own in build/mutants.
"""

import argparse
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FILES = ("keras_attention", "tests", "conftest.py", "README.md", "benchmarks")
NOTICED = ("killed", "timeout", "segfault")


class Room(NamedTuple):
    """A part of the package and the files of tests that run for it."""

    code: tuple[str, ...]
    tests: tuple[str, ...]
    backend: str = "tensorflow"


ROOMS = {
    # On torch, whose operations start fastest.
    "ops": Room(("ops/*",), ("ops", "position_ops", "attention_layers"), "torch"),
    "decoding": Room(
        ("decoding/*",),
        ("hypotheses", "beam_search", "logits", "sampling", "score", "stream", "small_attention", "generate"),
    ),
    "text": Room(("text/*",), ("batching", "packing", "corpus", "tokenizer", "subword_sampling")),
    "training": Room(
        ("training/*",),
        ("schedules", "muon", "fused_adam", "callbacks", "moving_average", "losses", "chunked_loss", "consistency"),
    ),
    # Not what waits for a network: a change there hangs more often than it fails.
    "server": Room(
        tuple(f"server/{name}.py" for name in ("batcher", "errors", "json_tensors", "limits", "metrics")),
        ("server_parts", "batcher"),
    ),
}
SETTINGS = """
[tool.mutmut]
source_paths = ["keras_attention"]
only_mutate = {code}
also_copy = {files}
pytest_add_cli_args = ["-q", "-x"]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
forkserver_warmup = "import"
preload_modules_file = "preload.txt"
"""
# What is imported once. Not the tests: some compute while they are imported, and TensorFlow's threads survive no fork.
PRELOADED = "tensorflow\nkeras\npytest\n"


def prepare(name: str) -> Path:
    """Makes the folder of a room."""
    room, folder = ROOMS[name], ROOT / "build" / "mutants" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        if not (folder / file).exists():
            (folder / file).symlink_to(ROOT / file)
    tests = [f"tests/test_{each}.py" for each in room.tests]
    code = [f"keras_attention/{pattern}" for pattern in room.code]
    settings = SETTINGS.format(code=code, files=list(FILES[2:]), tests=tests)
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)
    (folder / "preload.txt").write_text(PRELOADED)
    return folder


def try_room(name: str, sample: int) -> Counter:
    """Tries the changes of a room, all or a sample; prints those that no test notices."""
    folder = prepare(name)

    def mutmut(*arguments: str, **options) -> subprocess.CompletedProcess:
        command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
        return subprocess.run(command, cwd=folder, text=True, env=environment, **options)

    def results() -> dict[str, str]:
        lines = mutmut("results", "--all", "true", capture_output=True, check=True).stdout.splitlines()
        return dict(line.strip().split(": ") for line in lines if ": " in line)

    environment = {**os.environ, "KERAS_BACKEND": ROOMS[name].backend, "OMP_NUM_THREADS": "1"}
    names: list[str] = []
    if sample:
        mutmut("run", "no-such-change")  # mutmut makes the changes before it looks for the name, then gives up
        known = sorted(results())
        names = random.Random(1).sample(known, min(sample, len(known)))
    mutmut("run", *names)
    found = {change: status for change, status in results().items() if not names or change in names}
    for change, status in found.items():
        if status not in NOTICED:
            print(mutmut("show", change, capture_output=True).stdout)
    return Counter(found.values())


def main() -> None:
    """Tries the rooms that are named, and prints what share of the changes each one's tests noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", nargs="*", metavar="room", help=f"of {', '.join(ROOMS)}; all by default")
    parser.add_argument(
        "--sample", type=int, default=0, help="number of changes to try, always the same ones; 0 for all"
    )
    options = parser.parse_args()
    if unknown := set(options.rooms) - set(ROOMS):
        parser.error(f"rooms are {', '.join(ROOMS)}. Received: {', '.join(sorted(unknown))}")
    counts = {name: try_room(name, options.sample) for name in options.rooms or ROOMS}
    for name, count in counts.items():
        noticed = sum(count[status] for status in NOTICED)
        print(f"mutants: {name}: {noticed} of {count.total()} noticed ({noticed / max(count.total(), 1):.0%})")


if __name__ == "__main__":
    main()
