"""A message for when a process ends in the middle of its work, in whatever way."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

# The program of a small process that reads until its standard input is closed, as it is when the other process ends.
_PROGRAM = "import sys; sys.stdin.buffer.read() or sys.stderr.write(sys.argv[1])"


@contextlib.contextmanager
def last_words(message: str) -> Iterator[None]:
    """Prints a message on standard error if the process ends within the block, or after an error there.

    Python cannot print it: native code may abort the process, or the system kill it.
    """
    if not sys.executable:
        yield
        return
    # In a session of its own, so that Ctrl-C only reaches this process.
    reader = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PROGRAM, f"\n{message}\n"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    except SystemExit:  # at SIGTERM, with the state saved and a message of its own
        reader.communicate(b"ended")
        raise
    reader.communicate(b"ended")
