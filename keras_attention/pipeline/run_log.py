"""The log of a run, `events.jsonl`: when it started, was changed and ended, a line of JSON for each event."""

import datetime
import json
import math
import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """An event of a run; `time` is in UTC, as in 2026-03-05T14:07:31Z."""

    time: str
    name: str
    step: int
    details: Mapping[str, Any]


def add_event(path: str | Path, name: str, step: int, **details: Any) -> None:
    """Appends an event in one write, so that a process that is killed leaves at most one incomplete line, the last."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    values = {"time": now, "event": name, "step": int(step), **_as_json(details)}
    line = json.dumps(values, ensure_ascii=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        incomplete = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" + line if incomplete else line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_events(path: str | Path) -> list[Event]:
    """Reads the events in the order in which they were added, without incomplete lines; none if there is no file."""
    if not Path(path).exists():
        return []
    lines = Path(path).read_bytes().decode(errors="replace").split("\n")
    return [event for event in map(_parse, lines) if event is not None]


def _parse(line: str) -> Event | None:
    try:
        values = json.loads(line)
        return Event(str(values.pop("time")), str(values.pop("event")), int(values.pop("step")), values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _as_json(value: Any) -> Any:
    """Replaces what JSON cannot hold, such as a path or NaN, by its text."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, numbers.Integral):  # NumPy's too
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    return str(value)
