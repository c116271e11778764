"""Packed weights of which some are kept in bfloat16: the error in 8 bits, the rule, the export."""

import json
import platform
from itertools import pairwise

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from tiny_translator import tiny_tokenizer

import keras_attention as ka
from keras_attention.cli import main
from keras_attention.pipeline import RunConfig, RunFolder, limit_bleu_loss, packed_weights
from keras_attention.pipeline.evaluate import BleuLossError
from keras_attention.serving import PackedTransformer, Translator
from keras_attention.serving.packed_errors import int8_errors

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the operations are those of x86-64"),
    # Of `tf.compat.v1.saved_model.load`, which is how servers load.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
]
SOURCES = [
    "abl ab",
    "ab",
    "lab ball",
    "a ball",
    "ball a lab",
    "all",
    "bal bal",
    "lab",
    "la ba",
    "abla",
    "ball",
    "ab la",
]
SPOILED = "decoder/layer_0/feed_forward/output"


@pytest.fixture(scope="module")
def translator():
    """A translator whose model has one matrix that 8 bits ruin, though it computes what it did before."""
    tokenizer = tiny_tokenizer()
    keras.utils.set_random_seed(1)
    model = ka.Transformer.from_preset("tiny", tokenizer.vocabulary_size, num_layers=1, dropout=0.0)
    feed_forward = model.network.decoder.layers[0].feed_forward
    # The decoder's output is mostly that of this layer.
    kernel, bias = feed_forward.intermediate_dense.kernel, feed_forward.intermediate_dense.bias
    kernel.assign(30 * kernel)
    # An input so large that the others are 0 in 8 bits, and a row of zeros by which it is multiplied.
    bias.assign(np.eye(1, bias.shape[0])[0] * 1e6)
    output = feed_forward.output_dense.kernel
    output.assign(output * (1 - np.eye(output.shape[0])[:, :1]))
    return Translator(model, tokenizer, beam_size=1)


@pytest.fixture(scope="module")
def run(translator, tmp_path_factory):
    """The folder of a run whose references are the translations of its model."""
    path = tmp_path_factory.mktemp("run")
    for name, lines in (("en", SOURCES), ("de", translator.translate(SOURCES))):
        (path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    texts = dict.fromkeys(("source", "valid_source"), str(path / "en")) | dict.fromkeys(
        ("target", "valid_target"), str(path / "de")
    )
    model = {"num_layers": 1, "dropout": 0.0}
    config = RunConfig(
        **texts, preset="tiny", vocabulary_size=translator.tokenizer.vocabulary_size, model=model, score_sentences=12
    )
    folder = RunFolder(path)
    folder.start(config, translator.tokenizer)
    folder.checkpoints.mkdir(exist_ok=True)
    translator.model.save(folder.model_file("final"))
    return path


def relative_error(x, kernel):
    """√(Σ ‖ŷ - y‖² / Σ ‖y‖²), in NumPy."""
    rows, columns = np.abs(x).max(-1, keepdims=True), np.abs(kernel).max(0)
    product = np.round(x / rows * 127) @ np.round(kernel / columns * 127) * rows * columns / 127**2
    return np.sqrt(np.sum((product - x @ kernel) ** 2) / np.sum((x @ kernel) ** 2))


def test_the_error_of_a_matrix_is_that_of_its_outputs_without_padding(translator):
    model = translator.model
    source, target = np.array([[5, 6, 7, 3], [8, 3, 0, 0]], "int32"), np.array([[2, 5, 6], [2, 0, 0]], "int32")
    batches = [(source, target), (source[1:, :2], target[1:, :1])]
    found = int8_errors(model, batches)
    assert list(found) == list(PackedTransformer(model, "int8").matrices)
    rows = [np.argwhere(ids != 0) for ids in (source, source[1:, :2])]

    def inputs(function):
        outputs = (np.asarray(function(tf.constant(ids))) for ids in (source, source[1:, :2]))
        return np.concatenate([each[tuple(at.T)] for each, at in zip(outputs, rows, strict=True)]).astype("float64")

    def kernel(layer, *names):
        weights = (np.asarray(getattr(layer, f"{name}_dense").kernel, "float64") for name in names)
        return np.concatenate([each.reshape(each.shape[0], -1) for each in weights], 1)

    layer = model.network.encoder.layers[0].self_attention
    expected = relative_error(inputs(model.network.embed), kernel(layer, "query", "key", "value") * scales(layer))
    assert found["encoder/layer_0/self_attention/query+key+value"] == pytest.approx(expected, rel=1e-2)
    layer = model.network.decoder.layers[0].cross_attention
    expected = relative_error(inputs(lambda ids: model.encode(ids)[0]), kernel(layer, "key", "value"))
    assert found["decoder/layer_0/cross_attention/key+value"] == pytest.approx(expected, rel=1e-2)
    assert max(found, key=found.get) == SPOILED
    assert found.pop(SPOILED) > 0.5 > 0.05 > max(found.values())


def scales(layer):
    """The factor of each column of fused queries, keys and values."""
    _, heads, key_dim = layer.query_dense.kernel.shape
    width = heads * key_dim
    return np.concatenate([np.full(width, key_dim**-0.5), np.ones(2 * width)])


def test_the_worst_matrix_is_kept_and_the_export_is_within_the_limit(translator, run, tmp_path):
    options = ["--weights", "int8", "--runtime", "x86", "--beam-size", "1", "--max-bleu-loss", "40"]
    done = CliRunner().invoke(main, ["export", str(run), str(tmp_path / "x86"), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    losses = [line for line in done.output.splitlines() if line.startswith("BLEU of 12 validation sentences")]
    assert len(losses) == 2, done.output
    assert f"1 of 12 matrices kept in bfloat16, with their errors in 8 bits: {SPOILED} (" in done.output
    version = tmp_path / "x86" / "1"
    card = json.loads((version / "assets.extra" / "model_card.json").read_text())
    assert (card["weights"], card["kept_bfloat16"]) == ("int8", [SPOILED])
    assert "`kept_bfloat16` in the\nmodel card" in (version.parent / "README.md").read_text()

    mixed = Translator(PackedTransformer(translator.model, "int8", [SPOILED]), translator.tokenizer, beam_size=1)
    expected = mixed.serve(tf.constant(SOURCES))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        served = tf.compat.v1.saved_model.load(session, ["serve"], str(version)).signature_def["serving_default"]
        outputs = {name: served.outputs[name].name for name in ("text", "score")}
        found = session.run(outputs, {served.inputs["source"].name: [text.encode() for text in SOURCES]})
    assert found["text"].tolist() == expected["text"].numpy().tolist()
    np.testing.assert_array_equal(found["score"], expected["score"].numpy())
    dtypes = tf.train.load_checkpoint(version / "variables" / "variables").get_variable_to_dtype_map().values()
    assert (list(dtypes).count(tf.qint8), list(dtypes).count(tf.bfloat16)) == (11, 1)


def test_a_loss_that_no_matrix_explains_is_refused(translator, run, monkeypatch):
    kept, lines = [], []

    def refuse(run, lighter, trained, max_loss):
        kept.append(lighter.model.kept_bfloat16)
        assert lighter.options == translator.options
        raise BleuLossError(f"loss {len(kept)}", "Export with other weights. Received: a largest loss of 0.5")

    monkeypatch.setattr(packed_weights, "compare_weights", refuse)
    packed = translator.with_model(PackedTransformer(translator.model, "int8"))
    with pytest.raises(ValueError, match=r"loss 5\. Export with other weights.*Received: a largest loss of 0\.5"):
        limit_bleu_loss(run, packed, translator, 0.5, report=lines.append)
    assert [len(names) for names in kept] == [0, 1, 2, 4, 8]
    assert all(set(few) < set(more) for few, more in pairwise(kept))
    assert [line for line in lines if line.startswith("loss")] == [f"loss {count}" for count in range(1, 6)]


def test_weights_within_the_limit_are_all_in_8_bits(translator, run, monkeypatch):
    monkeypatch.setattr(packed_weights, "compare_weights", lambda *_: "a line")
    packed, lines = translator.with_model(PackedTransformer(translator.model, "int8")), []
    assert limit_bleu_loss(run, packed, translator, 0.5, report=lines.append) is packed
    assert lines == ["a line"]


def test_names_of_matrices_to_keep_are_checked(translator):
    with pytest.raises(ValueError, match=r"names of matrices.*embedding\. Received: keep_bfloat16 with \['logits'\]"):
        PackedTransformer(translator.model, "int8", ["embedding", "logits"])
    with pytest.raises(ValueError, match=r"for weights in 8 bits.*Received: weights='bfloat16'"):
        PackedTransformer(translator.model, "bfloat16", ["embedding"])
    with pytest.raises(TypeError, match=r"is a list of names\. Received: keep_bfloat16='embedding'"):
        PackedTransformer(translator.model, "int8", "embedding")
