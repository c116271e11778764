"""The sizes of a Transformer: presets, the number of weights, mistakes."""

import dataclasses
import re
from pathlib import Path

import pytest

import keras_attention as ka
from keras_attention.models import PRESETS, TABLE_3

V = 17


def formula(config):
    """Weights counted matrix by matrix: the tied embedding, then what section 3 of the paper lists."""
    m, f, bias = config.hidden_dim, config.intermediate_dim, config.use_attention_bias
    attention = sum(m * m + bias * m for _ in ("query", "key", "value", "output"))
    feed_forward = m * f + f + f * m + m
    norm = m + m
    encoder = config.num_layers * (attention + norm + feed_forward + norm)
    decoder = config.num_layers * (attention + norm + attention + norm + feed_forward + norm)
    return config.vocabulary_size * m + encoder + decoder + config.normalize_first * 2 * norm


@pytest.mark.parametrize(
    ("preset", "sizes", "dropout", "millions"),
    [("base", (6, 512, 2048, 8), 0.1, 63.05), ("big", (6, 1024, 4096, 16), 0.3, 214.2)],
)
def test_presets_are_those_of_the_paper(preset, sizes, dropout, millions):
    config = ka.TransformerConfig.from_preset(preset, vocabulary_size=37000)
    assert (config.num_layers, config.hidden_dim, config.intermediate_dim, config.num_heads) == sizes
    assert config.hidden_dim // config.num_heads == 64
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (dropout, 0, 0)
    assert (config.normalize_first, config.use_attention_bias, config.activation) == (False, False, "relu")
    assert config.num_parameters == formula(config)
    assert round(config.num_parameters / 1e6, 2 if preset == "base" else 1) == millions


def test_the_defaults_are_the_base_model():
    assert ka.TransformerConfig(37000) == ka.TransformerConfig.from_preset("base", 37000)


@pytest.mark.parametrize(
    "changes", [{}, {"normalize_first": True}, {"use_attention_bias": True}, {"num_layers": 3, "num_heads": 8}]
)
def test_number_of_parameters_is_that_of_the_model(changes):
    tiny = ka.Transformer.from_preset("tiny", vocabulary_size=101, **changes)
    assert tiny.config.num_parameters == tiny.count_params() == formula(tiny.config)
    assert all(getattr(tiny.config, name) == value for name, value in changes.items())


# The numbers of weights that the paper prints in table 3, in millions.
PRINTED = {
    "base": 65,
    "table3-b-dk16": 58,
    "table3-b-dk32": 60,
    "table3-c-n2": 36,
    "table3-c-n4": 50,
    "table3-c-n8": 80,
    "table3-c-dmodel256": 28,
    "table3-c-dmodel1024": 168,
    "table3-c-dff1024": 53,
    "table3-c-dff4096": 90,
    "big": 213,
}


def millions(preset, vocabulary_size=37000):
    return ka.TransformerConfig.from_preset(preset, vocabulary_size).num_parameters / 1e6


def test_each_row_of_table_3_has_about_the_weights_that_the_paper_prints():
    for preset, printed in PRINTED.items():
        assert round(millions(preset, 36000 if preset == "big" else 41100)) == printed
    same = {preset for preset in TABLE_3 if millions(preset) == millions("base")}
    assert same == {preset for preset in TABLE_3 if preset.startswith(("table3-a", "table3-d"))}


def test_the_page_has_the_numbers_of_table_3():
    page = (Path(__file__).parent.parent / "docs" / "paper_to_code.md").read_text(encoding="utf-8")
    section = page.partition("\n## 6.2 ")[2].partition("\n## ")[0]
    lines = [[cell.strip(" `") for cell in line.split("|")] for line in section.splitlines() if line.startswith("| ")]
    rows = [row[3:7] for row in lines[2:] if "label_smoothing" not in row[3]]
    assert [preset for preset, *_ in rows] == ["base", *TABLE_3, "big"]
    for preset, printed, here, difference in rows:
        assert here == f"{millions(preset):.2f} M"
        assert printed == (f"{PRINTED[preset]} M" if preset in PRINTED else "")
        if printed:
            assert difference == f"{PRINTED[preset] - millions(preset):.2f} M".replace("-", "−")


@pytest.mark.parametrize("preset", ["base", *TABLE_3, "big"])
def test_each_row_of_table_3_has_the_sizes_of_the_paper(preset):
    """As Keras counts the weights of one layer of each kind."""
    config = ka.TransformerConfig.from_preset(preset, V, num_layers=1)
    assert ka.Transformer(config).count_params() == config.num_parameters
    name = preset.rpartition("-")[2]
    varied = re.fullmatch(r"([a-z]+)([0-9.]+)", name)
    if varied:
        attribute = {
            "h": "num_heads", "dk": "key_dim", "n": "num_layers", "dmodel": "hidden_dim", "dff": "intermediate_dim",
            "dropout": "dropout",
        }[varied[1]]  # fmt: skip
        assert getattr(ka.TransformerConfig.from_preset(preset, V), attribute) == float(varied[2])


@pytest.mark.parametrize("preset", PRESETS)
def test_changes_override_the_preset(preset):
    config = ka.TransformerConfig.from_preset(preset, 101, dropout=0.25, intermediate_dim=7)
    assert config == ka.TransformerConfig(
        **{**PRESETS[preset], "dropout": 0.25, "intermediate_dim": 7, "vocabulary_size": 101}
    )
    assert ka.TransformerConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary_size": 0}, r"`vocabulary_size` must be a positive integer. Received: vocabulary_size=0"),
        ({"num_layers": -1}, r"`num_layers` must be a positive integer"),
        ({"hidden_dim": 512.0}, r"Received: hidden_dim=512.0"),
        ({"intermediate_dim": None}, r"Received: intermediate_dim=None"),
        ({"num_decoder_layers": 0}, r"`num_decoder_layers` must be a positive integer. Received: num_decoder_layers=0"),
        ({"key_dim": 0}, r"`key_dim` must be a positive integer. Received: key_dim=0"),
        ({"value_dim": 6.5}, r"`value_dim` must be a positive integer. Received: value_dim=6.5"),
        ({"positions": "sine"}, r"`positions` is one of 'sinusoid', 'learned'.* Received: positions='sine'"),
        (
            {"positions": "learned"},
            r"give it with positions='learned', .* Received: positions='learned', max_length=None",
        ),
        ({"max_length": 7}, r"`max_length` is the number of learned .* Received: positions='sinusoid', max_length=7"),
        ({"positions": "learned", "max_length": 0}, r"`max_length` must be a positive integer"),
        ({"num_kv_heads": 3}, r"`num_kv_heads` must divide `num_heads`. Received: num_heads=8, num_kv_heads=3"),
        ({"normalization": "batch"}, r"`normalization` is one of 'layer', 'rms'. Received: normalization='batch'"),
        ({"positions": "rotary", "key_dim": 7}, r"`key_dim` must be even. Received: key_dim=7"),
        ({"positions": "rotary", "max_length": 7}, r"Received: positions='rotary', max_length=7"),
        ({"num_heads": "8"}, r"Received: num_heads='8'"),
        (
            {"num_heads": 7},
            r"`num_heads` must divide `hidden_dim`; or give `key_dim`. Received: num_heads=7, hidden_dim=512",
        ),
        ({"dropout": 1.5}, r"`dropout` must be a number, at least 0 and below 1. Received: dropout=1.5"),
        ({"attention_dropout": -1}, r"Received: attention_dropout=-1"),
        ({"activation_dropout": 1}, r"Received: activation_dropout=1"),
        ({"normalize_first": 1}, r"`normalize_first` must be True or False. Received: normalize_first=1"),
        ({"remat": "no"}, r"Received: remat='no'"),
        ({"activation": "rleu"}, r"`activation` is a function, .* Received: activation='rleu'"),
        ({"layer_norm_epsilon": 0.0}, r"`layer_norm_epsilon` must be a number above zero"),
    ],
)
def test_wrong_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ka.TransformerConfig(**{"vocabulary_size": V, **arguments})


def test_mistakes_get_a_message():
    with pytest.raises(
        ValueError,
        match=r"`preset` is one of tiny, small, base, big, table3-a-h1, .*, table3-e-learned. Received: preset='large'",
    ):
        ka.Transformer.from_preset("large", vocabulary_size=V)
    with pytest.raises(TypeError, match="layers"):
        ka.TransformerConfig(V, layers=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ka.TransformerConfig(V).dropout = 0.5
