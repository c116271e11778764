"""The benchmark of learning curves: what a curve means, and that all of them train on the same batches."""

import json

import keras
import numpy as np
import pytest

import keras_attention as ka
from benchmarks import learning
from benchmarks.peers.side import Task
from keras_attention.demo import make_pairs
from keras_attention.text import SubwordTokenizer


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    pairs = make_pairs("de", 170)
    for name, part in (("train", pairs[:150]), ("dev", pairs[150:])):
        for side, language in enumerate(("en", "de")):
            (folder / f"{name}.{language}").write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
    texts = tuple(str(folder / f"{name}.{language}") for name in ("train", "dev") for language in ("en", "de"))
    SubwordTokenizer.train(texts[:2], 150).save(folder / "tokenizer.model")
    sizes = {"num_layers": 1, "hidden_dim": 12, "intermediate_dim": 24, "num_heads": 2, "vocabulary_size": 150}
    task = Task("", **sizes, dropout=0.0, tokens_per_batch=256, warmup_steps=2, learning_rate_scale=0.1)
    return learning.Setting(str(folder / "tokenizer.model"), texts, task, 140, (2, 3), 1, 1, False, "adam")


def test_gains_name_kernels():
    assert learning.gains_of("query,key=0.2;output=0.5") == {"query": 0.2, "key": 0.2, "output": 0.5}
    config = ka.TransformerConfig(29, num_layers=1, hidden_dim=6, intermediate_dim=7, num_heads=3)
    model = ka.Transformer(config)
    before = {weight.path: keras.ops.convert_to_numpy(weight) for weight in model.weights}
    learning.scale_kernels(model, inputs=None, gains={"query": 0.5})
    for weight in model.weights:
        gain = 0.5 if weight.path.endswith("query/kernel") else 1
        np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), gain * before[weight.path])
    with pytest.raises(SystemExit, match="no kernel is called querry"):
        learning.scale_kernels(model, inputs=None, gains={"querry": 0.5})


@pytest.mark.slow
def test_a_curve_is_the_perplexity_of_unseen_text(setting):
    glorot, same = (learning.learn_ours(setting, curve) for curve in ("glorot", "query=1"))
    assert list(glorot) == [2, 3]
    assert glorot == same
    assert all(1 < value < 300 for value in glorot.values())


@pytest.mark.slow
def test_torch_learns_from_the_same_batches(setting):
    pytest.importorskip("torch")
    curve = learning.learn_torch(setting)
    assert list(curve) == [2, 3] and all(1 < value < 300 for value in curve.values())


def test_the_command_writes_and_draws_the_curves(setting, tmp_path, monkeypatch, capsys):
    class Here:
        """Runs the curves in this process."""

        def __init__(self, *args, **kwargs):
            self.map = map

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

    monkeypatch.setattr(learning, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(learning, "learn", lambda curve, setting: (curve, {2: 50.0, 3: 40.0 + len(curve)}))
    monkeypatch.setattr(learning, "RESULTS", tmp_path)
    options = ["--steps", "3", "--every", "2", "--vocabulary-size", "150", "--curves", "glorot", "torch", "--image"]
    learning.main([*setting.texts, *options, str(tmp_path / "curves.png")])
    content = json.loads((tmp_path / "learning.json").read_text(encoding="utf-8"))
    assert content["perplexity"] == {"glorot": {"2": 50.0, "3": 46.0}, "torch": {"2": 50.0, "3": 45.0}}
    assert content["task"]["tokens_per_batch"] == 2048
    assert (tmp_path / "curves.png").stat().st_size > 5000
    assert "glorot: 50.0 at 2, 46.0 at 3" in capsys.readouterr().out
