"""The start and the end of each training of a run, for its log."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_attention.pipeline.run_log import add_event, read_events
from keras_attention.training.scalars import step_of

STARTED, ENDED = "started", "ended"
FINISHED, INTERRUPTED, DIVERGED, FAILED = "finished", "interrupted", "diverged", "failed"


@contextlib.contextmanager
def recorded(
    events: Path, model: Any, step: int, step_limits: Mapping[str, int | None], max_minutes: float | None
) -> Iterator[None]:
    """Records the start of the training in this block, with its limits in steps and minutes, and how it ended."""

    def last_step() -> int:
        return max(step, step_of(model.optimizer))  # of an interruption before the state was restored

    step_limits = {name: limit for name, limit in step_limits.items() if limit is not None}
    minutes = {} if max_minutes is None else {"max_minutes": max_minutes}
    add_event(events, STARTED, step, limits={**step_limits, **minutes})
    try:
        yield
    except BaseException as error:
        how, reason = _describe(error)
        with contextlib.suppress(OSError):  # such as that of a full disk, which has ended the training
            add_event(events, ENDED, last_step(), how=how, reason=reason)
        raise
    add_event(events, ENDED, last_step(), how=FINISHED, reason=_reason(events, last_step(), step_limits))


def _describe(error: BaseException) -> tuple[str, str]:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "Ctrl-C"
    if isinstance(error, SystemExit):
        return INTERRUPTED, "SIGTERM"
    how = DIVERGED if isinstance(error, FloatingPointError) else FAILED
    return how, " ".join(str(error).split()) or type(error).__name__


def _reason(events: Path, step: int, step_limits: Mapping[str, int]) -> str:
    """The limit that ended the training, or the reason of the event "stopped" if there is one since its start."""
    reached = [name for name, limit in step_limits.items() if step >= limit]
    if reached:
        return reached[0]
    for event in reversed(read_events(events)):
        if event.name == STARTED:
            break
        if event.name == "stopped":
            return str(event.details.get("reason", "stopped"))
    return "max_minutes"
