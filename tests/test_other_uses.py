"""The examples of other uses: their short forms learn more than the baselines, and their data are what they say."""

import json
import re
import runpy
import sys
from concurrent.futures import Future

import keras
import numpy as np
import pytest
from test_examples import ROOT, listings, load

from benchmarks.tools import other_uses

pytestmark = pytest.mark.tensorflow

EXAMPLES = (
    "character_model",
    "classifier",
    "forecast",
    "image_patches",
    "masked_pretraining",
    "question_answering",
    "spoken_words",
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_first_lines_have_the_command(name):
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert f"Run it: python examples/{name}.py" in text.splitlines()[2]
    assert "--smoke" in text
    assert len(text.splitlines()) <= 150


@pytest.mark.slow
def test_the_classifier_generalizes_where_a_bag_of_words_does_not():
    example = load("classifier")
    accuracy = example.main(**example.SMOKE)
    assert accuracy["encoder, test"] > 0.9
    assert accuracy["encoder, training"] - accuracy["encoder, test"] < 0.05
    assert accuracy["encoder, test"] > accuracy["bag of words, test"] + 0.05


def test_the_verdict_of_a_review_is_that_of_the_right_opinion():
    example = load("classifier")
    reviews, labels = example.make_reviews(300, seed=3)
    assert len(set(reviews)) == 300 and set(labels) == {0, 1}
    for review, label in zip(reviews, labels, strict=True):
        first, link, second = re.fullmatch(r"(the .*) (but|yet|although|even though) (the .*)", review).groups()
        words = (second if link in ("but", "yet") else first).split()
        assert label == ((words[-1] in example.GOOD) != (words[-2] in ("not", "never"))), review


@pytest.mark.slow
def test_the_character_model_learns_and_continues_the_prompt():
    example = load("character_model")
    bits, text = example.main(**example.SMOKE)
    assert text.startswith("The ") and len(text) > len("The ")
    assert bits["Transformer"] < bits["1-gram"] - 0.5
    assert bits["3-gram"] < bits["2-gram"] < bits["1-gram"]


def test_n_grams_are_those_of_witten_and_bell():
    example = load("character_model")
    train, test = np.array([3, 3, 4]), np.array([3, 4, 5])  # aab, abc
    unigram = [(2 + 2 / 7) / 5, (1 + 2 / 7) / 5, (0 + 2 / 7) / 5]  # of a, b and c: two kinds among three characters
    bigram = [unigram[0], (1 + 2 * unigram[1]) / 4, unigram[2]]  # after a are a and b; nothing is known after b
    expected = [-np.log2(probabilities).mean() for probabilities in (unigram, bigram)]
    np.testing.assert_allclose(example.n_gram_bits(train, test, 2, vocabulary_size=7), expected)


def test_bits_of_a_model_count_each_character_once():
    example = load("character_model")
    embedding = keras.layers.Embedding(8, 8, embeddings_initializer="zeros")
    model = keras.Sequential([keras.Input((None,), dtype="int32"), embedding])  # every character is equally likely
    model.compile(loss=example.ka.training.MaskedCrossEntropy(), metrics=[example.ka.training.Perplexity()])
    ids = 3 + np.arange(300) % 5
    assert example.model_bits(model, ids) == pytest.approx(3)
    assert float(model.metrics[1].metrics[0].count) == 300


@pytest.mark.slow
def test_pre_training_helps_where_labels_are_few():
    example = load("masked_pretraining")
    curves = example.main(**example.SMOKE)
    (pre_trained,), (scratch,) = curves["pre-trained encoder"][16], curves["encoder from scratch"][16]
    assert pre_trained > scratch + 0.05


def test_reviews_praise_or_blame_throughout():
    example = load("masked_pretraining")
    ids, labels = example.make_reviews(200, seed=1)
    polarity = {}
    for row, label in zip(ids, labels, strict=True):
        clauses = " ".join(example.VOCABULARY[id] for id in row).strip().split(" , ")
        assert len(clauses) == example.CLAUSES
        for clause in clauses:
            *start, first, link, second = clause.split()
            praise = label != (start[-1] == "not")
            assert link == "and"
            assert all(polarity.setdefault(word, praise) == praise for word in (first, second))
    assert sorted(polarity.values()) == [False] * 40 + [True] * 40


def test_naive_bayes_knows_the_words():
    example = load("masked_pretraining")
    data = np.array([[7, 8, 0], [9, 10, 0]]), np.array([0, 1])
    assert example.naive_bayes(data, (np.array([[9, 0, 0], [8, 0, 0], [8, 0, 0]]), np.array([1, 0, 1]))) == 2 / 3


@pytest.mark.slow
def test_image_patches_learn_the_digits():
    pytest.importorskip("sklearn")
    example = load("image_patches")
    accuracy = example.main(**example.SMOKE)
    assert accuracy["encoder, with shifted images"] > 0.8
    assert accuracy["logistic regression"] > 0.9


def test_patches_are_squares_of_the_image():
    pytest.importorskip("sklearn")
    example = load("image_patches")
    image = np.arange(64).reshape(1, 8, 8)
    patches = example.patches_of(image)
    assert patches.shape == (1, 16, 4)
    assert patches[0, 0].tolist() == [0, 1, 8, 9]
    assert patches[0, 6].tolist() == image[0, 2:4, 4:6].ravel().tolist()
    shifted = example.shifted(image)
    assert shifted.shape == (5, 8, 8)
    assert shifted[0].tolist() == image[0].tolist()
    assert shifted[1, 1:].tolist() == image[0, :-1].tolist() and not shifted[1, 0].any()


@pytest.mark.slow
def test_the_forecast_is_better_than_last_weeks_day(tmp_path):
    example = load("forecast")
    errors = example.main(**{**example.SMOKE, "image": str(tmp_path / "forecast.png")})
    assert errors["with the rules known"] < errors["encoder"] < errors["same day of last week"]
    assert (tmp_path / "forecast.png").stat().st_size > 5000


def test_windows_are_followed_by_their_day():
    example = load("forecast")
    series = np.arange(1, 2 * 17 * 24 + 1, dtype="float64").reshape(2, 17, 24)  # 3 windows each
    inputs, labels, means = example.windows(series)
    assert inputs.shape == (6, 14, 24) and labels.shape == (6, 24) and means.shape == (6, 1)
    np.testing.assert_allclose(inputs[1] * means[1], series[0, 1:15], rtol=1e-6)
    np.testing.assert_allclose(labels[5] * means[5], series[1, 16], rtol=1e-6)


@pytest.mark.slow
def test_words_are_recognized_by_their_order():
    example = load("spoken_words")
    accuracy = example.main(**example.SMOKE)
    assert accuracy["encoder"][0] > accuracy["mean spectrum"][0] + 0.1
    assert accuracy["encoder"][0] > accuracy["encoder"][-1]  # noise makes it harder


def test_a_spectrogram_shows_the_frequency():
    example = load("spoken_words")
    time = np.arange(example.SAMPLES) / example.RATE
    frames = example.spectrogram(np.sin(2 * np.pi * 1000 * time)[None])
    assert frames.shape == (1, 30, example.BANDS)
    assert set(frames[0].argmax(-1)) <= {7, 8}  # bands of 125 Hz


@pytest.mark.slow
def test_both_networks_answer_better_than_a_guess(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["question_answering.py", "--smoke"])
    runpy.run_path(str(ROOT / "examples" / "question_answering.py"), run_name="__main__")  # as the command does
    printed = capsys.readouterr().out
    accuracy = {name: float(value) for name, value in re.findall(r"test accuracy of (.*): (.*)%", printed)}
    guess = accuracy["the last place that is named"]
    assert accuracy["memory network"] > guess + 10
    assert accuracy["encoder"] > guess + 10
    weights = np.array([row.split() for row in re.findall(r"^((?:[01]\.\d\d ){3})", printed, re.MULTILINE)], "float64")
    assert weights.shape == (10, 3)  # facts, hops
    np.testing.assert_allclose(weights.sum(0), 1, atol=0.06)


def test_answers_follow_from_the_stories():
    example = load("question_answering")
    stories, answers, _ = example.make_stories(100, 0.5, seed=3)
    kinds = set()
    for story, answer in zip(stories, answers, strict=True):
        *facts, question = (" ".join(example.VOCABULARY[id] for id in row).split() for row in story)
        asked = question[-1]
        owner = (
            asked if asked in example.PEOPLE else next(fact[0] for fact in facts if fact[1:] == ["took", "the", asked])
        )
        kinds.add(owner == asked)
        assert [fact[-1] for fact in facts if fact[:2] == [owner, "went"]][-1] == example.PLACES[answer]
    assert kinds == {True, False}


def test_the_listings_of_the_page_run():
    names = {}
    for code in listings("docs/experiments/other_uses.md"):
        exec(compile(code, "other_uses.md", "exec"), names)
    outputs = {
        "classifier": (None, 1),
        "language_model": (None, None, 152),
        "masked_words": (None, None, 97),
        "praise": (None, 1),
        "digits": (None, 10),
        "forecaster": (None, 24),
        "words": (None, 10),
        "memory_network": (None, 6),
        "encoder": (None, 6),
    }
    assert {name: names[name].output_shape for name in outputs} == outputs


class Here:
    """Runs a function in this process."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


def test_the_command_keeps_each_result_and_resumes(tmp_path, monkeypatch, capsys):
    runs = []
    monkeypatch.setattr(other_uses, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(other_uses, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(other_uses, "run", lambda name: (runs.append(name), ({"accuracy": 0.5}, 12.3))[1])
    other_uses.RESULTS.mkdir(parents=True)
    assert sorted(other_uses.EXAMPLES) == sorted(EXAMPLES)
    other_uses.main(["forecast"])
    other_uses.main([])
    assert runs[0] == "forecast" and sorted(runs) == sorted(EXAMPLES)  # each once
    content = json.loads((other_uses.RESULTS / "other_uses.json").read_text(encoding="utf-8"))
    assert content["classifier"]["result"] == {"accuracy": 0.5} and content["classifier"]["seconds"] == 12
    assert "forecast: 12 s" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        other_uses.main(["forecats"])
    assert "no example is called forecats; there are: classifier" in capsys.readouterr().err
