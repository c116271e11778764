"""The ablations: each variant is what its row says, rows are trained once, and verdicts follow from the numbers."""

import json
import math
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import ops

import keras_attention as ka
from benchmarks import ablations
from benchmarks.tools import ablation_report
from benchmarks.tools.ablated import AblatedTransformer, SubLayer, make_attention
from benchmarks.tools.ablation_rows import ROWS, Parts, Row
from keras_attention.decoding import DecodingOptions, generate
from keras_attention.demo import make_pairs

CONFIG = ka.TransformerConfig(29, num_layers=1, hidden_dim=12, intermediate_dim=17, num_heads=3, dropout=0.0)
SOURCE, TARGET = [[5, 6, 7, 8, 3], [9, 10, 3, 0, 0]], [[2, 11, 12], [2, 13, 0]]
MASK = np.array([[True, True, True, True, True], [True, True, True, False, False]])
ROW_SETTING = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 16, "num_heads": 2}


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def vectors(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype("float32")


def built(parts: Parts, config: ka.TransformerConfig = CONFIG) -> keras.layers.Layer:
    layer = make_attention(config, parts)
    layer.build((None, None, 12), (None, None, 12))
    return layer


def numpy(x) -> np.ndarray:
    return ops.convert_to_numpy(x)


def copy_weights(model: ka.Transformer, ablated: AblatedTransformer) -> None:
    """Gives a model of layers the weights of the library's."""
    network, own = model.network, ablated.network
    own.embedding.set_weights(network.embedding.get_weights())
    for layer, (self_attention, feed_forward) in zip(network.encoder.layers, own.encoder, strict=True):
        copies = ((self_attention, layer.self_attention, layer.self_attention_norm),)
        copies += ((feed_forward, layer.feed_forward, layer.feed_forward_norm),)
        set_weights(copies)
    for layer, (self_attention, cross, feed_forward) in zip(network.decoder.layers, own.decoder, strict=True):
        copies = ((self_attention, layer.self_attention, layer.self_attention_norm),)
        copies += ((cross, layer.cross_attention, layer.cross_attention_norm),)
        copies += ((feed_forward, layer.feed_forward, layer.feed_forward_norm),)
        set_weights(copies)


def set_weights(copies) -> None:
    for sub_layer, layer, norm in copies:
        sub_layer.layer.set_weights(layer.get_weights())
        sub_layer.norm.set_weights(norm.get_weights())


@pytest.fixture(scope="module")
def models():
    """The library's model, and the one of layers with the same weights."""
    keras.utils.set_random_seed(3)
    model, ablated = ka.Transformer(CONFIG), AblatedTransformer(CONFIG, Parts())
    for weight in model.weights:  # an untrained model repeats its last token
        weight.assign(weight + 0.3 * keras.random.normal(weight.shape))
    copy_weights(model, ablated)
    return model, ablated


def test_with_all_parts_the_model_of_layers_is_the_transformer(models):
    model, ablated = models
    assert ablated.count_params() == model.count_params() == CONFIG.num_parameters
    inputs = {"source": ops.array(SOURCE), "target": ops.array(TARGET)}
    np.testing.assert_allclose(numpy(ablated(inputs)), numpy(model(inputs)), rtol=1e-4, atol=1e-4)


def test_the_model_of_layers_translates_like_the_transformer(models):
    ours, theirs = (generate(each, SOURCE, DecodingOptions(beam_size=1, max_length=6)) for each in models)
    assert theirs.ids.numpy().tolist() == ours.ids.numpy().tolist()
    assert len(set(ours.ids.numpy().ravel().tolist())) > 2


@pytest.mark.parametrize("factor", [2.0, 0.25])
def test_the_factor_multiplies_the_scores(factor):
    layer, x = built(Parts(score_factor=factor)), vectors(2, 5, 12)
    query, key = (numpy(dense.kernel) for dense in (layer.query_dense, layer.key_dense))
    scores = np.einsum("btm,mhd,bsn,nhd->bhts", x, query, x, key) / math.sqrt(4)
    _, weights = layer(x, x, return_attention_scores=True)
    np.testing.assert_allclose(numpy(weights), softmax(factor * scores), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ROWS if "scaling" in name])
def test_the_factor_of_a_row_undoes_or_repeats_the_scaling(name):
    row = ROWS[name]
    config = ablations.Setting().config(**row.config)
    key_dim = config.key_dim or config.hidden_dim // config.num_heads
    divisor = math.sqrt(key_dim) / row.parts.score_factor
    assert divisor == pytest.approx(1 if name.startswith("no-") else key_dim)
    assert f"d_k = {key_dim}," in row.text


def test_queries_and_keys_share_a_projection():
    layer, x = built(Parts("shared_projection")), vectors(2, 5, 12)
    usual = built(Parts())
    query, value, output = layer.get_weights()
    usual.query_dense.kernel.assign(query.reshape(12, 3, 4))
    usual.key_dense.kernel.assign(query.reshape(12, 3, 4))
    usual.value_dense.kernel.assign(value.reshape(12, 3, 4))
    usual.output_dense.kernel.assign(output.reshape(3, 4, 12))
    np.testing.assert_allclose(numpy(layer(x, x)), numpy(usual(x, x)), rtol=1e-4, atol=1e-5)


def test_without_projections_attention_has_no_weights():
    layer, x = built(Parts("no_projections")), vectors(2, 5, 12)
    assert not layer.weights
    heads = x.reshape(2, 5, 3, 4)
    allowed = MASK[:, None, None, :] & np.tril(np.ones((5, 5), bool))
    scores = np.where(allowed, np.einsum("bthd,bshd->bhts", heads, heads) / 2, -np.inf)
    expected = np.einsum("bhts,bshd->bthd", softmax(scores), heads).reshape(2, 5, 12)
    np.testing.assert_allclose(
        numpy(layer(x, x, value_mask=MASK, use_causal_mask=True)), expected, rtol=1e-3, atol=1e-5
    )


def test_additive_heads_follow_the_formula():
    layer = built(Parts("additive"), replace(CONFIG, key_dim=5, value_dim=7))
    x, memory = vectors(2, 3, 12), vectors(2, 5, 12)
    values, contexts = (memory @ numpy(layer.to_values.kernel)).reshape(2, 5, 3, 7), []
    for number, head in enumerate(layer.heads):
        query, key, score = map(numpy, head.weights)  # (12, 5), (12, 5), (5, 1)
        pairs = np.tanh((x @ query)[:, :, None] + (memory @ key)[:, None]) @ score  # (2, 3, 5, 1)
        weights = softmax(np.where(MASK[:, None], pairs[..., 0], -np.inf))
        contexts.append(weights @ values[:, :, number])
    expected = np.concatenate(contexts, axis=-1) @ numpy(layer.to_output.kernel)
    np.testing.assert_allclose(numpy(layer(x, memory, value_mask=MASK)), expected, rtol=1e-3, atol=1e-5)


def test_sub_layers_lose_the_sum_or_the_normalization():
    x, double = ops.array(vectors(2, 5, 12)), keras.layers.Lambda(lambda x: 2 * x)
    without = SubLayer(double, CONFIG, Parts(has_norms=False))
    np.testing.assert_allclose(numpy(without(x)), 3 * numpy(x), rtol=1e-5)
    without = SubLayer(double, CONFIG, Parts(has_skips=False, has_norms=False))
    np.testing.assert_allclose(numpy(without(x)), 2 * numpy(x), rtol=1e-5)
    normalized = numpy(SubLayer(double, CONFIG, Parts(has_skips=False))(x))
    np.testing.assert_allclose(normalized.std(-1), 1, rtol=1e-3)


def test_without_positions_the_order_of_the_source_changes_nothing(models):
    order = [3, 0, 2, 1]
    inputs = {"source": ops.array(SOURCE[:1])[:, :4], "target": ops.array(TARGET[:1])}
    shuffled = {**inputs, "source": ops.take(inputs["source"], order, axis=1)}
    without = AblatedTransformer(CONFIG, Parts(has_positions=False))
    copy_weights(models[0], without)
    memory, other = (numpy(without.encode(each["source"])[0]) for each in (inputs, shuffled))
    np.testing.assert_allclose(other, memory[:, order], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(numpy(without(shuffled)), numpy(without(inputs)), rtol=1e-4, atol=1e-4)
    assert np.abs(numpy(models[1](shuffled)) - numpy(models[1](inputs))).max() > 0.01


def test_words_are_shuffled_the_same_way_each_time():
    pairs = [("one two three four five six", "eins"), ("a b c d e f g", "b")]
    shuffled = ablations.shuffle_words(pairs)
    assert shuffled == ablations.shuffle_words(pairs) != pairs
    assert [target for _, target in shuffled] == ["eins", "b"]
    assert [sorted(source.split()) for source, _ in shuffled] == [sorted(source.split()) for source, _ in pairs]


def test_the_config_of_every_row_is_valid():
    setting = ablations.Setting()
    assert setting.config() == replace(
        setting.config(), hidden_dim=512 // 4, intermediate_dim=2048 // 4, num_layers=6 // 2
    )
    for row in ROWS.values():
        setting.config(**row.config)
        assert row.reference in ROWS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    pairs = make_pairs("de", 120)
    for name, part in (("train", pairs[:100]), ("dev", pairs[100:])):
        for side, language in enumerate(("en", "de")):
            (folder / f"{name}.{language}").write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
    return [str(folder / f"{name}.{language}") for name in ("train", "dev") for language in ("en", "de")]


@pytest.mark.slow
def test_the_command_trains_each_row_once(files, tmp_path, monkeypatch, capsys):
    small = replace(
        ablations.Setting(),
        **ROW_SETTING,
        vocabulary_size=150,
        tokens_per_batch=128,
        warmup_steps=10,
        rate=0.02,
        scored_sentences=3,
    )
    monkeypatch.setattr(ablations, "RESULTS", tmp_path)
    monkeypatch.setattr(ablations, "Setting", lambda: small)
    trained = []
    train_row = ablations.train_row
    monkeypatch.setattr(ablations, "train_row", lambda row, *rest: trained.append(row.text) or train_row(row, *rest))

    ablations.main([*files, "--steps", "40", "--rows", "no-positions"])
    path = tmp_path / "ablations.json"
    first = json.loads(path.read_text(encoding="utf-8"))
    result = first["rows"]["no-positions"]
    assert 1 < result["perplexity"] < 100 and 0 <= result["bleu"] <= 100
    assert result["other_order"]["perplexity"] == pytest.approx(result["perplexity"], rel=1e-3)
    assert result["parameters"] == 150 * 16 + 3 * 4 * 16 * 16 + 2 * (2 * 16 * 16 + 2 * 16) + 5 * 2 * 16

    ablations.main([*files, "--steps", "40", "--rows", "no-positions,d-smoothing0"])
    second = json.loads(path.read_text(encoding="utf-8"))
    assert trained == ["no positions", "ε_ls = 0.0"]
    assert second["rows"]["no-positions"] == result
    assert second["rows"]["d-smoothing0"]["parameters"] == result["parameters"]
    output = capsys.readouterr().out
    assert "1/1 no-positions: no positions" in output and "| `d-smoothing0` | ε_ls = 0.0 |" in output

    with pytest.raises(SystemExit, match=r"rows of another setting.* 'steps': 40, .* 'steps': 4, "):
        ablations.main([*files, "--steps", "4"])
    with pytest.raises(SystemExit, match=r"`--rows` are of base, .* Received: rows=bass$"):
        ablations.main([*files, "--rows", "base,bass"])


def results(**values: tuple[float | None, float | None]) -> dict:
    """Results of rows, and of three seeds of the base model: perplexity 20 ± 0.5, BLEU 10 ± 0.25."""
    base = {"base": (20.0, 10.0), "base-seed2": (19.5, 9.75), "base-seed3": (20.5, 10.25)}
    values = {**base, **{name.replace("_", "-"): value for name, value in values.items()}}
    rows = {name: {"parameters": 9, "perplexity": value[0], "bleu": value[1]} for name, value in values.items()}
    for name in rows:
        if ROWS[name].reads_shuffled:
            rows[name]["other_order"] = {"perplexity": 50.0, "bleu": 2.0}
    return rows


def test_verdicts_compare_the_direction_with_that_of_the_paper():
    rows = results(a_h1=(22.5, 10.2), d_smoothing0=(17.0, 11.5), no_skip=(None, None), no_positions=(21.5, 3.0))
    assert ablation_report.spreads(rows) == {"perplexity": 1.0, "bleu": 0.5}
    assert ablation_report.verdict("a-h1", rows, "perplexity") == "**worse**: as in the paper"
    assert ablation_report.verdict("a-h1", rows, "bleu") == "same; the paper: worse"
    assert ablation_report.verdict("d-smoothing0", rows, "perplexity") == "**better**: as in the paper"
    assert ablation_report.verdict("d-smoothing0", rows, "bleu") == "better; the paper: worse"
    assert ablation_report.verdict("no-skip", rows, "bleu") == "diverged"
    assert ablation_report.verdict("no-positions", rows, "bleu") == "**worse**: as in the paper"
    del rows["base-seed3"]
    assert ablation_report.verdict("a-h1", rows, "bleu") == "–"


@pytest.mark.parametrize(
    ("name", "perplexity", "bleu"),
    [
        ("a-h16", "same", "same"),
        ("c-n4", "better", "worse"),
        ("d-dropout0.2", "worse", "worse"),
        ("no-skip", None, None),
    ],
)
def test_the_direction_of_the_paper_follows_from_its_numbers(name, perplexity, bleu):
    assert [ablation_report.expected(ROWS[name], measure) for measure in ("perplexity", "bleu")] == [perplexity, bleu]


def test_a_row_is_compared_with_its_reference():
    rows = results(dk256=(30.0, 5.0), no_scaling_dk256=(33.0, 5.5))
    assert ablation_report.verdict("no-scaling-dk256", rows, "perplexity") == "**worse**: as in the paper"
    del rows["dk256"]
    assert ablation_report.verdict("no-scaling-dk256", rows, "perplexity") == "–"


def test_the_summary_counts_the_rows_that_agree():
    rows = results(a_h1=(22.5, 10.2), a_h16=(20.1, 9.9), d_smoothing0=(17.0, 11.5), shared_projection=(17.0, 11.5))
    perplexity, bleu, missing = ablation_report.summary({"rows": rows}).splitlines()
    assert perplexity == "- Perplexity: as in the paper: 3 (`a-h1`, `a-h16`, `d-smoothing0`)."
    assert bleu == (
        "- BLEU: as in the paper: 1 (`a-h16`); no difference seen: 1 (`a-h1`); unlike the paper: 1 (`d-smoothing0`)."
    )
    assert missing.startswith(f"- Not trained yet: {len(ROWS) - 7} of {len(ROWS)} rows (`a-h4`, ")
    only_base = {"rows": {"base": rows["base"]}}
    assert ablation_report.summary(only_base).startswith("- Not trained yet: ")


def test_the_report_writes_the_page_and_draws(tmp_path):
    content = {"rows": results(a_h1=(22.5, 10.2), no_skip=(None, None), shuffled=(31.0, 4.0))}
    page = tmp_path / "page.md"
    blocks = [f"<!-- {name} -->\nold\n<!-- end of {name} -->\n" for name in ("summary", "tables")]
    page.write_text("before\n" + "between\n".join(blocks) + "after\n", encoding="utf-8")
    for _ in range(2):
        ablation_report.write_page(content, page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- summary -->\n\n- Perplexity: ") and text.endswith("-->\nafter\n")
    assert "<!-- end of summary -->\nbetween\n<!-- tables -->\n\n### The base model\n" in text
    assert "old" not in text and text.count("| `a-h1` |") == 1
    assert "| `a-h1` | 1 head of 128 | 9 | 22.50 | 10.20 | `base` | **worse**: as in the paper |" in text
    assert "| `no-skip` | no skip connections | 9 | diverged | diverged |" in text
    assert "|  | largest − smallest |  | 1.00 | 0.50 |" in text
    # Of a row trained on shuffled words, the other order is that of the sentence.
    assert "| `shuffled` | sinusoids | shuffled words | 50.00 | 2.00 | 31.00 | 4.00 | `base` | worse | worse |" in text
    assert "| `base` | sinusoids | ordered words | 20.00 | 10.00 | 50.00 | 2.00 |  |  |  |" in text
    assert ablation_report.draw(content, tmp_path / "rows.png").stat().st_size > 5000
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit, match="must contain the lines <!-- summary --> and <!-- end of summary -->"):
        ablation_report.write_page(content, page)


def test_rows_have_distinct_texts_in_their_group():
    assert len({(row.group, row.text) for row in ROWS.values()}) == len(ROWS)
    assert Row("A", "1 head").reference == "base"
