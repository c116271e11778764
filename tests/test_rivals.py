"""The models of `examples/rivals.py`: equal sizes, masks, learning, and the comparison on made pairs."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_attention as ka

pytestmark = pytest.mark.tensorflow

EXAMPLE = Path(__file__).parent.parent / "examples" / "rivals.py"
spec = importlib.util.spec_from_file_location("rivals", EXAMPLE)
rivals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rivals)

MODELS = [name for name in rivals.RIVALS if name != "Transformer, Muon"]
VOCABULARY_SIZE = 101
# The others take longer without a graph; `test_each_learns` trains all.
COMPARED = ["last state", "convolutional", "Transformer, Muon"]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    keras.utils.set_random_seed(1)
    return rivals.RIVALS[request.param][0](VOCABULARY_SIZE)


@pytest.fixture
def ids():
    """Source ids (3, 7), of which row 1 has five, and target ids (3, 5)."""
    generator = np.random.default_rng(1)
    source, target = (generator.integers(4, VOCABULARY_SIZE, (3, length)) for length in (7, 5))
    source[1, 5:] = 0
    return source, target


def logits(model, source, target):
    return keras.ops.convert_to_numpy(model({"source": source, "target": target}))


def test_models_have_the_same_number_of_parameters_within_a_tenth():
    counts = [rivals.RIVALS[name][0](4000).count_params() for name in MODELS]
    assert max(counts) <= 1.1 * min(counts)


def test_padding_of_the_source_changes_nothing(model, ids):
    source, target = ids
    expected = logits(model, source, target)
    padded = logits(model, np.pad(source, ((0, 0), (0, 11))), target)
    np.testing.assert_allclose(padded, expected, atol=1e-5)
    trimmed = logits(model, source[1:2, :5], target[1:2])
    np.testing.assert_allclose(trimmed, expected[1:2], atol=1e-5)


def test_every_source_token_changes_the_logits(model, ids):
    source, target = ids
    expected = logits(model, source, target)[1]
    for position in range(5):
        other = source.copy()
        other[1, position] = 3
        assert np.abs(logits(model, other, target)[1] - expected).max() > 1e-5


def test_a_future_target_token_changes_no_earlier_logits(model, ids):
    source, target = ids
    other = target.copy()
    other[:, 3] = 3
    change = np.abs(logits(model, source, other) - logits(model, source, target)).max(axis=(0, 2))  # (T,)
    assert change[:3].max() <= 1e-6
    assert change[3:].min() > 1e-5


def test_each_learns(model, ids):
    source, target = ids
    model.compile(keras.optimizers.Adam(0.005), loss=ka.training.MaskedCrossEntropy(), run_eagerly=True)
    losses = [model.train_on_batch({"source": source, "target": target}, np.roll(target, -1, 1)) for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]


def test_join_keeps_the_pairs_together():
    pairs = [(f"s{number}", f"t{number}") for number in range(23)]
    joined = rivals.join(pairs, most=3)
    assert {len(source.split()) for source, _ in joined} == {1, 2, 3}
    assert all(target == source.replace("s", "t") for source, target in joined)
    assert sorted(word for source, _ in joined for word in source.split()) == sorted(source for source, _ in pairs)
    assert rivals.join(pairs, most=1) == pairs


@pytest.mark.slow
def test_comparison_in_small(tmp_path, capsys, monkeypatch):
    output, image = tmp_path / "rivals.json", tmp_path / "rivals.png"
    arguments = ["--smoke", "--output", str(output), "--image", str(image), "--models", *COMPARED]
    results = rivals.main(arguments)["training"]["results"]
    assert list(results) == COMPARED
    for each in results.values():
        assert each["steps"] == 3
        assert each["loss"][-1] < each["loss"][0]
        assert each["perplexity"] > 1
        assert each["tokens_per_second"] > 0
        assert sum(bucket["pairs"] for bucket in each["bleu_by_length"].values()) == 5
    assert image.stat().st_size > 0
    printed = capsys.readouterr().out
    assert all(f"\n| {name} | " in printed for name in COMPARED)

    # A second call has nothing to train.
    monkeypatch.setattr(rivals, "train", None)
    assert rivals.main(arguments)["training"]["results"] == json.loads(output.read_text("utf-8"))["training"]["results"]
    with pytest.raises(SystemExit, match="results of another setting"):
        rivals.main([*arguments, "--join", "2"])


def test_tuning_goes_on_where_the_best_rate_is_the_last(tmp_path, monkeypatch):
    tried = []

    def train(name, data, options, rate):
        tried.append(rate)
        return None, {"perplexity": 5 + abs(rate - (0.016 if name == "last state" else 0.003))}

    monkeypatch.setattr(rivals, "train", train)
    arguments = [
        "--smoke",
        "--tune",
        "--output",
        str(tmp_path / "rivals.json"),
        "--models",
        "last state",
        "Transformer",
    ]
    content = rivals.main(arguments)
    assert list(content["tuning"]["results"]["last state"]) == ["0.002", "0.004", "0.008", "0.016", "0.032"]
    assert list(content["tuning"]["results"]["Transformer"]) == ["0.002", "0.004", "0.008", "0.001"]
    assert rivals.best_rate(content, "last state") == 0.016
    assert rivals.best_rate(content, "convolutional") == rivals.RIVALS["convolutional"][2]
    assert len(tried) == 9
    assert rivals.main(arguments) == content
    assert len(tried) == 9, "a second call tries none again"


def test_an_error_says_what_to_give(capsys):
    with pytest.raises(SystemExit):
        rivals.main(["train.en", "train.de", "--steps", "5"])
    assert "give six texts, and --steps or --minutes; or --smoke" in capsys.readouterr().err
