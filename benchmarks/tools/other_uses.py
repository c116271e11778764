"""Runs the examples of other uses, one after the other, and keeps what each returns.

`python -m benchmarks.tools.other_uses [name ...]` writes `benchmarks/results/other_uses.json` after each example, and
the pictures of those that draw one. Examples that the file has are not run again, unless they are named.
"""

import argparse
import json
import multiprocessing
import runpy
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from typing import Any

from benchmarks.harness import RESULTS, machine

ROOT = RESULTS.parent.parent
IMAGES = ROOT / "docs" / "images"
FILE = "other_uses.json"
# The examples, and what they draw.
EXAMPLES = {
    "classifier": None,
    "character_model": None,
    "masked_pretraining": "transfer.png",
    "image_patches": None,
    "forecast": "forecast.png",
    "spoken_words": None,
    "question_answering": None,
}


def run(name: str) -> tuple[Any, float]:
    """What an example returns, and the seconds that it took."""
    image = EXAMPLES[name]
    options = {} if image is None else {"image": str(IMAGES / image)}
    start = time.perf_counter()
    result = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](**options)
    return result, time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tools.other_uses", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {', '.join(EXAMPLES)}")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(EXAMPLES))
    if unknown:
        parser.error(f"no example is called {', '.join(unknown)}; there are: {', '.join(EXAMPLES)}")
    path = RESULTS / FILE
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    spawn = multiprocessing.get_context("spawn")
    for name in options.names or [name for name in EXAMPLES if name not in content]:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:  # each in a process of its own, as its command runs it
            result, seconds = pool.submit(run, name).result()
        date = datetime.now(UTC).isoformat(timespec="seconds")
        content[name] = {"date": date, "machine": machine(), "seconds": round(seconds), "result": result}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {seconds:.0f} s, in {path.relative_to(RESULTS.parent.parent)}", flush=True)


if __name__ == "__main__":
    main()
