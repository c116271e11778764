"""Table 1 of the paper: the formulas against counts by hand and gradients, the fits, the command."""

import itertools
import json

import pytest
import tensorflow as tf

from benchmarks import complexity
from benchmarks.complexity import ATTENTION, CONVOLUTION, RECURRENT, RESTRICTED, SMOKE, TABLE_1

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize("window", [1, 2, 5, 13, 17])
def test_visible_pairs_are_those_at_a_distance_below_the_window(window):
    pairs = [(i, j) for i, j in itertools.product(range(13), repeat=2) if abs(i - j) < window]
    assert complexity.visible_pairs(13, window) == len(pairs)


def test_operations_equal_counts_by_hand():
    n, d = 5, 7
    projections = 4 * n * 49  # queries, keys, values, outputs
    assert complexity.operations(ATTENTION, n, d) == 25 * 7 + 25 * 7 + projections  # scores, sums of values
    assert complexity.operations(RESTRICTED, n, d, window=2) == 13 * 7 + 13 * 7 + projections  # 5 + 4 + 4 pairs
    assert complexity.operations(RECURRENT, n, d) == 5 * (3 * 49 + 3 * 49)  # three gates, of input and of state
    assert complexity.operations(CONVOLUTION, n, d, kernel=3) == 3 * 5 * 49


def test_operations_grow_as_table_1_says():
    points = [(n, d) for n in (2**17, 2**18) for d in (64, 128)]
    sizes = {"window": 2**13, "kernel": 3}
    grows = {}
    for kind in TABLE_1:
        grows[kind] = complexity.exponents([(n, d, complexity.operations(kind, n, d, **sizes)) for n, d in points])
    of_table = {ATTENTION: (2, 1), RESTRICTED: (1, 1), RECURRENT: (1, 2), CONVOLUTION: (1, 2)}
    assert grows == {kind: pytest.approx(each, abs=0.05) for kind, each in of_table.items()}


def test_exponents_are_those_of_a_power_law():
    points = [(n, d, 3e-9 * n**1.7 * d**0.4) for n in (64, 128, 512) for d in (16, 48)]
    assert complexity.exponents(points) == pytest.approx((1.7, 0.4))


def test_only_the_recurrent_layer_has_steps_that_wait_for_each_other():
    assert {kind: complexity.sequential_steps(kind, 17) for kind in TABLE_1} == {
        ATTENTION: 1,
        RESTRICTED: 1,
        RECURRENT: 17,
        CONVOLUTION: 1,
    }


def test_paths_are_as_long_as_gradients_show():
    measured = {kind: complexity.measured_path_length(kind, SMOKE) for kind in TABLE_1}
    # 8 positions in one layer; in steps of 3; one step of time each; in steps of 2.
    assert measured == {ATTENTION: 1, RESTRICTED: 3, RECURRENT: 8, CONVOLUTION: 4}


def test_a_wrong_path_length_is_noticed(monkeypatch):
    monkeypatch.setattr(complexity, "path_length", lambda *_, **__: 2)
    with pytest.raises(AssertionError, match="restricted: the path has 3 steps, not 2"):
        complexity.measured_path_length(RESTRICTED, SMOKE)


def test_a_window_that_hides_something_is_noticed(monkeypatch):
    complexity.assert_correct(SMOKE)
    build = complexity.build
    monkeypatch.setattr(complexity, "build", lambda *args, window=0: build(*args, window=window and 3))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        complexity.assert_correct(SMOKE)


def test_the_command_measures_once_and_draws(tmp_path, monkeypatch, capsys):
    compiled = complexity.compiled

    def compiled_with_little_memory(kind, layer, mode, x):
        def fails():
            raise tf.errors.ResourceExhaustedError(None, None, "Out of memory while trying to allocate 12.07GiB.")

        is_large = (kind, mode, *x.shape) == (RECURRENT, "gradients", 1, 32, 16)
        return fails if is_large else compiled(kind, layer, mode, x)

    monkeypatch.setattr(complexity, "compiled", compiled_with_little_memory)
    files = {"--results": tmp_path / "new" / "small.json", "--image": tmp_path / "new" / "small.png"}
    arguments = ["--smoke", *(str(each) for pair in files.items() for each in pair)]
    complexity.main(arguments)
    first = capsys.readouterr().out
    content = json.loads(files["--results"].read_text(encoding="utf-8"))
    assert len(content["times"]) == 8  # 2 lengths, 2 widths, 2 modes
    assert content["times"]["32 × 16, gradients"].pop(RECURRENT) is None
    assert set(content["times"]["32 × 16, gradients"]) == set(TABLE_1) - {RECURRENT}
    assert all(min(times.values()) > 0 for times in content["times"].values())
    assert all(set(times) == set(TABLE_1) for name, times in content["times"].items() if name != "32 × 16, gradients")
    assert first.count("no memory") == 2  # while it measures and in the table
    assert set(content["sizes"]) == {"r 2", "r 4", "k 3", "k 5"}
    assert "| self-attention | n² · d | 1.50 |" in first  # the exponent of n of the operations at these lengths
    assert files["--image"].stat().st_size > 10_000

    monkeypatch.setattr(complexity, "seconds", None)  # a second run measures nothing
    complexity.main(arguments)
    assert capsys.readouterr().out in first


def test_attention_is_faster_until_it_is_not():
    times = {16: (1.0, 2.0), 32: (2.0, 4.0), 64: (8.0, 8.0), 128: (16.0, 17.0)}
    content = {
        "setting": {"lengths": list(times)},
        "times": {f"{n} × 8, forward": {ATTENTION: ours, RECURRENT: theirs} for n, (ours, theirs) in times.items()},
    }
    assert complexity.faster_up_to(content, 8, "forward") == "32"
    content["setting"]["lengths"] = [16, 32]
    assert complexity.faster_up_to(content, 8, "forward") == "32 (all)"
    content["setting"]["lengths"] = [64]
    assert complexity.faster_up_to(content, 8, "forward") == "none"
    content["times"]["64 × 8, forward"][RECURRENT] = None  # the memory did not suffice
    assert complexity.faster_up_to(content, 8, "forward") == "64 (all)"
