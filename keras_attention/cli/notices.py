"""Suppresses the log messages of TensorFlow and SentencePiece on standard error while a command runs.

Their native code writes to file descriptor 2, whatever Python's settings are, so a small process reads that
descriptor and copies every line that is not such a notice. It outlives a crash, so the last lines are not lost.
Python's own `sys.stderr` stays connected to the terminal, file or pipe it had: progress bars and tracebacks do not go
through the process. This file is also the program of that process.
"""

import contextlib
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator

_LOG = rb"(?:[%s]\d{4} \d\d:\d\d:\S+ +\d+ |\d{4}-\d\d-\d\d \d\d:\d\d:\S+ [%s] )\S+:\d+\] "
NOTICE = re.compile(
    rb"|".join(
        [
            rb"WARNING: All log messages before absl::InitializeLog\(\)",
            _LOG % (b"IW", b"IW"),  # TensorFlow prints some before it reads TF_CPP_MIN_LOG_LEVEL=2
            rb"To enable the following instructions: .* rebuild TensorFlow",
            # Errors of TensorFlow that only mean that the machine has no GPU or an older processor.
            _LOG % (b"E", b"E")
            + rb"failed call to cuInit: .*(?:UNKNOWN ERROR \(303\)|CUDA_ERROR_NO_DEVICE|no CUDA-cap)",
            _LOG % (b"E", b"E") + rb"Unable to register cu\w+ factory",
            _LOG % (b"E", b"E") + rb"oneDNN supports \w+ only on platforms with AVX-512\. Falling back",
            rb"\w+\.cc\(\d+\) LOG\((?:INFO|WARNING)\) ",  # SentencePiece
            rb"INFO: Created TensorFlow Lite XNNPACK delegate",
        ]
    )
)


@contextlib.contextmanager
def suppress_notices() -> Iterator[None]:
    """Suppresses notices on standard error during the block, for a whole process and before threads start."""
    if sys.stderr is None or not sys.executable:  # standard error is closed
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    direct = os.dup(2)
    try:
        # In a session of its own, so that Ctrl-C only reaches the command.
        reader = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        os.close(direct)
        yield
        return
    before = sys.stderr
    sys.stderr = os.fdopen(direct, "w", buffering=1, encoding=before.encoding, errors=before.errors, closefd=False)
    os.dup2(reader.stdin.fileno(), 2)
    reader.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(direct, 2)
        sys.stderr = before
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.wait(timeout=2)  # a process started by the command may still hold the descriptor


def copy_without_notices(source: int, target: int) -> None:
    """Copies one file descriptor to another, without notices, until its end."""
    line = b""
    while True:
        # An incomplete line waits for its end, since notices come in pieces, but not for long: a prompt has no end.
        if line and not NOTICE.match(line) and not select.select([source], [], [], 0.2)[0]:
            _write(target, line)
            line = b""
        chunk = os.read(source, 65536)
        *lines, line = re.split(rb"(?<=[\n\r])", line + chunk)
        if not chunk:
            lines.append(line)
        _write(target, b"".join(each for each in lines if not NOTICE.match(each)))
        if not chunk:
            return


def _write(target: int, content: bytes) -> None:
    while content:
        content = content[os.write(target, content) :]


if __name__ == "__main__":
    copy_without_notices(0, 2)
