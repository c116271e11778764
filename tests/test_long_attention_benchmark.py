"""The benchmark of long attention: its sides agree, each in a process of its own, and what differs is named."""

import importlib.util
import json

import numpy as np
import pytest

from benchmarks import long_attention
from benchmarks.harness import Case
from benchmarks.long_attention import KERAS, OURS, TORCH, assert_equal, main, run

pytestmark = pytest.mark.tensorflow


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_all_sides_compute_the_same(monkeypatch):
    monkeypatch.setattr("benchmarks.tools.workers.PAUSE", 0)
    report = run(rounds=2, lengths=[67], heads=3, key_dim=5)
    (case,) = report.cases
    assert case.name == "67 tokens"
    assert {side: len(seconds) for side, seconds in case.seconds.items()} == {OURS: 2, KERAS: 2, TORCH: 2}
    assert all(second > 0 for seconds in case.seconds.values() for second in seconds)
    memory = report.setup["additional_memory_mib"]
    assert {side: list(each) for side, each in memory.items()} == {OURS: [67], KERAS: [67], TORCH: [67]}
    assert report.peer == OURS


class Stub:
    """A side that computes fixed arrays."""

    def __init__(self, *arrays):
        self.arrays = arrays

    def ask(self, name, length, file):
        np.savez(file, *self.arrays)


def test_a_side_that_differs_is_named():
    output, gradient = np.ones((1, 7, 3), "float32"), np.full((1, 7, 3), 2.0, "float32")
    same = Stub(output, gradient + 1e-5)
    assert_equal({OURS: Stub(output, gradient), TORCH: same}, 7)
    with pytest.raises(AssertionError, match="torch, 7 tokens"):
        assert_equal({OURS: Stub(output, gradient), KERAS: same, TORCH: Stub(output, gradient + 1e-3)}, 7)


def test_options_choose_lengths_and_sides(monkeypatch, tmp_path, capsys):
    asked = []

    def measured(*arguments):
        asked.append(arguments)
        return long_attention.Report("long_attention", OURS, {}, [Case("7 tokens", {OURS: [1.0], TORCH: [2.0]})])

    monkeypatch.setattr(long_attention, "run", measured)
    main(["--lengths", "7", "11", "--sides", TORCH, OURS, "--rounds", "3", "--results", str(tmp_path)])
    assert asked == [(3, [7, 11], [TORCH, OURS])]
    assert "2.000" in capsys.readouterr().out
    cases = json.loads((tmp_path / "long_attention.json").read_text(encoding="utf-8"))["cases"]
    assert cases[0]["time_over_peer"] == {OURS: 1.0, TORCH: 2.0}
    with pytest.raises(SystemExit):
        main(["--sides", TORCH])
    assert "the others are compared with keras_attention. Received: --sides torch" in capsys.readouterr().err
