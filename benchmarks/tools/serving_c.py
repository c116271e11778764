"""The C program of the examples: how long a line takes it, how much memory."""

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.peers.side import peak_bytes

WARM_UP, LINES = 5, 200


def measure_program(program: str | Path, run: str | Path, lines: list[str]) -> dict[str, float]:
    """Exports a run and has the program translate some lines, one after the other.

    Args:
        program: `examples/serving_c/serve`, once it is built.
        run: The folder of a training run.
        lines: Text.

    Returns:
        Milliseconds a line (median and 95th percentile), the program's peak memory, the weights, the memory allowed.
    """
    from keras_attention.pipeline import RunFolder
    from keras_attention.serving import export

    with tempfile.TemporaryDirectory() as folder:
        version = export(RunFolder(run).translator(), Path(folder) / "model")
        weights = sum(file.stat().st_size for file in (version / "variables").iterdir())
        times, peak = time_lines([str(program), str(version)], lines[: WARM_UP + LINES])
    times = times[WARM_UP:]
    return {
        "median ms": 1000 * statistics.median(times),
        "95% ms": 1000 * sorted(times)[int(0.95 * len(times))],
        "peak MB": peak / 1e6,
        "weights MB": weights / 1e6,
        "allowed MB": 1.3 * weights / 1e6 + 400,
    }


def time_lines(command: list[str], lines: list[str]) -> tuple[list[float], int]:
    """Asks a program line by line.

    Args:
        command: Of a program that answers each line of its standard input with a line.
        lines: What it is given.

    Returns:
        The seconds of each line, and the largest its memory was, in bytes.
    """
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        times = []
        for line in lines:
            start = time.perf_counter()
            process.stdin.write(line + "\n")
            process.stdin.flush()
            if not process.stdout.readline():
                raise RuntimeError(f"{command[0]} gave no answer to: {line}")
            times.append(time.perf_counter() - start)
        peak = peak_bytes(process.pid)
        process.stdin.close()
    return times, peak
