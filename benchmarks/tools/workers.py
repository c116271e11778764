"""Sides that stay: a process for each, which waits between its turns, so that models are loaded and compiled once."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.side import peak_bytes
from benchmarks.tools.turns import ROOT

# Threads of a side may spin for a while after its work (a fifth of a second with Intel's OpenMP), and would take the
# processor from the next side.
PAUSE = 0.4


@dataclass(frozen=True)
class Work:
    """What a side was asked for.

    Attributes:
        run: What is timed.
        read: Makes of its result what the answer holds.
    """

    run: Callable[[], Any]
    read: Callable[[Any], Any]


class Worker:
    """A side in a process of its own.

    Args:
        module: Such as "benchmarks.peers.decoding_ours".
        task: A dataclass, what its `serve` is given.
        threads: That its libraries may use.
        environment: Variables in addition to those of this process.
    """

    def __init__(self, module: str, task: Any, threads: int, environment: Mapping[str, str] | None = None):
        self.module = module
        self.peak_bytes = 0  # as of its last answer
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name) / "errors.txt"
        variables = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "OMP_NUM_THREADS": str(threads)}
        variables |= environment or {}
        given = json.dumps(asdict(task) if is_dataclass(task) else task)
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, given], cwd=ROOT, env=variables, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip

    def ask(self, name: str, **arguments: Any) -> dict:
        """Has the side do something.

        Args:
            name: A method of what it serves, which gives `Work`.
            **arguments: Of that method.

        Returns:
            `seconds` and `found`.

        Raises:
            RuntimeError: It failed; the message ends with what it wrote.
        """
        line = ""
        with contextlib.suppress(BrokenPipeError):  # it ended before it was asked
            self._process.stdin.write(json.dumps([name, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError(f"{self.module} ended at {name}:\n{self._errors.read_text(errors='replace')[-3000:]}")
        time.sleep(PAUSE)
        answer = json.loads(line)
        self.peak_bytes = answer.pop("peak_bytes")
        return answer

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):  # it ended before, and was asked for more
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()


def serve(build: Callable[[dict], Any]) -> None:
    """The command line of a side: answers requests until there are no more.

    Args:
        build: Makes of the task an object whose methods give `Work`. Each is prepared once.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes with the errors
    side, prepared = build(json.loads(sys.argv[1])), {}
    for line in sys.stdin:
        if line not in prepared:
            name, arguments = json.loads(line)
            prepared[line] = getattr(side, name)(**arguments)
        work = prepared[line]
        start = time.perf_counter()
        result = work.run()
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "found": work.read(result), "peak_bytes": peak_bytes()}
        print(json.dumps(answer), file=answers, flush=True)


def lines_of(file: str | Path) -> list[str]:
    """The lines of a text that `plain_copy` wrote: a side that is measured loads nothing of ours to read it.

    Args:
        file: UTF-8; only a line feed ends a line.

    Returns:
        Each without its end.
    """
    return Path(file).read_bytes().decode().split("\n")[:-1]


def plain_copy(file: str | Path, copy: Path) -> Path:
    """Copies a text of any form that the commands read, for the sides.

    Args:
        file: The text, as of `read_lines`.
        copy: The copy's place.

    Returns:
        The same.
    """
    from keras_attention.text import read_lines

    copy.write_bytes("".join(f"{line}\n" for line in read_lines(file)).encode())
    return copy
