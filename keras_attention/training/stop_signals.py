"""Ctrl-C and SIGTERM, which wait until a training can stop."""

import signal
import threading
import traceback
from collections.abc import Collection
from types import FrameType
from typing import Any, NoReturn

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Remembers the first Ctrl-C or SIGTERM during `fit`; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}  # those before `install`

    def install(self, except_for: Collection[int] = ()) -> None:
        """Handles the signals from now on, in the main thread, where Python delivers them."""
        self.received = None
        if threading.current_thread() is not threading.main_thread() or self._handlers:
            return
        for number in (each for each in _NUMBERS if each not in except_for):
            earlier = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(earlier, StopSignals):  # of a `fit` that ended with an error
                earlier.restore()
            # A signal that the process ignores, as under `nohup`, or whose handler is not Python's, keeps its handler.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._handlers[number] = signal.signal(number, self._receive)

    def restore(self) -> None:
        """Sets the earlier handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def stop(self, message: str) -> NoReturn:
        """Ends the training as the signal would have."""
        self.restore()
        print(f"\n{message}", flush=True)
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.received)  # as shells report a process that the signal ended

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # `fit` may have ended with an error, without `on_train_end`.
        if self.received is not None or not in_fit(frame):
            self.restore()
            signal.raise_signal(number)
            return
        self.received = number
        name = signal.Signals(number).name
        print(f"\n{name}: training stops after this step, with its state saved. Again: at once.", flush=True)


def in_fit(frame: FrameType | None) -> bool:
    """Returns True if a thread that is at a frame is in a call of `fit`."""
    return frame is not None and any(each.f_code.co_name == "fit" for each, _ in traceback.walk_stack(frame))
