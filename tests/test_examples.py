"""The examples and the listings of the pages run as they are written."""

import functools
import importlib.util
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_attention as ka
from keras_attention.demo import make_pairs
from keras_attention.pipeline import RunConfig
from keras_attention.training.presets import TRAINING_PRESETS

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).parent.parent


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """`train.en` and `train.de`, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for side, name in enumerate(("train.en", "train.de")):
        Path(name).write_text("".join(f"{pair[side]}\n" for pair in make_pairs("de", 300)), encoding="utf-8")
    return tmp_path


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_classifier_learns_and_padding_changes_nothing(capsys):
    example = load("classifier")
    example.main(epochs=1)
    change = float(re.search(r"change the predictions by (\S+)", capsys.readouterr().out).group(1))
    assert change < 1e-5


@pytest.mark.slow
def test_train_translator_then_ask_it(texts):
    load("train_translator").main("train.en", "train.de", "out", epochs=1)
    answers = load("ask_saved_model").ask("out", ["March 5, 2026", ""])
    assert len(answers) == 2
    assert all(np.isfinite(score) for _, score in answers)


def test_language_model_learns_lines_and_goes_on(texts, capsys):
    example = load("language_model")
    line = example.main("train.en", "March", vocabulary_size=200, epochs=2)
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss: (\S+)", printed)]
    assert losses[-1] < losses[0]
    assert line.startswith("March")
    assert printed.endswith(f"{line}\n")


def listings(page: str = "README.md") -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_readme_listings_run(texts):
    shortened = {
        "vocabulary_size=8000": "vocabulary_size=300",
        '"train.de"), 10': '"train.de"), 1',
        '"small"': '"tiny"',
    }
    shortened["dropout=dropout"] = "dropout=dropout, num_layers=1"
    codes = listings()
    assert len(codes) >= 2
    for code in codes:
        for long, short in shortened.items():
            code = code.replace(long, short)
        names = {}
        exec(compile(code, "README.md", "exec"), names)
        keras.backend.clear_session()
    assert names["model"].count_params() > 0
    assert (texts / "saved_models" / "en-de" / "1" / "saved_model.pb").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/tutorial.md", "examples/train_translator.py"])
def test_pages_train_as_the_command_does(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert 'from_preset("small", vocabulary_size=' in text
    assert 'preset_optimizer("small", model.config, total_steps=epochs * len(data), epochs=epochs)' in text
    assert "recommended_dropout(epochs, subword_dropout=subwords)" in text
    assert "recommended_subword_dropout(epochs)" in text and "seed=1, subword_dropout=subwords)" in text
    assert "epochs=epochs, " in text.replace("\n", " ")
    assert re.findall(r"tokens_per_batch=(\d+)", text) == [str(TRAINING_PRESETS["small"]["tokens_per_batch"])]
    assert re.findall(r"label_smoothing=([\d.]+)", text) == [str(RunConfig.label_smoothing)]


def test_generation_listings_run():
    names = {}
    for code in listings("docs/generation.md"):
        # An untrained model ends late.
        code = code.replace("generate(model, source)", "generate(model, source, DecodingOptions())")
        code = re.sub(r"DecodingOptions\((?!.*max_length)(?=.*\))", "DecodingOptions(max_length=4, ", code)
        code = code.replace("vocabulary_size=50", "vocabulary_size=50, num_layers=1")
        exec(compile(code, "generation.md", "exec"), names)
    numbers = {name: each.ids.numpy() for name, each in names.items() if isinstance(each, ka.decoding.Hypotheses)}
    assert numbers["best_3"].shape[:2] == (2, 3)
    assert numbers["sampled"].shape[:2] == (2, 5)
    assert (names["longer"].lengths.numpy() >= 4).all()
    assert numbers["prefixed"][:, 0, 0].tolist() == [11, 13]
    assert numbers["lines"][:, 0, 0].tolist() == [11, 14]
    assert (numbers["below_20"] < 20).all()
    streamed = np.stack(names["streamed"], axis=1)
    for ids in (*numbers.values(), streamed):
        assert ((ids == 3).sum(-1) == 1).all(), "each sentence ends"
    number = names["sampled"].lengths.numpy()[0, 0]  # sentence 0 with the same seed
    assert streamed[0, :number].tolist() == numbers["sampled"][0, 0, :number].tolist()


def test_migrating_listings_run(capsys):
    names = {}
    for code in listings("docs/migrating.md"):
        exec(compile(code, "migrating.md", "exec"), names)
    assert not any(record.warning for record in names["records"])
    for one, other in zip(names["ours"].weights, names["theirs"].weights, strict=True):
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(weight) for weight in (one, other)))
    assert names["y"].shape == names["z"].shape == (None, None, 128)
    printed = capsys.readouterr().out
    assert "LOST" not in printed
    assert printed.endswith("the table of the paper: False\n")
    x = np.zeros((1, 3, 128), "float32")
    np.testing.assert_allclose(names["positions"](x)[0], names["table"][:3], atol=1e-6)


def test_migrating_names_what_there_is():
    page = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    assert {"ka.MultiHeadAttention", "ka.decoding.beam_search"} <= set(re.findall(r"ka\.[\w.]*\w", page))
    for name in re.findall(r"\bka\.([\w.]*\w)", page):
        functools.reduce(getattr, name.split("."), ka)
