"""The log of a run survives whatever ends the process that writes it."""

import json
from pathlib import Path

import numpy as np
import pytest

from keras_attention.pipeline.run_log import add_event, read_events


def test_events_are_read_in_the_order_in_which_they_were_added(tmp_path):
    path = tmp_path / "events.jsonl"
    assert read_events(path) == []
    add_event(path, "started", 0, limits={"max_steps": 7})
    add_event(path, "finished", 7, reason="max_steps")
    first, last = read_events(path)
    assert (first.name, first.step, first.details) == ("started", 0, {"limits": {"max_steps": 7}})
    assert (last.name, last.step, last.details) == ("finished", 7, {"reason": "max_steps"})
    assert first.time <= last.time and len(first.time) == 20 and first.time.endswith("Z")


@pytest.mark.parametrize(
    "damage", [b'{"time": "2026', b"\xff\xfe", b"[1, 2]", b"{}", b'{"time": "", "event": "", "step": "x"}', b"[" * 9999]
)
def test_an_incomplete_or_damaged_line_hides_no_other(tmp_path, damage):
    path = tmp_path / "events.jsonl"
    add_event(path, "started", 0)
    with open(path, "ab") as file:
        file.write(damage)  # without a line feed, as after a full disk
    add_event(path, "resumed", 5)
    assert [(event.name, event.step) for event in read_events(path)] == [("started", 0), ("resumed", 5)]


def test_each_line_is_json_whatever_the_details(tmp_path):
    path = tmp_path / "events.jsonl"
    numbers = (1, 2.5, np.float32(2.5), np.int64(3))
    add_event(path, "diverged", 3, loss=float("nan"), batch=Path("b.npz"), numbers=numbers, text="é\n\u2028", none=None)
    values = json.loads(path.read_bytes(), parse_constant=pytest.fail)  # NaN is not JSON
    details = {"loss": "nan", "batch": "b.npz", "numbers": [1, 2.5, 2.5, 3], "text": "é\n\u2028", "none": None}
    assert {name: values[name] for name in details} == details
    assert read_events(path)[0].details == details
