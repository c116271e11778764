"""Recall over a distance: the task, the reach of windows, the models' sizes, the command."""

import json

import numpy as np
import pytest

from benchmarks import long_range
from benchmarks.long_range import FULL, GRU, NOISE, QUERY, SMOKE, SYMBOLS, Setting

pytestmark = pytest.mark.tensorflow


def test_a_sequence_is_a_symbol_noise_and_a_query():
    ids, labels = long_range.sequences(7, 211, np.random.default_rng(1))
    assert ids.shape == (211, 8)
    np.testing.assert_array_equal(ids[:, 0], labels)
    assert set(labels.tolist()) == set(range(SYMBOLS))
    assert set(ids[:, 1:-1].ravel().tolist()) == set(range(SYMBOLS, SYMBOLS + NOISE))
    assert (ids[:, -1] == QUERY).all()


@pytest.mark.parametrize("setting", [Setting(), SMOKE])
def test_models_have_about_as_many_weights(setting):
    counts = {name: long_range.build(setting, name).count_params() for name in setting.models()}
    assert counts[GRU] == pytest.approx(counts[FULL], rel=0.1)
    assert all(count == counts[FULL] for name, count in counts.items() if name != GRU)


def test_windows_add_up_over_the_layers():
    model = long_range.build(SMOKE, "window 3", num_layers=2)
    assert long_range.reach(3, 2) == 4
    norms = [long_range.gradient_norm(model, distance, SMOKE) for distance in (2, 4, 5)]
    assert norms[0] > 0 and norms[1] > 0 and norms[2] == 0


def test_a_wrong_reach_is_noticed(monkeypatch):
    monkeypatch.setattr(long_range, "reach", lambda *_: 1)
    with pytest.raises(AssertionError, match="1 layers with window 3 see further than their reach"):
        long_range.train_within_reach(long_range.build(SMOKE, "window 3"), 2, 0.01, SMOKE, 3, 1)


def test_the_rate_with_the_lowest_loss_is_taken():
    losses = {FULL: {"0.001": 0.4, "0.01": 0.3}, GRU: {"0.001": 0.5, "0.01": 0.6}}
    rates = {name: long_range.best_rate(Setting(), losses, name) for name in (FULL, GRU, "window 4")}
    assert rates == {FULL: 0.01, GRU: 0.001, "window 4": 0.01}
    assert long_range.best_rate(SMOKE, {}, GRU) == 0.01


@pytest.mark.slow
def test_the_command_learns_what_is_within_reach_and_draws(tmp_path, monkeypatch, capsys):
    files = {"--results": tmp_path / "new" / "small.json", "--image": tmp_path / "new" / "small.png"}
    arguments = ["--smoke", *(str(each) for pair in files.items() for each in pair)]
    long_range.main(arguments)
    first = capsys.readouterr().out
    content = json.loads(files["--results"].read_text(encoding="utf-8"))
    near, far = ({name: model["distances"][d] for name, model in content["models"].items()} for d in ("2", "9"))
    assert min(each["accuracy"] for each in near.values()) > 0.9
    assert far[FULL]["accuracy"] > 0.9
    assert content["from_scratch"][FULL]["9"]["accuracy"] > 0.9
    beyond = far["window 3"]
    assert beyond["beyond_reach"] and beyond["accuracy"] < 0.4
    assert beyond["gradient_untrained"] == beyond["gradient_trained"] == 0 < far[GRU]["gradient_untrained"]
    assert content["stacks"]["2"]["distances"]["4"]["accuracy"] > 0.9
    assert files["--image"].stat().st_size > 10_000

    monkeypatch.setattr(long_range, "train", None)  # a second run trains nothing
    long_range.main(arguments)
    assert capsys.readouterr().out in first
