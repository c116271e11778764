"""The jobs of the command line: a run from text files, going on, averaging, translating, scoring, exporting."""

import csv
import dataclasses
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from keras_attention.cli import main
from keras_attention.demo import make_pairs
from keras_attention.demo.heat_map import draw_attention
from keras_attention.pipeline import RunConfig, RunFolder, average, compare_weights, score, train
from keras_attention.text import PackedBatches, ParallelCorpus, TokenBatches
from keras_attention.training import Muon

pytestmark = pytest.mark.tensorflow

SETTINGS = {"vocabulary_size": 200, "evaluate_every": 3, "keep_checkpoints": 2, "score_sentences": 5}


def write_texts(folder):
    pairs = make_pairs("de", 370)
    names = {}
    for split, part in (("train", pairs[:300]), ("valid", pairs[300:])):
        for side, language in enumerate(("en", "de")):
            path = folder / f"{split}.{language}"
            path.write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
            names[f"{split}.{language}"] = str(path)
    return names


def command(*arguments, given=None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=given)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def config(texts):
    files = {
        "source": texts["train.en"],
        "target": texts["train.de"],
        "valid_source": texts["valid.en"],
        "valid_target": texts["valid.de"],
    }
    return RunConfig.from_preset("tiny", **files, **SETTINGS, model={"num_layers": 1})


@pytest.fixture(scope="module")
def run(tmp_path_factory, config):
    """A run of seven steps: two full rounds and one step."""
    folder = tmp_path_factory.mktemp("runs") / "en-de"
    train(folder, config, max_steps=7)
    return RunFolder(folder)


def history_of(run):
    return list(csv.DictReader(run.history_file.read_text().splitlines()))


def step_of(run):
    return int(keras.models.load_model(run.model_file("last")).optimizer.iterations)


def test_a_run_leaves_what_the_next_commands_need(run, config):
    assert run.config == config
    assert step_of(run) == 7
    assert [path.name for path in run.weights] == ["step-00000006.weights.h5", "step-00000007.weights.h5"]
    assert all(run.model_file(name).exists() for name in ("final", "average", "best", "last"))
    assert list(run.logs.rglob("events.out.tfevents.*"))
    rows = history_of(run)
    assert len(rows) == 3
    for column in ("loss", "accuracy", "perplexity", "val_loss", "val_perplexity", "val_bleu", "tokens_per_second"):
        assert all(np.isfinite(float(row[column])) for row in rows), column
    assert not list(run.checkpoints.glob(".writing-*"))


def test_the_average_is_the_mean_and_final_is_the_better_one(run):
    def weights(name):
        return keras.models.load_model(run.model_file(name), compile=False).get_weights()

    model = keras.models.load_model(run.model_file("last"), compile=False)
    kept = []
    for path in run.weights:
        model.load_weights(path)
        kept.append(model.get_weights())
    for mean, *parts in zip(weights("average"), *kept, strict=True):
        np.testing.assert_allclose(mean, np.mean(parts, axis=0), atol=1e-6)
    final = weights("final")
    assert any(
        all(np.array_equal(a, b) for a, b in zip(final, weights(name), strict=True)) for name in ("average", "best")
    )


def assert_one_step_further(before, after):
    """Adam moves no weight by more than some learning rates where its state is that of before: nothing began anew."""
    rate = float(before.optimizer.learning_rate)
    moved = max(np.abs(a - b).max() for a, b in zip(before.get_weights(), after.get_weights(), strict=True))
    assert 0 < moved < 10 * rate


def test_a_run_goes_on_with_weights_optimizer_and_schedule(tmp_path, config):
    train(tmp_path / "run", config, max_steps=4)
    run = RunFolder(tmp_path / "run")
    before = keras.models.load_model(run.model_file("last"))
    train(tmp_path / "run", max_steps=5)
    after = keras.models.load_model(run.model_file("last"))
    assert int(after.optimizer.iterations) == 5
    assert_one_step_further(before, after)
    assert len(history_of(run)) == 3


def test_a_run_goes_on_with_the_optimizer_it_asked_for(tmp_path, config):
    config = dataclasses.replace(config, optimizer="muon")
    train(tmp_path / "run", config, max_steps=4)
    run = RunFolder(tmp_path / "run")
    before = keras.models.load_model(run.model_file("last"))
    assert type(before.optimizer) is Muon
    train(tmp_path / "run", max_steps=5)
    after = keras.models.load_model(run.model_file("last"))
    assert int(after.optimizer.iterations) == 5
    assert_one_step_further(before, after)


def test_a_limit_that_is_reached_trains_no_further(run):
    train(run.path, max_steps=7)
    assert step_of(run) == 7


def test_a_run_ends_at_its_total_steps_with_a_rate_of_zero(tmp_path, config):
    train(tmp_path / "run", dataclasses.replace(config, total_steps=3))
    run = RunFolder(tmp_path / "run")
    assert step_of(run) == 3
    optimizer = keras.models.load_model(run.model_file("last")).optimizer
    assert float(optimizer.learning_rate) == 0


def test_mixed_bfloat16_trains_and_is_restored(tmp_path, config):
    train(tmp_path / "run", dataclasses.replace(config, dtype="mixed_bfloat16"), max_steps=2)
    model = keras.models.load_model(RunFolder(tmp_path / "run").model_file("last"))
    assert model.compute_dtype == "bfloat16"
    assert model.get_layer("encoder").compute_dtype == "bfloat16"


def test_packed_rows_train_the_same_model(tmp_path, config, monkeypatch):
    """Batches of one shape; what the folder keeps is the model without segments, and it goes on."""
    shapes = set()
    lay_out = PackedBatches.batch

    def seen(batches, rows):
        inputs, labels = lay_out(batches, rows)
        shapes.update((name, each.shape) for name, each in inputs.items())
        return inputs, labels

    monkeypatch.setattr(PackedBatches, "batch", seen)
    packing = dataclasses.replace(config, packed_rows=3, max_length=40, dtype="mixed_bfloat16")
    train(tmp_path / "run", packing, max_steps=4)
    assert len(shapes) == 4
    assert {shape[0] for _, shape in shapes} == {3}
    run = RunFolder(tmp_path / "run")
    before = keras.models.load_model(run.model_file("last"))
    assert sorted(before.input) == ["source", "target"]
    assert before.compute_dtype == "bfloat16"
    assert int(before.optimizer.iterations) == 4
    for column in ("loss", "val_loss", "val_perplexity", "val_bleu"):
        assert all(np.isfinite(float(row[column])) for row in history_of(run)), column

    train(tmp_path / "run", max_steps=5)
    after = keras.models.load_model(run.model_file("last"))
    assert int(after.optimizer.iterations) == 5
    assert_one_step_further(before, after)
    assert RunFolder(tmp_path / "run").translator(beam_size=1).translate(["eins"])


def test_accumulated_batches_count_as_one_step(tmp_path, config, capsys):
    train(tmp_path / "run", dataclasses.replace(config, gradient_accumulation=2, total_steps=5), max_steps=4)
    run = RunFolder(tmp_path / "run")
    assert step_of(run) == 4
    assert [path.name for path in run.weights] == ["step-00000003.weights.h5", "step-00000004.weights.h5"]
    assert "4 steps" in capsys.readouterr().out
    rounds = [float(row["loss"]) for row in history_of(run)]
    assert len(rounds) == 2
    train(tmp_path / "run", epochs=999)
    optimizer = keras.models.load_model(run.model_file("last")).optimizer
    assert int(optimizer.iterations) == 5
    assert optimizer.gradient_accumulation_steps == 2
    assert float(optimizer.learning_rate) == 0, "the schedule counts steps, not batches"


def test_wrong_calls(tmp_path, run, config):
    with pytest.raises(ValueError, match="Give a limit: `epochs`, `max_steps`, `max_minutes`, or `total_steps`"):
        train(tmp_path, config)
    with pytest.raises(FileNotFoundError, match="is not the folder of a training run"):
        train(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"another config.*seed: 1 there, 2 given"):
        train(run.path, dataclasses.replace(config, seed=2), max_steps=1)
    with pytest.raises(ValueError, match="`preset` is one of tiny, small, base, big"):
        RunConfig.from_preset("huge")
    with pytest.raises(ValueError, match=r"`optimizer` is one of adam, muon. Received: optimizer='sgd'"):
        train(tmp_path, dataclasses.replace(config, optimizer="sgd"), max_steps=1)
    with pytest.raises(ValueError, match=r"`weights` is one of None, bfloat16, int8. Received: weights='int4'"):
        run.translator(weights="int4")
    with pytest.raises(ValueError, match="`checkpoint` is one of final"):
        run.translator("worst")
    with pytest.raises(ValueError, match=r"kept 2 checkpoints\. Received: last=3"):
        average(run.path, last=3)
    with pytest.raises(ValueError, match="2 translations, 1 references"):
        score(["a", "b"], ["a"])


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_lighter_weights_are_exported_and_their_cost_is_said(run, weights, tmp_path, monkeypatch):
    sizes = {}
    for chosen in (None, weights):
        options = [] if chosen is None else ["--weights", chosen]
        done = command("export", run.path, tmp_path / str(chosen), "--beam-size", 2, *options)
        assert done.exit_code == 0, done.output
        assert ("validation sentences" in done.output) == (chosen is not None)
        files = (tmp_path / str(chosen) / "1" / "variables").glob("variables.data*")
        sizes[chosen] = sum(file.stat().st_size for file in files)
    assert sizes[weights] < 0.62 * sizes[None]
    lighter = run.translator(beam_size=2, weights=weights)
    served = tf.saved_model.load(str(tmp_path / weights / "1")).signatures["serving_default"]
    texts = ["one hundred and three", "", "Friday"]
    assert [text.decode() for text in served(source=tf.constant(texts))["text"].numpy()] == lighter(texts)


def test_the_cost_in_bleu_is_that_of_the_validation_sample(run):
    class Fixed:
        def __init__(self, answers):
            self.answers = answers

        def translate(self, texts):
            return [self.answers[text] for text in texts]

    pairs = list(ParallelCorpus(run.config.valid_source, run.config.valid_target).pairs)
    right, wrong = ({source: answer for source, answer in each} for each in (pairs, [(s, "x") for s, _ in pairs]))
    line = compare_weights(run.path, Fixed(wrong), Fixed(right))
    assert line == "BLEU of 5 validation sentences: 0.00, with the trained weights 100.00 (-100.00)"


def test_text_that_cannot_be_used_leaves_no_run_behind(tmp_path, config):
    short = tmp_path / "short.de"
    short.write_text("eins\n")
    with pytest.raises(ValueError, match=r"short\.de"):
        train(tmp_path / "run", dataclasses.replace(config, target=str(short)), max_steps=1)
    assert not (tmp_path / "run").exists()


def test_attention_sums_to_one_and_is_drawn(run, tmp_path):
    translator = run.translator(beam_size=2)
    weights, written, read = translator.attention("March 5, 2026")
    assert weights.shape == (len(written), len(read))
    assert read[-1] == "</s>"
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    path = draw_attention(translator, "March 5, 2026", tmp_path / "attention.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    rows = path.with_suffix(".csv").read_text().splitlines()
    assert len(rows) == 1 + len(written)


def test_commands(run, texts, tmp_path):
    result = command("check", texts["train.en"], texts["train.de"])
    assert result.exit_code == 0, result.output
    assert "300 pairs" in result.output

    result = command(
        "tokenizer", texts["train.en"], texts["train.de"], "--vocabulary-size", 150, "-o", tmp_path / "t.model"
    )
    assert "150 pieces" in result.output
    assert (tmp_path / "t.model").exists()

    result = command("average", run.path, "--last", 2)
    assert result.output.strip().endswith("average.keras")

    result = command("translate", run.path, "--beam-size", 2, given="March 5, 2026\n\n12:30\n")
    assert result.exit_code == 0, result.output
    lines = result.stdout.split("\n")
    assert len(lines) == 4
    assert lines[:3] == run.translator(beam_size=2).translate(["March 5, 2026", "", "12:30"])

    result = command("evaluate", run.path, texts["valid.en"], texts["valid.de"], "--beam-size", 1)
    assert re.search(r"BLEU \d+\.\d  nrefs:1.*version:", result.output), result.output
    assert re.search(r"chrF \d+\.\d  nrefs:1", result.output)

    result = command("export", run.path, tmp_path / "served")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "served" / "1" / "saved_model.pb").exists()


def test_train_command_starts_a_run_and_goes_on(texts, tmp_path):
    run = tmp_path / "run"
    files = ["--source", texts["train.en"], "--target", texts["train.de"]]
    files += ["--valid-source", texts["valid.en"], "--valid-target", texts["valid.de"]]
    settings = [
        word for name in SETTINGS if name != "vocabulary_size" for word in ("--set", f"{name}={SETTINGS[name]}")
    ]
    sizes = ["--preset", "tiny", "--vocabulary-size", 200, "--set", "model={num_layers: 1}"]
    result = command("train", run, *files, *sizes, *settings, "--max-steps", 2)
    assert result.exit_code == 0, result.output
    assert "padding:" in result.output
    result = command("train", run, "--max-steps", 3)
    assert result.exit_code == 0, result.output
    assert "going on from step 2" in result.output
    assert step_of(RunFolder(run)) == 3


def test_a_run_that_is_none_is_named_before_a_text_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("keras_attention.cli.using.lines_of", lambda content: read.append(content) or [])
    assert "is not the folder of a training run" in command("translate", tmp_path, given="a\n").output
    assert not read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "RUN", "--source", "FILE", "--max-steps", 1], "Missing: --target, --valid-source, --valid-target"),
        (["train", "RUN", "--max-steps", 1], "is not the folder of a training run"),
        (["translate", "RUN"], "is not the folder of a training run"),
        (["check", "FILE", "missing.de"], "does not exist"),
        (["demo", "--locale", "xx_nowhere"], "xx_nowhere"),
    ],
)
def test_mistakes_get_one_line_and_no_traceback(arguments, message, texts, tmp_path):
    places = {"RUN": tmp_path / "nothing", "FILE": texts["train.en"]}
    result = command(*[places.get(argument, argument) for argument in arguments], given="")
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", sorted(main.commands))
def test_each_help_has_an_example(name):
    assert "keras-attention" in command(name, "--help").output.split("Example:")[1]


@pytest.mark.parametrize(
    "changes", [{}, {"packed_rows": 2, "max_length": 40, "gradient_accumulation": 2}], ids=["by tokens", "packed"]
)
def test_a_run_that_resumes_takes_the_next_epoch(tmp_path, config, monkeypatch, changes):
    """Not the first again: the seed and the number of the epoch decide which pairs a batch holds."""
    config, kind = dataclasses.replace(config, **changes), PackedBatches if "packed_rows" in changes else TokenBatches
    epochs, plan = [], kind.plan

    def watched(batches, epoch):
        if getattr(batches, "shuffle", True):  # not those that validate
            epochs.append(epoch)
        return plan(batches, epoch)

    monkeypatch.setattr(kind, "plan", watched)
    passes = config.gradient_accumulation  # so many passes are as many steps as there are batches
    train(tmp_path / "run", config, epochs=passes)
    assert epochs[0] == 0
    epochs.clear()
    train(tmp_path / "run", max_steps=step_of(RunFolder(tmp_path / "run")) + 1)
    assert epochs[0] == passes
