"""A line that shows what a long job does: rewritten in a terminal, and repeated every minute in a log."""

import datetime
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# The least seconds between two of its texts: in a terminal, and in a file or a pipe.
TERMINAL_SECONDS, LOG_SECONDS = 0.25, 60.0


class StatusLine:
    """The current state of a job in one line of standard output or, with `stderr`, of standard error.

    A terminal shows it only while nothing else is written there: what a program prints, such as a traceback, erases it
    first. So nothing needs to be closed when the job ends with an error or at Ctrl-C.
    """

    def __init__(self, stderr: bool = False, console: Any = None):
        self._console = _console(stderr) if console is None else console
        self._lock = threading.RLock()
        self._drawn = False
        # The time of the last text; a log gets the first one after a minute, so that a short job adds no line.
        self._shown = -float("inf") if self._console.is_interactive else time.monotonic()
        # They live as long as this object, because Python's `print` holds no reference to the stream that it writes to.
        self._streams: dict[str, _Stream] = {}

    def start(self, text: Callable[[], str]) -> None:
        """Shows the text at once, also in a log."""
        self._shown = -float("inf")
        self.show(text)

    def show(self, text: Callable[[], str], at_once: bool = False) -> None:
        """Shows the text, unless the last one is too recent; `at_once` replaces any text in a terminal."""
        interactive = self._console.is_interactive
        seconds = TERMINAL_SECONDS if interactive else LOG_SECONDS
        with self._lock:
            if time.monotonic() - self._shown < seconds and not (interactive and at_once):
                return
            if not interactive:
                self.print(text())
                return
            line = text()
            self.clear()
            self._console.print(
                line, end="", markup=False, no_wrap=True, overflow="ellipsis", width=self._console.width - 1
            )
            self._shown, self._drawn = time.monotonic(), True
            self._watch_streams()

    def print(self, text: str) -> None:
        """Prints a line that stays."""
        with self._lock:
            self.clear()
            self._console.file.write(f"{text}\n")
            self._console.file.flush()
            if not self._console.is_interactive:
                self._shown = time.monotonic()

    def clear(self) -> None:
        """Erases the line from a terminal."""
        with self._lock:
            if not self._drawn:
                return
            from rich.control import Control, ControlType

            self._drawn = False
            for name, stream in self._streams.items():
                if getattr(sys, name) is stream:
                    setattr(sys, name, stream.rich_proxied_file)
            self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))

    def _watch_streams(self) -> None:
        """Lets the next text on standard output or error erase the line."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # closed
                continue
            if name not in self._streams or self._streams[name].rich_proxied_file is not stream:
                self._streams[name] = _Stream(stream, self)
            setattr(sys, name, self._streams[name])


def clock(seconds: float) -> str:
    """A duration as in 1:05:09."""
    return str(datetime.timedelta(seconds=int(seconds)))


class _Stream:
    """A standard stream while a status line is drawn: the first text that is written to it erases the line."""

    def __init__(self, stream: Any, line: StatusLine):
        self.rich_proxied_file = stream  # rich writes to this one
        self._line = line

    def write(self, text: str) -> int:
        self._line.clear()
        return int(self.rich_proxied_file.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def _console(stderr: bool) -> Any:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # FORCE_COLOR makes rich treat a log as a terminal.
    return Console(stderr=stderr, force_interactive=None if stream is not None and stream.isatty() else False)
