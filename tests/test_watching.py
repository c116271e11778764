"""What a run shows in TensorBoard: curves, attention, translations, weights, settings, embeddings."""

import html
import importlib
import re
import subprocess
import sys
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from events import log_every_step, scalars_of, values_of

from keras_attention import Transformer
from keras_attention.decoding import score
from keras_attention.demo import make_pairs
from keras_attention.pipeline import RunConfig, RunFolder, summaries, train
from keras_attention.pipeline.attention_maps import KINDS, AttentionPicture, attention_weights
from keras_attention.pipeline.evaluate import corpus_chrf, evaluate_translations
from keras_attention.text import EOS_ID, TokenBatches
from keras_attention.training import MaskedAccuracy, MaskedCrossEntropy, Perplexity, paper_optimizer

pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
pytestmark = pytest.mark.tensorflow

JOBS = importlib.import_module("keras_attention.pipeline.train")  # the attribute of this name is the function
STEPS, EVERY = 7, 3


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder, pairs, files = tmp_path_factory.mktemp("texts"), make_pairs("de", 370), {}
    for split, part in (("", pairs[:300]), ("valid_", pairs[300:])):
        for side, name in enumerate(("source", "target")):
            path = folder / f"{split}{name}.txt"
            path.write_text("".join(f"{pair[side]}\n" for pair in part), encoding="utf-8")
            files[f"{split}{name}"] = str(path)
    model = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8, "dropout": 0.1}
    settings = {"vocabulary_size": 200, "evaluate_every": EVERY, "score_sentences": 11, "tokens_per_batch": 500}
    return RunConfig.from_preset("tiny", **files, **settings, model=model)


class Upper:
    """Stands in for a translator."""

    def translate(self, texts):
        return [text.upper() for text in texts]


@pytest.fixture(scope="module")
def run(tmp_path_factory, config):
    """A run with three evaluations, whose steps are logged one by one."""
    folder = tmp_path_factory.mktemp("runs") / "en-de"
    with pytest.MonkeyPatch.context() as patch:
        log_every_step(patch)
        patch.setattr("keras_attention.pipeline.validation.Translator", lambda *_, **__: Upper())
        patch.setattr(JOBS, "write_final_model", lambda model, *_: model)
        patch.setattr(JOBS, "forecast_summary", lambda *_: "")
        train(folder, config, max_steps=STEPS)
    return RunFolder(folder)


def values(run, plugin):
    """The values of each tag by their steps."""
    tags = {}
    for _, step, value in values_of(run.logs):
        if value.metadata.plugin_data.plugin_name == plugin:
            tags.setdefault(value.tag, {})[step] = tf.make_ndarray(value.tensor)
    return tags


def test_curves_have_a_point_at_each_step_and_each_evaluation(run):
    found = {}
    for split, tag, step, value in scalars_of(run.logs):
        found.setdefault((split, tag), []).append(step)
        assert np.isfinite(value)
    names = ("loss", "perplexity", "accuracy", "learning_rate", "gradient_norm", "padding", "tokens_per_second")
    for name in names:
        assert found["train", f"steps/{name}"] == list(range(1, STEPS + 1))
    for name in ("loss", "perplexity", "accuracy", "bleu", "chrf"):
        assert found["validation", f"steps/{name}"] == [3, 6, 7]
        assert found["validation", f"epoch_{name}"] == [0, 1, 2]
    rows = run.history_file.read_text().splitlines()
    assert "val_chrf" in rows[0].split(",")


def test_chrf_is_that_of_sacrebleu():
    translations, references = ["the cat sat", "a hat"], ["the cat sits", "the hat"]
    assert corpus_chrf(translations, references) == evaluate_translations(translations, references).chrf > 0


def test_images_show_each_kind_of_attention_of_two_sentences(run):
    images = values(run, "images")
    assert set(images) == {f"attention/{kind}/{number}" for kind in KINDS for number in (1, 2)}
    for each in images.values():
        assert list(each) == [3, 6, 7]
        (width, height), pictures = each[3][:2], [png for *_, png in each.values()]
        assert all(tf.io.decode_png(png).shape == (int(height), int(width), 3) for png in pictures)
        assert len(set(pictures)) > 1


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_the_text_shows_translations_with_their_references(run, config):
    from tensorboard import plugin_util

    sources, references = (
        Path(path).read_text(encoding="utf-8").split("\n") for path in (config.valid_source, config.valid_target)
    )

    (tables,) = values(run, "text").values()
    assert list(tables) == [3, 6, 7]
    page = plugin_util.markdown_to_safe_html(tables[7].item())
    cells = [html.unescape(each) for each in re.findall("<td>(.*?)</td>", page)]
    assert len(cells) == 3 * summaries.NUM_TRANSLATIONS
    pairs = dict(zip(sources, references, strict=True))
    for source, reference, translation in zip(*[iter(cells)] * 3, strict=True):
        assert pairs[source] == reference
        assert translation == source.upper()


def test_histograms_are_those_of_the_matrices(run):
    histograms = values(run, "histograms")
    model = keras.models.load_model(run.model_file("last"), compile=False)
    weights = {f"weights/{each.path}": np.asarray(each) for each in model.trainable_weights if len(each.shape) > 1}
    assert set(histograms) == set(weights)
    for tag, weight in weights.items():
        last = histograms[tag][STEPS]  # rows of left edge, right edge and count
        assert last[:, 2].sum() == weight.size <= 4096
        np.testing.assert_allclose((last[0, 0], last[-1, 1]), (weight.min(), weight.max()), rtol=1e-6)


def test_settings_and_metrics_are_on_the_page_of_hyperparameters(run, config):
    from tensorboard.plugins.hparams import plugin_data_pb2

    data = {}
    for folder, _, value in values_of(run.logs):
        if value.metadata.plugin_data.plugin_name == "hparams":
            assert (folder, value.tag) not in data
            content = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
            data[folder, value.tag] = content
    experiment, session = (data["logs", f"_hparams_/{name}"] for name in ("experiment", "session_start_info"))
    assert session.session_start_info.group_name == "en-de"
    settings = session.session_start_info.hparams
    assert settings["optimizer"].string_value == config.optimizer
    assert settings["model.num_layers"].number_value == 1
    assert not {"source", "valid_target", "total_steps", "model"} & set(settings)
    tags = {info.name.tag for info in experiment.experiment.metric_infos}
    assert tags == {"steps/bleu", "steps/chrf", "steps/loss", "steps/perplexity"}
    assert tags <= {tag for split, tag, _, _ in scalars_of(run.logs) if split == "validation"}


def test_the_projector_finds_the_embeddings_with_their_pieces(run):
    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    config = text_format.Parse((run.logs / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    tensor = np.fromfile(run.logs / embedding.tensor_path, "float32").reshape(embedding.tensor_shape)
    model = keras.models.load_model(run.model_file("last"), compile=False)
    np.testing.assert_array_equal(tensor, model.get_layer("embedding").embeddings)
    pieces = (run.logs / embedding.metadata_path).read_text(encoding="utf-8").split("\n")
    assert pieces == [*run.tokenizer.pieces(range(len(tensor))), ""]


def make_model(**changes):
    config = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8, **changes}
    return Transformer.from_preset("tiny", vocabulary_size=29, **config)


def test_attention_is_that_of_each_pair_by_itself():
    model = make_model()
    pairs = [([5, 6, 7, 8, EOS_ID], [9, 10, EOS_ID]), ([11, EOS_ID], [12, 13, 14, EOS_ID])]
    for (source, target), weights in zip(pairs, attention_weights(model, pairs), strict=True):
        assert [weights[kind].shape[2:] for kind in ("encoder", "decoder", "cross")] == [
            (len(source), len(source)),
            (len(target), len(target)),
            (len(target), len(source)),
        ]
        alignment = score(model, [source], [target]).alignment[0]
        np.testing.assert_allclose(weights["cross"][-1].mean(axis=0), alignment, atol=1e-6)
        *_, encoder = model.encode(keras.ops.array([source]), return_attention_scores=True)
        np.testing.assert_allclose(weights["encoder"], [layer[0] for layer in encoder], atol=1e-6)
        assert not np.triu(weights["decoder"], 1).any()
        for each in weights.values():
            np.testing.assert_allclose(each.sum(axis=-1), 1, atol=1e-5)


def test_a_picture_has_a_square_for_each_weight():
    queries, keys = ["▁ein", "hundert", "</s>"], ["$", "5", "<b>", "_x^2", "</s>"]
    weights = np.random.default_rng(1).random((2, 9, len(queries), len(keys)))
    picture = AttentionPicture(2, 9, queries, keys)
    image, brighter = picture.draw(weights), picture.draw(np.ones_like(weights))
    changed = np.argwhere((image != brighter).any(axis=-1))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0) + 1
    cell = 12
    assert (bottom - top, right - left) == (2 * 3 * cell + 4, 8 * 5 * cell + 7 * 4)  # eight heads at the most
    colors = (matplotlib.colormaps["viridis"](weights)[..., :3] * 255).round()
    for layer, head, query, key in ((0, 0, 0, 0), (1, 0, 2, 1), (0, 7, 1, 4), (1, 7, 2, 4)):
        row = top + layer * (3 * cell + 4) + query * cell + cell // 2
        column = left + head * (5 * cell + 4) + key * cell + cell // 2
        np.testing.assert_allclose(image[row, column], colors[layer, head, query, key], atol=1.5)
    assert (image[:top] < 128).any()  # the labels
    assert (image[:, :left] < 128).any()


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((3, 9, 12, 15, 20), (13, 16)), ((15,), (16,)), ((0, 2), (3,)), ((30, 25, 40), (16, 16))],
    ids=["the longest that fit", "one", "no empty one", "the beginning of the shortest"],
)
def test_the_sentences_of_the_pictures_are_short(lengths, expected):
    class Numbers:
        def encode(self, texts):
            return [[int(each) for each in text.split()] for text in texts]

    sample = [(" ".join(map(str, range(4, 4 + length))), "7" if length else "") for length in lengths]
    pairs = summaries._short_pairs(sample, Numbers())
    assert tuple(len(source) for source, _ in pairs) == expected
    assert all(source[-1] == target[-1] == EOS_ID for source, target in pairs)


def test_few_evaluations_of_a_long_run_are_drawn():
    shown = [number for number in range(1, 1001) if summaries.is_shown(number)]
    assert shown == [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000]


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_markdown_shows_any_text_as_it_is():
    from tensorboard import plugin_util

    text = r"a|b *c* _d_ `e` [f](g) <b>h</b> &amp; \i # 1. x~~y~~ !"
    page = plugin_util.markdown_to_safe_html(f"| a | b |\n| --- | --- |\n| {summaries._as_markdown(text)} | x |")
    cells = [html.unescape(re.sub("<[^>]*>", "", each)) for each in re.findall("<td>(.*?)</td>", page)]
    assert cells == [text, "x"]


def test_without_tensorboard_a_run_has_no_logs_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(summaries, "is_installed", lambda name: name != "tensorboard")
    assert summaries.tensorboard_callbacks(RunFolder(tmp_path), *[None] * 5) == []
    assert "no TensorBoard logs: pip install" in capsys.readouterr().out


def test_the_listing_of_the_page_writes_the_curves(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "watching.md").read_text(encoding="utf-8")
    (listing,) = (each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "StepTensorBoard" in each)
    monkeypatch.chdir(tmp_path)
    ids = [[number] for number in range(4, 29)]
    batches, valid_batches = (TokenBatches(ids, ids[::-1], tokens_per_batch=size) for size in (12, 50))
    model = make_model(num_layers=1)
    metrics = [MaskedAccuracy(), Perplexity()]
    model.compile(paper_optimizer(model.config), loss=MaskedCrossEntropy(), metrics=metrics, run_eagerly=True)
    exec(compile(listing, "watching.md", "exec"), {"model": model, "batches": batches, "valid_batches": valid_batches})
    tags = {(split, tag) for split, tag, _, _ in scalars_of(tmp_path)}
    named = set(re.findall(r"^\| (.*?) \| (both|`train`|`validation`) \|", page, re.MULTILINE))
    for names, curve in named - {("`steps/bleu`, `steps/chrf`", "`validation`")}:
        for split in ("train", "validation") if curve == "both" else (curve.strip("`"),):
            assert (split, names.strip("`")) in tags
    assert len(named) == 8


# The text of a page, also of elements and pages within it.
TEXT = """
const texts = [];
const visit = node => {
  if (node.nodeType === Node.TEXT_NODE) texts.push(node.data.trim());
  if (node.shadowRoot) visit(node.shadowRoot);
  if (node.nodeName === "IFRAME") visit(node.contentDocument.body);
  if (!["SCRIPT", "STYLE"].includes(node.nodeName)) node.childNodes.forEach(visit);
};
visit(document.body);
return texts.join("");  // a tag may be in two elements
"""
# The widths of the pictures that a page has loaded.
PICTURES = """
const widths = [];
const visit = node => {
  if (node.nodeName === "IMG" && node.complete) widths.push(node.naturalWidth);
  if (node.shadowRoot) visit(node.shadowRoot);
  node.childNodes.forEach(visit);
};
visit(document.body);
return widths;
"""


@pytest.fixture(scope="module")
def address(run):
    """TensorBoard on this machine, with the logs of the run."""
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(run.path),
        "--port",
        "0",
        "--host",
        "127.0.0.1",
    ]
    # Without a process of its own for the data, which would outlive this one.
    server = subprocess.Popen([*command, "--load_fast=false"], stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if found := re.search(r"http://127.0.0.1:\d+/", line):
            break
    yield found[0]
    server.terminate()
    server.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "texts"),
    [
        ("timeseries", ["steps/accuracy", "steps/bleu", "steps/chrf", "steps/gradient_norm"]),
        ("images", ["attention/encoder/1", "attention/decoder/1", "attention/cross/1", "attention/cross/2"]),
        ("text", ["translations", "reference", "translation"]),
        ("histograms", ["weights/decoder/layer_0/cross_attention/query/kernel"]),
        ("hparams", ["model.num_layers", "BLEU", "chrF"]),
        ("projector", ["vocabulary.tsv", "Points:"]),
    ],
)
def test_tensorboard_shows_the_run_in_a_browser(browser, address, page, texts):
    browser.set_window_size(1400, 1000)
    curves = page == "timeseries"
    browser.get(f"{address}{'?tagFilter=^steps' if curves else ''}#{page}")  # a filter shows what groups hide
    wait_for(browser, lambda: all(each in browser.execute_script(TEXT) for each in texts))
    if page == "images":
        wait_for(browser, lambda: max(browser.execute_script(PICTURES), default=0) > 100)


def wait_for(browser, condition):
    from selenium.common.exceptions import JavascriptException  # of a page that is not complete
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60, poll_frequency=0.2, ignored_exceptions=[JavascriptException]).until(
        lambda _: condition()
    )
