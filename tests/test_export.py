"""An exported model gives what the translator in Python gives, wherever it is loaded."""

import importlib
import re

import keras
import numpy as np
import pytest
import saved_model
import tensorflow as tf
from tiny_translator import ODD_TEXTS, tiny_model, tiny_tokenizer, tiny_translator

from keras_attention.serving import Translator, export

pytestmark = pytest.mark.tensorflow

SIGNATURES = ["serving_default", "translate_nbest"]
# What the graph may need beside TensorFlow's own ops: a server has these and few others.
TEXT_OPS = {"SentencepieceOp", "SentencepieceTokenizeOp", "SentencepieceDetokenizeOp"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(tiny_translator(), tmp_path_factory.mktemp("saved_models") / "tiny")


@pytest.fixture(scope="module")
def expected():
    """What the translator gives in Python, by signature, with the texts as bytes."""
    texts = tf.constant(saved_model.as_bytes(ODD_TEXTS))
    functions = {"serving_default": tiny_translator().serve}
    functions["translate_nbest"] = tiny_translator().serve_nbest
    return {
        name: {key: value.numpy().tolist() for key, value in function(texts).items()}
        for name, function in functions.items()
    }


def assert_equal_results(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        if name.startswith("text"):
            assert found[name] == values
        else:
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-4)


def test_python_and_a_session_give_what_the_translator_gives(exported, expected):
    found = saved_model.run_in_tensorflow(exported, ODD_TEXTS, SIGNATURES)
    for way in ("python", "session"):
        for name in SIGNATURES:
            assert_equal_results(found[way][name], expected[name])


@pytest.mark.skipif(not saved_model.has_compiler(), reason="needs gcc")
def test_a_process_without_python_gives_what_the_translator_gives(exported, expected, tmp_path):
    program = saved_model.compile_serve_c(tmp_path)
    found = saved_model.run_in_c(program, exported, ODD_TEXTS, "serving_default")
    assert_equal_results(found, expected["serving_default"])
    found = saved_model.run_in_c(program, exported, [], "translate_nbest")
    assert found == {"scores": [], "texts": []}


def test_outputs_are_valid_utf8(expected):
    for text in expected["serving_default"]["text"]:
        text.decode()


def test_only_ops_that_a_server_has_are_used(exported):
    standard = tf.raw_ops.__dict__
    foreign = {name for name in saved_model.ops_used(exported) if name not in standard}
    assert foreign <= TEXT_OPS


def test_signatures_are_the_documented_ones(exported):
    graph = saved_model.meta_graph(exported)
    shapes = {
        name: {
            key: [dim.size for dim in value.tensor_shape.dim]
            for key, value in graph.signature_def[name].outputs.items()
        }
        for name in SIGNATURES
    }
    assert shapes["serving_default"] == {"text": [-1], "score": [-1]}
    assert shapes["translate_nbest"] == {"texts": [-1, 3], "scores": [-1, 3]}
    for name in SIGNATURES:
        (source,) = graph.signature_def[name].inputs
        assert source == "source"


def test_the_folder_holds_only_finished_versions(exported):
    assert exported.name == "1"
    assert [path.name for path in exported.parent.iterdir()] == ["1"]
    assert (exported / "saved_model.pb").is_file()
    assert (exported / "variables" / "variables.index").is_file()
    mode = exported.stat().st_mode
    assert mode == exported.parent.stat().st_mode  # as readable for a server as the folder is


def test_warm_up_requests_run(exported):
    apis = pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api")
    from tensorflow_serving.apis import prediction_log_pb2

    assert apis
    file = exported / "assets.extra" / "tf_serving_warmup_requests"
    loaded = tf.saved_model.load(str(exported))
    signatures = []
    for record in tf.data.TFRecordDataset(str(file)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        signatures.append(request.model_spec.signature_name)
        inputs = {name: tf.constant(tf.make_ndarray(x)) for name, x in request.inputs.items()}
        outputs = loaded.signatures[signatures[-1]](**inputs)
        assert {value.shape[0] for value in outputs.values()} == {2}
    assert signatures == SIGNATURES


def stand_in_for_writing(monkeypatch, write):
    """Exports take seconds: where only the folders matter, `write` takes the place of the work."""
    module = importlib.import_module("keras_attention.serving.export")  # not the function of that name
    monkeypatch.setattr(module, "_write", lambda translator, path: write(path))


def test_versions_are_numbered_on(monkeypatch, tmp_path):
    stand_in_for_writing(monkeypatch, lambda path: path.mkdir())
    folder = tmp_path / "en-de"
    assert export(None, folder) == folder / "1"
    (folder / "9").mkdir()
    (folder / "10-old").mkdir()
    assert export(None, str(folder)) == folder / "10"
    (folder / "11").write_text("")  # taken, by a file
    assert export(None, folder) == folder / "12"


def test_two_exports_at_the_same_time_get_two_versions(monkeypatch, tmp_path):
    def write(path):
        path.mkdir()
        (path / "saved_model.pb").write_text("")

    stand_in_for_writing(monkeypatch, write)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_text("the other's")
    listings = iter([[], [tmp_path / "1"]])  # the other's version appears after the first look
    monkeypatch.setattr("pathlib.Path.iterdir", lambda path: next(listings))
    assert export(None, tmp_path) == tmp_path / "2"
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "the other's"


def test_an_export_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    def write(path):
        path.mkdir()
        (path / "saved_model.pb").write_text("half")
        raise OSError("disk full")

    stand_in_for_writing(monkeypatch, write)
    with pytest.raises(OSError, match="disk full"):
        export(None, tmp_path / "new" / "en-de")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "en-de" / "3").mkdir(parents=True)
    with pytest.raises(OSError, match="disk full"):
        export(None, tmp_path / "en-de")
    assert [path.name for path in (tmp_path / "en-de").iterdir()] == ["3"]


def test_a_model_that_cannot_be_traced_leaves_nothing_behind(tmp_path):
    with pytest.raises(AttributeError):
        export(Translator(keras.Model(), tiny_tokenizer()), tmp_path / "en-de")
    assert list(tmp_path.iterdir()) == []


def test_the_weights_are_those_of_the_moment(exported):
    """A saved model holds values: training on changes the translator, not what was exported."""
    reader = tf.train.load_checkpoint(str(exported / "variables" / "variables"))
    shapes = reader.get_variable_to_shape_map()
    weights = [name for name in shapes if re.search(r"\.ATTRIBUTES/VARIABLE_VALUE$", name)]
    values = [reader.get_tensor(name) for name in weights]
    for weight in tiny_model().trainable_weights:
        assert any(np.array_equal(weight.numpy(), value) for value in values), weight.path
