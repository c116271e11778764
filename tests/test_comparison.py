"""The comparison of two systems: the statistics, and the command that compares two runs."""

import json
import os
import random
import subprocess
import sys

import keras
import numpy as np
import pytest
import sacrebleu
from click.testing import CliRunner

from keras_attention import Transformer
from keras_attention.cli import main
from keras_attention.pipeline import MetricComparison, RunConfig, RunFolder, compare_translations
from keras_attention.pipeline.comparison import Comparison
from keras_attention.text import SubwordTokenizer

pytestmark = pytest.mark.tensorflow

WORDS = [f"word{number}" for number in range(53)]


def sentences(choose, number):
    return [" ".join(choose.choices(WORDS, k=choose.randint(3, 11))) for _ in range(number)]


def with_errors(choose, texts, rate):
    """Translations in which a word is wrong with some probability."""
    return [" ".join(w if choose.random() > rate else choose.choice(WORDS) for w in text.split()) for text in texts]


@pytest.fixture(scope="module")
def systems():
    """References, and translations of them by two systems, the second of which is better."""
    choose = random.Random(3)
    references = sentences(choose, 211)
    return with_errors(choose, references, 0.4), with_errors(choose, references, 0.2), references


def test_the_better_system_is_named(systems):
    comparison = compare_translations(*systems, names=("old", "new"), samples=199)
    for metric in (comparison.bleu, comparison.chrf):
        assert metric.p_value == pytest.approx(1 / 200)
        assert metric.significant
        assert metric.difference > 5
        for score, interval in ((metric.first, metric.first_interval), (metric.second, metric.second_interval)):
            assert interval[0] < score < interval[1]
    assert comparison.conclusion == "new is better (BLEU p = 0.005, chrF p = 0.005)"
    first, second, references = systems
    swapped = compare_translations(second, first, references, names=("new", "old"), samples=199)
    assert swapped.conclusion == comparison.conclusion
    assert swapped.bleu.difference == pytest.approx(-comparison.bleu.difference)


def test_equal_translations_are_not_different(systems):
    first, _, references = systems
    comparison = compare_translations(first, list(first), references, samples=199)
    for metric in (comparison.bleu, comparison.chrf):
        assert (metric.p_value, metric.difference) == (1, 0)
        assert metric.first_interval == metric.second_interval
    assert comparison.conclusion == "No significant difference (BLEU p = 1.000, chrF p = 1.000)"


def test_systems_of_equal_quality_are_seldom_called_different():
    choose = random.Random(5)
    significant = 0
    for seed in range(1, 41):
        references = sentences(choose, 101)
        first, second = (with_errors(choose, references, 0.3) for _ in range(2))
        significant += compare_translations(first, second, references, samples=199, seed=seed).bleu.significant
    assert significant <= 5  # 2 are expected


def test_the_numbers_are_those_of_paired_bootstrap_resampling(systems):
    """Against a second implementation, which scores each sample as sacreBLEU scores a test set."""
    first, second, references = (texts[:43] for texts in systems)
    samples, seed = 53, 7
    rows = np.random.default_rng(seed).choice(len(references), size=(samples, len(references)))
    scores = [
        [
            sacrebleu.corpus_bleu([texts[row] for row in each], [[references[row] for row in each]]).score
            for each in rows
        ]
        for texts in (first, second)
    ]
    differences = np.abs(np.subtract(*scores))
    observed = abs(sacrebleu.corpus_bleu(first, [references]).score - sacrebleu.corpus_bleu(second, [references]).score)
    p_value = (np.sum(differences - differences.mean() > observed) + 1) / (samples + 1)
    bleu = compare_translations(first, second, references, samples=samples, seed=seed).bleu
    assert bleu.p_value == pytest.approx(p_value)
    assert abs(bleu.difference) == pytest.approx(observed)
    for interval, each in zip((bleu.first_interval, bleu.second_interval), scores, strict=True):
        half = np.ptp(np.sort(each)[1:-1]) / 2  # 53 // 40 left out at each end
        assert interval == pytest.approx((np.mean(each) - half, np.mean(each) + half), abs=1e-3)


def test_the_seed_makes_it_reproducible(systems, monkeypatch):
    first, _, references = systems
    second = with_errors(random.Random(11), references, 0.38)
    monkeypatch.setenv("SACREBLEU_SEED", "99")
    one, same, other = (compare_translations(first, second, references, samples=199, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.bleu.first_interval != other.bleu.first_interval
    assert "bs:199|seed:1|" in one.bleu.signature
    assert os.environ["SACREBLEU_SEED"] == "99"
    monkeypatch.delenv("SACREBLEU_SEED")
    assert compare_translations(first, second, references, samples=199, seed=1) == one
    assert "SACREBLEU_SEED" not in os.environ


def metric(first, second, p_value):
    return MetricComparison(first, second, (first - 1, first + 1), (second - 1, second + 1), p_value, "nrefs:1")


@pytest.mark.parametrize(
    ("bleu", "chrf", "count", "conclusion"),
    [
        (metric(20, 22, 0.003), metric(40, 43, 0.012), 2000, "B is better (BLEU p = 0.003, chrF p = 0.012)"),
        (metric(22, 20, 0.0001), metric(43, 40, 0.001), 2000, "A is better (BLEU p < 0.001, chrF p = 0.001)"),
        (metric(20, 21, 0.03), metric(40, 41, 0.3), 2000, "No significant difference (BLEU p = 0.030, chrF p = 0.300)"),
        (
            metric(20, 22, 0.003),
            metric(40, 41, 0.2),
            2000,
            "B is better by BLEU (p = 0.003), no significant difference by chrF (p = 0.200)",
        ),
        (
            metric(20, 21, 0.2),
            metric(41, 40, 0.01),
            2000,
            "No significant difference by BLEU (p = 0.200), A is better by chrF (p = 0.010)",
        ),
        (
            metric(20, 22, 0.003),
            metric(43, 40, 0.01),
            2000,
            "B is better by BLEU (p = 0.003), A is better by chrF (p = 0.010)",
        ),
        (
            metric(20, 90, 0.001),
            metric(20, 90, 0.001),
            99,
            "No conclusion: 99 sentences are too few for this test, which needs 100",
        ),
    ],
)
def test_the_conclusion_follows_from_both_metrics(bleu, chrf, count, conclusion):
    comparison = Comparison("A", "B", count, bleu, chrf)
    assert comparison.conclusion == conclusion
    assert f"{conclusion}.\n" in str(comparison)


def test_the_table_has_the_scores_with_their_intervals():
    lines = str(Comparison("runs/small", "runs/b", 2000, metric(20, 22, 0.003), metric(40, 43, 0.012))).splitlines()
    assert lines[:5] == [
        "            BLEU, 95% interval  chrF, 95% interval",
        "runs/small  20.0  19.0–21.0     40.0  39.0–41.0",
        "runs/b      22.0  21.0–23.0     43.0  42.0–44.0",
        "difference  +2.0                +3.0",
        "p-value     0.003               0.012",
    ]
    assert lines[6:] == ["BLEU nrefs:1", "chrF nrefs:1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, r"`samples` must be a .* Received: samples=0"),
        ({"seed": 0}, r"`seed` must be a .* Received: seed=0"),
        ({"tokenize": "word"}, "Received: tokenize='word'"),
        ({"second": ["a"]}, "Received: 2 and 1 translations, 2 references"),
        ({"first": [], "second": [], "references": []}, "Received: 0 and 0 translations, 0 references"),
    ],
)
def test_wrong_calls(changes, message):
    texts = {name: ["a b", "c d"] for name in ("first", "second", "references")}
    with pytest.raises(ValueError, match=message):
        compare_translations(**{**texts, **changes})


# ---- two runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two untrained runs, `one` and `two`, and a test set of 101 lines."""
    folder = tmp_path_factory.mktemp("comparison")
    texts = sentences(random.Random(7), 101)
    for name in ("test.en", "test.de"):
        (folder / name).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    source, target = str(folder / "test.en"), str(folder / "test.de")
    tokenizer = SubwordTokenizer.train(source, 61)
    sizes = {"num_layers": 1, "num_heads": 1, "hidden_dim": 8, "intermediate_dim": 8}
    files = {"source": source, "target": target, "valid_source": source, "valid_target": target}
    config = RunConfig.from_preset("tiny", vocabulary_size=tokenizer.vocabulary_size, model=sizes, **files)
    for seed, name in enumerate(("one", "two")):
        run = RunFolder(folder / name)
        run.start(config, tokenizer)
        run.checkpoints.mkdir()
        keras.utils.set_random_seed(seed)
        model = Transformer(config.transformer())
        model.save(run.model_file("final"))
    return folder


def command(*arguments, **options):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)], **options)


def test_two_runs_are_compared(folder, tmp_path):
    files = [folder / "one", folder / "two", folder / "test.en", folder / "test.de"]
    file = tmp_path / "results.json"
    done = command(*files, "--beam-size", 1, "--samples", 53, "--seed", 3, "--json", file)
    assert done.exit_code == 0, done.output
    translations = [RunFolder(run).translator(beam_size=1).translate(sources(folder)) for run in files[:2]]
    assert translations[0] != translations[1]
    names = tuple(map(str, files[:2]))
    expected = compare_translations(*translations, sources(folder), names=names, samples=53, seed=3)
    assert done.stdout == f"{expected}\n"
    assert expected.conclusion in done.stdout
    for run in names:
        assert f"{run}: 101 lines" in done.stderr
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results == {
        **json.loads(json.dumps(expected.to_dict())),
        "source": str(files[2]),
        "reference": str(files[3]),
        "checkpoint": None,
        "beam_size": 1,
        "length_penalty": 0.6,
    }
    assert results["bleu"]["difference"] == pytest.approx(results["bleu"]["second"] - results["bleu"]["first"])
    assert results["conclusion"] == expected.conclusion


def sources(folder):
    return (folder / "test.en").read_text(encoding="utf-8").splitlines()


class Upper:
    """Stands in for a translator."""

    def translate(self, texts, progress=False):
        return [text.upper() for text in texts]


@pytest.fixture
def loaded(monkeypatch):
    loaded = []
    monkeypatch.setattr(RunFolder, "translator", lambda run, **_: loaded.append(run.path.name) or Upper())
    return loaded


def test_the_results_as_json_go_to_standard_output(folder):
    code = """if True:
        import sys, test_comparison as test
        from keras_attention.pipeline import RunFolder
        RunFolder.translator = lambda run, **_: test.Upper()
        test.main(["compare", "one", "two", "test.en", "test.de", "--json", "-", "--samples", "9"])
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["sentences"] == 101
    assert "p-value" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one", "one", "test.en", "test.de"], "Both folders are the same run: name another. Received: one and one"),
        (["one", "link", "test.en", "test.de"], "Both folders are the same run"),
        (["one", "three", "test.en", "test.de"], "three is not the folder of a training run"),
        (["one", "two", "test.en", "short"], "Received: 101 lines in test.en and 1 in short"),
        (["one", "two", "test.en", "test.de", "--checkpoint", "best"], "Received: checkpoint='best'"),
        (["one", "two", "test.en", "test.de", "--samples", "0"], "Received: samples=0"),
        (["one", "two", "test.en", "test.de", "--seed", "0"], "Received: seed=0"),
        (["one", "two", "test.en", "test.de", "--bleu-tokenize", "word"], "Received: tokenize='word'"),
        (["one", "two", "test.en", "test.de", "--json", "no/a"], "make it first. Received: --json no/a"),
        (["one", "two", "test.en", "test.de", "--json", "test.de"], "would replace the input test.de"),
        (["one", "two", "test.en", "missing"], "'missing' does not exist"),
    ],
)
def test_everything_is_checked_before_a_model_is_loaded(folder, loaded, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "short").write_text("a\n")
    if not (folder / "link").exists():
        (folder / "link").symlink_to("one")
    done = command(*arguments)
    assert done.exit_code != 0
    assert message in done.output
    assert done.output.count("Error:") == 1
    assert not loaded


def test_a_run_that_cannot_be_loaded_is_noticed_before_translating(folder, tmp_path, monkeypatch):
    broken = RunFolder(tmp_path / "broken")
    (tmp_path / "broken").mkdir()
    for name in ("config.yaml", "tokenizer.model"):
        (tmp_path / "broken" / name).write_bytes((folder / "one" / name).read_bytes())
    broken.checkpoints.mkdir()
    broken.model_file("final").write_bytes(b"PK")
    monkeypatch.setattr("keras_attention.serving.Translator.translate", lambda *_, **__: pytest.fail("translates"))
    done = command(folder / "one", broken.path, folder / "test.en", folder / "test.de")
    assert "final.keras is damaged" in done.output


def test_the_seed_comes_from_the_variable_of_sacrebleu(folder, loaded, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["one", "two", "test.en", "test.de", "--samples", 9]
    assert "seed:12345|" in command(*arguments, env={"SACREBLEU_SEED": None}).stdout
    assert "seed:17|" in command(*arguments, env={"SACREBLEU_SEED": "17"}).stdout
    assert "seed:5|" in command(*arguments, "--seed", 5, env={"SACREBLEU_SEED": "17"}).stdout
    done = command(*arguments, env={"SACREBLEU_SEED": "none"})
    assert done.exit_code == 2
    assert "SACREBLEU_SEED" in done.output
    assert loaded == ["one", "two"] * 3
