"""The settings of a run: what each may be, and the file that keeps them."""

import pathlib

import numpy as np
import pytest
import yaml

from keras_attention.cli.training import _config
from keras_attention.pipeline import RunConfig, RunFolder
from keras_attention.pipeline.yaml_settings import read_yaml
from keras_attention.training.presets import TRAINING_PRESETS

FILES = {"source": "train.en", "target": "train.fr", "valid_source": "dev.en", "valid_target": "dev.fr"}
COUNTS = [
    "vocabulary_size",
    "tokens_per_batch",
    "max_length",
    "gradient_accumulation",
    "warmup_steps",
    "evaluate_every",
    "keep_checkpoints",
    "score_sentences",
    "packed_rows",
    "row_length",
    "max_shapes",
    "total_steps",
]

SETTINGS_OF_0_2 = [
    *FILES,
    "preset",
    "vocabulary_size",
    "split_digits",
    "model",
    "dtype",
    "tokens_per_batch",
    "max_length",
    "packed_rows",
    "optimizer",
    "gradient_accumulation",
    "warmup_steps",
    "learning_rate_scale",
    "total_steps",
    "label_smoothing",
    "evaluate_every",
    "keep_checkpoints",
    "score_sentences",
    "seed",
]


def made(**changes):
    return RunConfig.from_preset("tiny", **{**FILES, **changes})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "abc"])
def test_a_count_is_a_positive_integer(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be a positive integer. Received: {name}={value!r}"):
        made(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("source", "", "`source` must be the path of a text file. Received: source=''"),
        ("valid_target", 3, "`valid_target` must be the path"),
        ("preset", "huge", "`preset` is one of 'tiny', 'small', 'base', 'big'. Received: preset='huge'"),
        ("preset", ["tiny"], r"Received: preset=\['tiny'\]"),
        ("split_digits", 1, "`split_digits` must be True or False. Received: split_digits=1"),
        ("dtype", "float8", "`dtype` is one of 'float32', 'mixed_bfloat16', 'mixed_float16'. Received: dtype='float8'"),
        ("optimizer", "sgd", "`optimizer` is one of 'adam', 'muon'. Received: optimizer='sgd'"),
        ("weight_decay", -0.1, "`weight_decay` must be a number between 0 and 1. Received: weight_decay=-0.1"),
        ("learning_rate_scale", "fast", "`learning_rate_scale` must be a number above zero"),
        ("learning_rate_scale", float("nan"), "Received: learning_rate_scale=nan"),
        ("learning_rate_scale", True, "Received: learning_rate_scale=True"),
        ("label_smoothing", 1.5, "`label_smoothing` must be a number, at least 0 and below 1. Received: .*=1.5"),
        ("label_smoothing", float("nan"), "Received: label_smoothing=nan"),
        ("subword_dropout", 1, "`subword_dropout` must be a number, at least 0 and below 1. Received: .*=1"),
        ("subword_dropout", -0.1, "Received: subword_dropout=-0.1"),
        ("source_word_dropout", "some", "`source_word_dropout` must be a number, at least 0 and below 1"),
        ("consistency", "drop", "`consistency` is one of 'rdrop', 'simcut'. Received: consistency='drop'"),
        ("consistency_weight", -1, "`consistency_weight` must be a number above zero"),
        ("consistency_weight", 2.0, "`consistency_weight` is the weight of a consistency loss: set `consistency`"),
        ("ema", 1, "`ema` must be a number, at least 0 and below 1. Received: ema=1"),
        ("seed", -1, r"`seed` must be an integer, at least 0 and below 2\*\*32. Received: seed=-1"),
        ("seed", 2**32, "Received: seed=4294967296"),
        ("model", None, "`model` must be a dictionary with names among num_layers, .* Received: model=None"),
        ("model", {"layers": 2}, "`model` has no setting `layers`; did you mean `num_layers`?"),
        ("model", {"vocabulary_size": 5}, "`model` has no setting `vocabulary_size`"),
        ("model", {"num_heads": 7}, "`num_heads` must divide `hidden_dim`"),
        (
            "model",
            {"positions": "learned", "max_length": 255},
            r"learn as many positions .* Received: max_length=256, model={'max_length': 255}",
        ),
        ("model", {"normalize_first": "yes"}, "`normalize_first` must be True or False"),
        ("model", {"activation": "rleu"}, "`activation` is a function, .* Received: activation='rleu'"),
        ("evaluate_evry", 5, "A run has no setting `evaluate_evry`; did you mean `evaluate_every`?"),
    ],
)
def test_wrong_settings_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**{**FILES, name: value}) if name != "evaluate_evry" else made(**{name: value})
    with pytest.raises(ValueError, match=message):
        made().replace(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"packed_rows": 3, "max_shapes": 4},
            r"set `packed_rows` or `max_shapes`. Received: packed_rows=3, max_shapes=4",
        ),
        (
            {"row_length": 64},
            r"`row_length` is the length of `packed_rows`, .* row_length=64, packed_rows=None, max_length=",
        ),
        ({"packed_rows": 3, "row_length": 64, "max_length": 40}, r"at most `max_length`. Received: row_length=64, "),
    ],
)
def test_the_shapes_of_batches_are_set_in_one_way(changes, message):
    with pytest.raises(ValueError, match=message):
        made(**changes)


def test_what_is_given_is_kept_as_plain_values(tmp_path):
    config = made(
        source=pathlib.Path("a b.en"),
        seed=np.int64(7),
        learning_rate_scale=np.float32(0.5),
        model={
            "num_layers": np.int32(1),
            "dropout": 0.25,
        },
    )
    assert config.source == "a b.en"
    config.save(tmp_path / "config.yaml")
    assert RunConfig.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", ["1e-3", "+2E+1", "5.e-1", "0.001"])
def test_numbers_are_read_as_python_reads_them(text, tmp_path):
    file = tmp_path / "config.yaml"
    made(learning_rate_scale=0.125).save(file)
    file.write_text(file.read_text().replace("0.125", text))
    assert RunConfig.load(file).learning_rate_scale == float(text)


@pytest.mark.parametrize("text", ["1:30", "017", "0o17", "0x1f", "yes", "on", "nan", "2026-01-02", "1_", "1e"])
def test_other_words_are_text(text, tmp_path):
    """YAML 1.1 reads 1:30 as 90, 017 as 15, and `on` as True."""
    assert read_yaml(text) == text
    file = tmp_path / "config.yaml"
    made(source=text).save(file)
    assert RunConfig.load(file).source == text
    assert yaml.safe_load(file.read_text())["source"] == text, "for readers of YAML 1.1"
    with pytest.raises(ValueError, match=rf"`seed` must be an integer, .* Received: seed='{text}'"):
        made(seed=read_yaml(text))


@pytest.mark.parametrize("preset", TRAINING_PRESETS)
def test_a_preset_is_the_same_however_it_is_named(preset):
    config = RunConfig.from_preset(preset, **FILES)
    assert {name: getattr(config, name) for name in TRAINING_PRESETS[preset]} == TRAINING_PRESETS[preset]
    assert RunConfig(**FILES, preset=preset) == config
    assert made().replace(preset=preset) == config
    assert made(warmup_steps=7).replace(preset="tiny").warmup_steps == 7, "the preset that it has changes nothing"
    assert made().replace(preset=preset, warmup_steps=7) == RunConfig(**FILES, preset=preset, warmup_steps=7)


def test_the_learning_rate_follows_the_depth_unless_it_is_given():
    deep = {"num_layers": 3, "num_decoder_layers": 16}
    config = RunConfig.from_preset("small", **FILES, model=deep)
    assert config.learning_rate_scale == 0.75
    assert RunConfig.from_preset("tiny", **FILES, model=deep).replace(preset="small") == config
    assert RunConfig.from_preset("small", **FILES, model=deep, learning_rate_scale=1.5).learning_rate_scale == 1.5
    assert RunConfig.from_preset("small", **FILES).replace(model=deep) == config
    given = RunConfig.from_preset("small", **FILES, learning_rate_scale=0.5)
    assert given.replace(model=deep).learning_rate_scale == 0.5


def test_numbers_have_limits():
    with pytest.raises(ValueError, match=r"`warmup_steps` must be below 2\*\*31. Received: warmup_steps=2147483648"):
        made(warmup_steps=2**31)
    with pytest.raises(ValueError, match=r"`learning_rate_scale` must be a number above zero. Received: .*=10{400}"):
        made(learning_rate_scale=10**400)
    with pytest.raises(ValueError, match=r"`vocabulary_size` must be at least 5, .* Received: vocabulary_size=4"):
        made(vocabulary_size=4)


def test_a_name_that_looks_like_a_number_stays_a_name(tmp_path):
    config = made(source="1e3", target="ß 1:30")
    config.save(tmp_path / "config.yaml")
    assert RunConfig.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda text: "".join(text.splitlines(True)[:4]),
            r"config.yaml is not the .*: it lacks preset, vocabulary_size",
        ),
        (lambda text: text.replace("seed: 1\n", ""), "it lacks seed"),
        (lambda text: text + "sede: 2\n", "A run has no setting `sede`; did you mean `seed`?"),
        (lambda text: text.replace("seed: 1", "seed: one"), "`seed` must be an integer"),
        (lambda text: "", "it does not map names to settings"),
        (lambda text: "a: [", "not YAML: while parsing"),
        (lambda text: text + "seed: 2\n", "not YAML: `seed` is given twice"),
        (lambda text: text.replace("model: {}", "model: {dropout: 0, dropout: 0.1}"), "`dropout` is given twice"),
        (lambda text: text + "[" * 9999, "not YAML: "),
        (lambda text: "- 1\n", "it does not map names to settings"),
    ],
)
def test_a_file_that_is_no_config_is_refused(damage, message, tmp_path):
    file = tmp_path / "config.yaml"
    made().save(file)
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        RunConfig.load(file)
    assert "\n" not in str(caught.value)


def test_a_config_of_version_0_2_has_the_defaults_of_later_settings(tmp_path):
    """Such a config must have all settings of its version."""
    file = tmp_path / "config.yaml"
    added = {"subword_dropout": 0.1, "source_word_dropout": 0.1, "learning_rate_decay": 0.5}
    added |= {"consistency": "rdrop", "consistency_weight": 2.0, "ema": 0.9}
    made(seed=3, **added).save(file)
    lines = [line for line in file.read_text().splitlines() if line.split(":")[0] in SETTINGS_OF_0_2]
    assert [line.split(":")[0] for line in lines] == SETTINGS_OF_0_2
    file.write_text("\n".join(lines))
    assert RunConfig.load(file) == made(seed=3)
    for name in SETTINGS_OF_0_2:
        file.write_text("\n".join(line for line in lines if not line.startswith(f"{name}:")))
        with pytest.raises(ValueError, match=f"it lacks {name}\\. Defaults do not replace"):
            RunConfig.load(file)


def test_a_config_is_written_atomically(tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    made().save(file)
    monkeypatch.setattr(pathlib.Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match=r"config\.yaml"):
        made(seed=2).save(file)
    monkeypatch.undo()
    assert RunConfig.load(file) == made()
    assert list(tmp_path.iterdir()) == [file]


def test_set_changes_single_attributes_of_the_model(tmp_path):
    config = _config(tmp_path / "run", ["model.num_layers=1", "model.positions=rotary"], **FILES)
    assert config.model == {"num_layers": 1, "positions": "rotary"}
    RunFolder(tmp_path / "run").start(config)
    assert _config(tmp_path / "run", ["model.num_layers=2"]).model == {"num_layers": 2, "positions": "rotary"}
    with pytest.raises(ValueError, match="`model` has no setting `layers`; did you mean `num_layers`"):
        _config(tmp_path / "other", ["model.layers=2"], **FILES)


def test_one_message_names_all_wrong_settings(tmp_path):
    settings = {
        **{"preset": "huge", "seed": "one", "ema": 1, "sede": 2, "target": 5, "patiense": 3},
        "model": {"num_layers": "2", "layers": 2, "dropout": [0.1], "activation": None, "positions": ["rotary"]},
    }
    parts = [
        "A run has no setting `sede`; did you mean `seed`?",
        "A run has no setting `patiense`; did you mean `patience`?",
        "`preset` is one of 'tiny', 'small', 'base', 'big'. Received: preset='huge'",
        "`target` must be the path of a text file. Received: target=5",
        "`model` has no setting `layers`; did you mean `num_layers`?",
        "`activation` must be the name of a function. Received: activation=None",
        "`num_layers` must be a positive integer. Received: num_layers='2'",
        "`dropout` must be a number, at least 0 and below 1. Received: dropout=[0.1]",
        "`positions` is one of 'sinusoid', 'learned', 'rotary', 'alibi', 'relative'. Received: positions=['rotary']",
        "`ema` must be a number, at least 0 and below 1. Received: ema=1",
        "`seed` must be an integer, at least 0 and below 2**32. Received: seed='one'",
    ]
    with pytest.raises(ValueError, match="11 settings are wrong") as caught:
        RunConfig.from_preset(**settings)
    for number, part in enumerate(parts, 1):
        assert f"({number}) {part}" in str(caught.value)

    file = tmp_path / "config.yaml"
    file.write_text("source: a\nseed: one\nsede: 2\nmodel: {num_heads: 2.5}\n")
    with pytest.raises(
        ValueError, match=r"config\.yaml is not the .* 4 settings are wrong\. \(1\) A run has no"
    ) as caught:
        RunConfig.load(file)
    for part in ("it lacks target, valid_source", "num_heads=2.5", "seed='one'"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"2 settings are wrong\. \(1\) `consistency` .* \(2\) `seed` "):
        made().replace(seed=-1, consistency="drop")


@pytest.mark.parametrize(
    "model",
    [
        *(
            {name: value}
            for name in ("num_layers", "hidden_dim", "key_dim", "num_kv_heads")
            for value in ("4", 4.0, True)
        ),
        *({name: value} for name in ("dropout", "layer_norm_epsilon") for value in ("0.1", None, True, [0.1])),
        *({name: value} for name in ("remat", "normalize_first") for value in ("true", 1, None)),
        *(
            {name: value}
            for name in ("activation", "positions", "normalization", "initialization")
            for value in (1, None)
        ),
        {"activation": {"class_name": "relu"}},
        {"num_layers": None},
    ],
)
def test_attributes_of_the_model_have_their_types(model):
    (name,) = model
    with pytest.raises(ValueError, match=rf"^`{name}` (must be|is one of) .* Received: {name}="):
        made(model=model)
