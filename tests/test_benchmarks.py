"""The benchmarks' harness: order, medians, ratios, the file, the command line."""

import io
import json

import pytest
from rich.console import Console

from benchmarks.__main__ import main, names
from benchmarks.harness import Case, Report, measure_in_turn

CASE = Case("small", {"ours": [1.0, 4.0, 3.0], "peer": [2.0, 2.0, 6.0]})


def test_sides_are_measured_in_turn_and_the_order_turns():
    calls = []
    sides = {side: lambda side=side: calls.append(side) for side in "abc"}
    seconds = measure_in_turn(sides, rounds=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {side: len(times) for side, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_ratio_is_the_median_of_the_rounds_ratios():
    assert CASE.median("ours") == 3.0
    assert CASE.median("peer") == 2.0
    assert CASE.ratio("ours", "peer") == 0.5  # of 0.5, 2.0, 0.5
    assert CASE.ratio("peer", "peer") == 1.0


def test_report_is_shown_and_saved(tmp_path):
    report = Report("toy", "peer", {"rounds": 3}, [CASE])
    text = io.StringIO()
    report.show(Console(file=text, width=100))
    assert "/ peer" in text.getvalue()
    assert "3000" in text.getvalue()
    content = json.loads(report.save(tmp_path / "new").read_text(encoding="utf-8"))
    assert content["cases"][0]["time_over_peer"] == {"ours": 0.5, "peer": 1.0}
    assert content["cases"][0]["seconds"] == CASE.seconds
    assert content["machine"]["cores"] >= 1
    assert set(content["machine"]["packages"]) >= {"keras", "tensorflow"}


def test_every_benchmark_has_a_line_in_the_list(capsys):
    assert "attention" in names()
    main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(names())


def test_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "no benchmark is called nonsense; there are: attention" in capsys.readouterr().err
