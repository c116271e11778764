"""What a run chooses by its text and its length: vocabulary, dropouts, weight decay, evaluations."""

import dataclasses
import math

import pytest

from keras_attention.demo import make_pairs
from keras_attention.pipeline import RunConfig, RunFolder, recipe, train
from keras_attention.pipeline.initial_weights import config_from
from keras_attention.pipeline.recipe import adopt_choices, choose_batches, choose_by_length, choose_vocabulary_size
from keras_attention.pipeline.run_data import RunData
from keras_attention.pipeline.run_model import build_model
from keras_attention.text import recommended_vocabulary_size
from keras_attention.training import recommended_dropout, recommended_subword_dropout, recommended_weight_decay

FILES = {"source": "train.en", "target": "train.fr", "valid_source": "dev.en", "valid_target": "dev.fr"}

SMALLEST = {"num_layers": 1, "hidden_dim": 8, "intermediate_dim": 8, "num_heads": 2}


def made(preset="small", **changes):
    return RunConfig.from_preset(preset, **FILES, **changes)


@pytest.mark.parametrize(
    ("epochs", "dropout"), [(0.01, 0.0), (5, 0.0), (7, 0.05), (10, 0.1), (20, 0.2), (40, 0.3), (1e9, 0.3)]
)
def test_dropout_grows_by_a_tenth_with_each_doubling(epochs, dropout):
    assert recommended_dropout(epochs) == dropout


@pytest.mark.parametrize(("width", "dropout"), [(64, 0.0), (128, 0.1), (256, 0.2), (320, 0.23), (1024, 0.3)])
def test_dropout_grows_with_the_width(width, dropout):
    assert recommended_dropout(20, width) == dropout


@pytest.mark.parametrize(("width", "most"), [(64, 0.07), (128, 0.15), (256, 0.3), (512, 0.3)])
def test_a_narrow_model_takes_less_dropout_at_most(width, most):
    assert recommended_dropout(1e9, width) == most


@pytest.mark.parametrize(
    ("epochs", "width", "subwords", "dropout"),
    [
        (7, 256, 0.0, 0.05),
        (10, 256, 0.0, 0.1),
        (14, 256, 0.05, 0.1),
        (1e9, 256, 0.1, 0.2),
        (1e9, 512, 0.1, 0.2),
        (14, 128, 0.0, 0.05),
        (20, 128, 0.05, 0.05),
        (28, 128, 0.1, 0.05),
        (1e9, 128, 0.1, 0.05),
        (1e9, 64, 0.05, 0.02),
    ],
)
def test_the_second_part_of_the_dropout_is_that_of_subwords(epochs, width, subwords, dropout):
    assert recommended_subword_dropout(epochs, width) == subwords
    assert recommended_dropout(epochs, width, subwords) == dropout


def test_a_wrong_subword_dropout_is_refused():
    with pytest.raises(ValueError, match=r"`subword_dropout` must be .* below 1\. Received: subword_dropout=1"):
        recommended_dropout(20, subword_dropout=1)


def test_dropouts_and_weight_decay_are_for_the_width_of_the_model(rate):
    chosen = choose_by_length(made(model={"hidden_dim": 128, "num_heads": 4}), 100, steps=2800, minutes=None)
    assert (chosen.subword_dropout, chosen.model["dropout"], chosen.weight_decay) == (0.1, 0.05, 0.57)


def test_no_epochs_have_no_dropout():
    with pytest.raises(ValueError, match=r"`epochs` must be a number above zero\. Received: epochs=0"):
        recommended_dropout(0)


@pytest.mark.parametrize(
    ("epochs", "steps", "width", "decay"),
    [
        (3, 192, 256, 1.0),
        (0.01, 768, 256, 0.5),  # less than three passes are as three
        (7, 7 * 113, 113, 0.5),
        (70, 70 * 113, 113, 0.5),  # more passes over the same text
        (7, 7 * 113, 4 * 113, 1.0),
        (7, 7 * 113, 5 * 113, 1.0),
        (11, 11 * 16 * 113, 113, 0.12),
    ],
)
def test_weight_decay_falls_with_the_root_of_the_steps_of_a_pass(epochs, steps, width, decay):
    assert recommended_weight_decay(epochs, steps, width) == decay


@pytest.mark.parametrize(("values", "name"), [((0, 5, 5), "epochs"), ((5, 0, 5), "steps"), ((5, 5, 0), "hidden_dim")])
def test_a_weight_decay_of_no_training_is_refused(values, name):
    with pytest.raises(ValueError, match=f"`{name}` must be .* Received: {name}=0"):
        recommended_weight_decay(*values)


@pytest.mark.parametrize(
    ("pairs", "size"), [(7, 100), (300, 300), (10_000, 2000), (160_419, 8000), (4_500_000, 37_000)]
)
def test_the_vocabulary_grows_with_the_root_of_the_text(pairs, size):
    assert recommended_vocabulary_size([("ab", "cd")] * pairs) == size


def test_the_vocabulary_has_room_for_every_character():
    assert recommended_vocabulary_size([("".join(map(chr, range(0x4E00, 0x4E00 + 331))), "b")] * 100) == 2 * 332


class _Words:
    """A tokenizer whose pieces are words."""

    def encode(self, texts):
        return [text.split() for text in texts]


def test_rows_are_packed_where_each_shape_is_compiled(monkeypatch):
    pairs = [("a b c", "d e"), ("f " * 70, "g " * 40), ("h", "i " * 300)]  # the last is longer than `max_length`
    assert choose_batches(made(), pairs, _Words()) == made()
    monkeypatch.setattr("keras.config.backend", lambda: "jax")
    chosen = choose_batches(made(), pairs, _Words())
    assert (chosen.row_length, chosen.packed_rows) == (256, 8)  # eight pairs of 37 tokens are more
    short = choose_batches(made(), pairs[:1] * 99 + pairs[1:], _Words())
    assert (short.row_length, short.packed_rows) == (72, 2048 // 72)  # the longest pair that is kept
    for kept in (made(packed_rows=3), made(max_shapes=3)):
        assert choose_batches(kept, pairs, _Words()) == kept
    assert adopt_choices(made(), chosen).row_length == 256
    assert adopt_choices(made(max_shapes=3), chosen).packed_rows is None


def test_a_run_that_begins_with_the_weights_of_another_chooses_its_own_rows(tmp_path):
    for name, settings, kept in (
        ("chosen", {"packed_rows": 23, "row_length": 88}, None),
        ("set", {"packed_rows": 3}, 3),
    ):
        config_file = RunFolder(tmp_path / name).config_file
        config_file.parent.mkdir()
        made(**settings, seed=7).save(config_file)
        config = config_from(tmp_path / name)
        assert (config.packed_rows, config.row_length, config.seed) == (kept, None, 7)
        assert config_from(tmp_path / name, packed_rows=5).packed_rows == 5


def test_a_run_that_begins_with_the_weights_of_another_chooses_its_own_decay(tmp_path):
    made(weight_decay=0.7).save(RunFolder(tmp_path).config_file)
    assert config_from(tmp_path).weight_decay is None
    assert config_from(tmp_path, weight_decay=0.1).weight_decay == 0.1
    assert config_from(tmp_path, optimizer="adam").optimizer == "adam"


@pytest.fixture
def rate(monkeypatch):
    """A machine on which a step of `small` takes half a second, all of it in matrix products."""
    config = made()
    products = 6 * config.transformer().num_parameters * config.tokens_per_batch
    rates = {"float32": 1, "mixed_bfloat16": 1}
    monkeypatch.setattr(recipe, "matrix_rate", lambda config: 2 * products * rates[config.dtype])
    monkeypatch.setattr(recipe, "softmax_rate", lambda: math.inf)
    return rates


@pytest.mark.parametrize(
    ("steps", "minutes", "passes"), [(700, None, 7), (None, 10, 12), (700, 10, 7), (2000, 10, 12), (1, None, 0.01)]
)
def test_dropouts_follow_the_passes_before_the_first_limit(rate, capsys, steps, minutes, passes):
    chosen = choose_by_length(made(), steps_per_epoch=100, steps=steps, minutes=minutes)
    subwords = recommended_subword_dropout(passes)
    assert chosen.subword_dropout == subwords
    assert chosen.model == {"dropout": recommended_dropout(passes, subword_dropout=subwords)}
    said = f"subword dropout: {subwords:g}, for about {passes:.1f} passes" in capsys.readouterr().out
    assert said == (subwords > 0)


def test_a_training_in_several_calls_is_as_long_as_all_of_them(rate):
    chosen, whole = (
        choose_by_length(made(total_steps=4000), steps_per_epoch=100, steps=steps, minutes=minutes)
        for steps, minutes in ((1000, 5), (4000, None))
    )
    assert chosen == whole
    assert (chosen.subword_dropout, chosen.model["dropout"], chosen.evaluate_every) == (0.1, 0.2, 250)


def test_what_is_set_of_the_dropouts_counts_for_the_other(rate):
    def chosen(**changes):
        config = choose_by_length(made(**changes), steps_per_epoch=100, steps=4000, minutes=None)
        return config.subword_dropout, config.model["dropout"]

    assert chosen() == (0.1, 0.2)
    assert chosen(subword_dropout=0) == (0, 0.3)
    assert chosen(subword_dropout=0.2) == (0.2, 0.1)
    assert chosen(model={"dropout": 0.25}) == (0.1, 0.25)
    assert chosen(consistency="rdrop") == (None, 0.3)


@pytest.mark.parametrize(("steps", "minutes", "expected"), [(700, None, 700), (2000, 10, 1200), (1, None, 1)])
def test_weight_decay_follows_the_steps_before_the_first_limit(rate, capsys, steps, minutes, expected):
    def chosen(preset="small", **changes):
        return choose_by_length(made(preset, **changes), 100, steps, minutes).weight_decay

    passes = expected / 100
    decay = chosen()
    assert decay == recommended_weight_decay(passes, expected)
    assert f"weight decay: {decay:g}, for about {passes:.1f} passes over the text" in capsys.readouterr().out
    assert chosen(model={"hidden_dim": 64}) == recommended_weight_decay(passes, expected, 64)
    assert chosen(weight_decay=0) == 0
    assert chosen(optimizer="adam") is None
    assert chosen("tiny", optimizer="muon") is not None


def test_the_optimizer_has_the_weight_decay_of_the_run():
    settings = {"vocabulary_size": 50, "dtype": "float32", "model": SMALLEST}
    for optimizer in ("muon", "adam"):
        for given, decay in ((0.3, 0.3), (0, None), (None, None)):
            config = made("tiny", optimizer=optimizer, weight_decay=given, **settings)
            assert build_model(config).optimizer.weight_decay == decay


def test_two_passes_and_accumulated_batches_take_longer(rate):
    for changes in ({"consistency": "simcut"}, {"gradient_accumulation": 2}):
        chosen = choose_by_length(made(**changes, subword_dropout=0), steps_per_epoch=100, steps=None, minutes=20)
        assert chosen.model == {"dropout": recommended_dropout(12)}, changes


@pytest.mark.parametrize(
    ("steps", "minutes", "every"),
    [(6000, None, 375), (None, 90, 675), (700, None, 240), (100, None, 100), (None, 1, 120)],
)
def test_evaluations_are_sixteen_or_two_minutes_apart(rate, steps, minutes, every):
    assert choose_by_length(made(), 100, steps, minutes).evaluate_every == every


def test_what_is_set_stays(rate, capsys):
    chosen = {"vocabulary_size": 333, "dtype": "float32", "evaluate_every": 7, "weight_decay": 0.2}
    chosen["subword_dropout"] = 0.07
    config = made(**chosen, model={"dropout": 0.4, "num_layers": 1})
    assert choose_vocabulary_size(config, [("a", "b")] * 9) is config
    assert choose_by_length(config, 100, 10, None) is config
    assert capsys.readouterr().out == ""


def test_a_limit_of_time_takes_the_dtype_with_more_steps(rate, capsys):
    assert choose_by_length(made(), 100, None, 10).dtype == "float32"
    rate["mixed_bfloat16"] = 2
    chosen = choose_by_length(made(), 100, None, 10)
    assert chosen.dtype == "mixed_bfloat16"
    assert chosen.model == {"dropout": recommended_dropout(24, subword_dropout=0.1)}  # twice as many steps
    assert "mixed_bfloat16, in which matrix products are 2.0 times as fast as in float32" in capsys.readouterr().out
    assert choose_by_length(made(), 100, 1200, None).dtype == "float32"
    assert choose_by_length(made(dtype="float32"), 100, None, 10).dtype == "float32"
    assert adopt_choices(made(), chosen).dtype == "mixed_bfloat16"
    assert adopt_choices(made(dtype="float32"), chosen).dtype == "float32"


def test_fast_matrix_products_leave_the_rest_of_a_step(rate, monkeypatch):
    rate["mixed_bfloat16"] = math.inf
    model = made().transformer()
    numbers = recipe.SOFTMAXES_PER_OUTPUT * made().tokens_per_batch * model.num_parameters / model.hidden_dim
    monkeypatch.setattr(recipe, "softmax_rate", lambda: 4 * numbers)  # a quarter of a second
    for dtype, seconds in {"float32": 0.75, "mixed_bfloat16": 0.25}.items():
        assert recipe.estimate_step_seconds(made(dtype=dtype)) == pytest.approx(seconds)


@pytest.mark.parametrize("preset", ["base", "big"])
def test_the_models_of_the_paper_keep_their_dropout(rate, preset):
    chosen = choose_by_length(made(preset), 1, 10**6, None)
    assert (chosen.model, chosen.subword_dropout) == ({}, None)


def test_a_rate_is_measured():
    for dtype in ("float32", "mixed_bfloat16"):
        for seconds in (0.01, 0):  # without time, one product
            assert 1e7 < recipe.matrix_rate(made("tiny", dtype=dtype), seconds=seconds) < 1e16


@pytest.mark.parametrize("seconds", [0.01, 0])
def test_the_rate_of_a_softmax_is_measured(seconds):
    assert 1e6 < recipe.softmax_rate(seconds) < 1e14


def test_an_open_config_adopts_the_choices_of_a_run(rate):
    chosen = choose_by_length(made(vocabulary_size=77, model={"num_layers": 1}), 100, 2000, None)
    assert adopt_choices(made(model={"num_layers": 1}), chosen) == chosen
    assert chosen.subword_dropout == 0.1
    other = adopt_choices(made(model={"num_layers": 1, "dropout": 0.5}, vocabulary_size=78, subword_dropout=0), chosen)
    assert (other.model["dropout"], other.vocabulary_size, other.subword_dropout) == (0.5, 78, 0)


@pytest.fixture
def open_config(tmp_path):
    """A config with the smallest model, whose vocabulary, dropout and evaluations are open."""
    pairs = make_pairs("de", 330)
    for name, part in (("train", pairs[:300]), ("dev", pairs[300:])):
        for side, language in enumerate(("en", "fr")):
            (tmp_path / f"{name}.{language}").write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
    files = {name: str(tmp_path / file) for name, file in FILES.items()}
    return RunConfig.from_preset("tiny", **files, model=SMALLEST, score_sentences=1)


def test_the_batches_are_sampled_as_the_steps_of_the_usual_ones_choose(open_config):
    asked = []

    def choose(config, steps_per_epoch):
        asked.append(steps_per_epoch)
        return config.replace(subword_dropout=0.3)

    usual_config, usual = RunData.read(open_config, None)
    config, sampled = RunData.read(open_config.replace(gradient_accumulation=3), usual.tokenizer, choose)
    assert (usual_config.subword_dropout, config.subword_dropout, asked) == (None, 0.3, [len(usual.batches) / 3])
    assert usual.batches.fingerprint()["subword_dropout"] == 0
    again, resumed = RunData.read(config, usual.tokenizer)
    assert again == config
    assert resumed.batches.fingerprint() == sampled.batches.fingerprint() != usual.batches.fingerprint()
    assert sampled.batches.num_tokens == resumed.batches.num_tokens > 1.1 * usual.batches.num_tokens
    given = open_config.replace(subword_dropout=0.2)
    same, kept = RunData.read(given, usual.tokenizer, lambda config, steps: asked.append(steps) or config)
    assert same.subword_dropout == kept.batches.fingerprint()["subword_dropout"] == 0.2
    assert asked[1] == len(usual.batches) < len(kept.batches)


def test_a_tokenizer_with_one_segmentation_has_no_dropout(open_config, monkeypatch):
    monkeypatch.setattr("keras_attention.pipeline.run_data.can_sample", lambda model: False)
    asked = []
    RunData.read(open_config, None, lambda config, steps: asked.append(config.subword_dropout) or config)
    assert asked == [0]


def test_a_run_records_and_keeps_its_choices(tmp_path, open_config, capsys, eager):
    folder = tmp_path / "run"
    train(folder, open_config, max_steps=3)
    assert "dropout: 0, for about 0." in capsys.readouterr().out
    run = RunFolder(folder)
    assert (run.config.vocabulary_size, run.config.dtype, run.config.evaluate_every) == (300, "float32", 3)
    assert run.config.model == {"dropout": 0.0, **SMALLEST}
    assert run.tokenizer.vocabulary_size == 300
    train(folder, open_config, max_steps=3)
    assert "dropout:" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds a run with another config.*Received: model: .*0\.0.*0\.4"):
        train(folder, dataclasses.replace(open_config, model={**SMALLEST, "dropout": 0.4}), max_steps=3)


def test_a_run_that_chose_nothing_keeps_its_dropout(tmp_path, open_config, capsys, eager):
    """Version 0.2 trained with the dropout of the preset where the config had none."""
    run = RunFolder(tmp_path / "run")
    train(run.path, open_config.replace(model={"dropout": 0.1, **SMALLEST}), max_steps=1)
    run.config.replace(model=SMALLEST, subword_dropout=None).save(run.config_file)
    capsys.readouterr()
    train(run.path, max_steps=2)
    assert (run.config.model, run.config.subword_dropout) == (SMALLEST, None)
    assert "dropout:" not in capsys.readouterr().out
