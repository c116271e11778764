"""Exports: versions that appear atomically, with the files that a server needs."""

import importlib
import json
import re
import subprocess
import sys
import threading
from concurrent import futures
from datetime import UTC, datetime

import keras
import numpy as np
import pytest
import saved_model
import tensorflow as tf
from click.testing import CliRunner
from model_options import OPTIONS
from tiny_translator import lines, tiny_model, tiny_tokenizer, tiny_translator

import keras_attention as ka
from keras_attention.cli import main
from keras_attention.serving import Translator, export, model_folder
from keras_attention.serving.server_files import MAX_BATCH_SIZE
from keras_attention.serving.warm_up import write_warm_up

pytestmark = pytest.mark.tensorflow

# The ops that the graph may need in addition to TensorFlow's own: a server has these and few others.
TEXT_OPS = {"SentencepieceOp", "SentencepieceTokenizeOp", "SentencepieceDetokenizeOp"}
OUTPUTS = {
    "serving_default": {"text": [-1], "score": [-1], "truncated": [-1]},
    "translate_nbest": {"texts": [-1, 3], "scores": [-1, 3], "truncated": [-1]},
    "score": {"score": [-1], "tokens": [-1], "truncated": [-1]},
    "align": {
        "text": [-1],
        "score": [-1],
        "source_pieces": [-1, -1],
        "target_pieces": [-1, -1],
        "alignment": [-1, -1, -1],
        "truncated": [-1],
    },
    "encode_ids": {"ids": [-1, -1], "truncated": [-1]},
    "decode_ids": {"text": [-1]},
}
INPUTS = {name: ["source"] for name in OUTPUTS} | {"score": ["source", "target"], "decode_ids": ["ids"]}
SERVER_FILES = ["README.md", "batching.config", "models.config", "monitoring.config"]


@pytest.fixture(scope="module")
def exported():
    return saved_model.tiny_export()


def test_only_ops_that_a_server_has_are_used(exported):
    standard = tf.raw_ops.__dict__
    foreign = {name for name in saved_model.ops_used(exported) if name not in standard}
    assert foreign <= TEXT_OPS


def test_signatures_are_the_documented_ones(exported):
    definitions = dict(saved_model.meta_graph(exported).signature_def)
    definitions.pop("__saved_model_init_op", None)
    shapes = {
        name: {key: [dim.size for dim in value.tensor_shape.dim] for key, value in definition.outputs.items()}
        for name, definition in definitions.items()
    }
    assert shapes == OUTPUTS
    assert {name: sorted(definition.inputs) for name, definition in definitions.items()} == INPUTS
    for name, definition in definitions.items():
        for value in definition.inputs.values():
            assert value.dtype == (tf.int32 if name == "decode_ids" else tf.string).as_datatype_enum
            assert value.tensor_shape.dim[0].size == -1


def test_no_function_of_the_graph_has_a_constant_twice(exported):
    """A process that loads the graph holds it in memory several times."""
    for function in saved_model.meta_graph(exported).graph_def.library.function:
        constants = [node for node in function.node_def if node.op == "Const" and not node.input]
        values = {(node.device, node.attr["value"].SerializeToString()) for node in constants}
        assert len(values) == len(constants)


def test_loading_warns_of_nothing(exported, caplog):
    tf.saved_model.load(str(exported))
    assert not [record.message for record in caplog.records]


def test_the_folder_holds_the_version_and_what_a_server_needs(exported):
    assert exported.name == "1"
    assert sorted(path.name for path in exported.parent.iterdir()) == ["1", *SERVER_FILES]
    assert (exported / "saved_model.pb").is_file()
    assert (exported / "variables" / "variables.index").is_file()
    mode = exported.stat().st_mode
    assert mode == exported.parent.stat().st_mode  # as readable for a server as the folder is


def test_the_model_card_says_what_is_in_the_export(exported):
    card = json.loads((exported / "assets.extra" / "model_card.json").read_text(encoding="utf-8"))
    assert (card["name"], card["version"], card["data"], card["bleu"]) == ("tiny", 1, {"source": "train.en"}, None)
    assert card["sizes"]["parameters"] == sum(int(np.prod(weight.shape)) for weight in tiny_model().weights)
    assert card["sizes"]["vocabulary"] == tiny_tokenizer().vocabulary_size
    assert card["sizes"]["transformer"]["num_layers"] == 2
    assert card["decoding"]["beam_size"] == 3
    assert card["decoding"]["max_source_length"] == 61
    assert card["packages"]["tensorflow"] == tf.__version__
    assert card["packages"]["keras-attention-transformer"] == ka.__version__
    assert abs(datetime.now(UTC) - datetime.fromisoformat(card["date"])).total_seconds() < 3600


@pytest.mark.parametrize(
    ("card", "error", "message"),
    [
        ({"sizes": {}}, ValueError, r"leave these out. Received: card with \['sizes'\]"),
        ({"version": 7}, ValueError, r"Received: card with \['version'\]"),
        ({"bleu": {1, 2}}, TypeError, "must be serializable as JSON: .*set"),
        ({"bleu": float("nan")}, TypeError, "must be serializable as JSON"),
    ],
)
def test_a_wrong_card_is_refused_before_anything_is_written(card, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export(tiny_translator(), tmp_path / "en-de", card=card)
    assert list(tmp_path.iterdir()) == []


def test_warm_up_requests_run(exported):
    pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api")
    from tensorflow_serving.apis import prediction_log_pb2

    file = exported / "assets.extra" / "tf_serving_warmup_requests"
    loaded = tf.saved_model.load(str(exported))
    sizes = {name: [] for name in OUTPUTS}
    for record in tf.data.TFRecordDataset(str(file)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(x)) for name, x in request.inputs.items()}
        assert sorted(inputs) == INPUTS[request.model_spec.signature_name]
        (size,) = {len(value) for value in inputs.values()}
        sizes[request.model_spec.signature_name].append(size)
        if size > 1:
            continue  # the same graph, and seconds of work
        outputs = loaded.signatures[request.model_spec.signature_name](**inputs)
        assert {len(value) for value in outputs.values()} == {size}
    assert set(map(tuple, sizes.values())) == {(1, 4, MAX_BATCH_SIZE)}


def stand_in_for_writing(monkeypatch, write=lambda path: None):
    """Replaces the export of the model, which takes seconds, by `write`."""
    module = importlib.import_module("keras_attention.serving.export")  # not the function of that name

    def stand_in(translator, path, signatures):
        (path / "assets.extra").mkdir(parents=True)
        write(path)

    monkeypatch.setattr(module, "_write", stand_in)
    monkeypatch.setattr(module, "model_card", lambda translator, name, card, inspect: {"name": name})


def test_versions_are_numbered_on(monkeypatch, tmp_path):
    stand_in_for_writing(monkeypatch)
    folder = tmp_path / "en-de"
    assert export(None, folder) == folder / "1"
    (folder / "9").mkdir()
    (folder / "10-old").mkdir()
    assert export(None, str(folder)) == folder / "10"
    (folder / "11").write_text("")  # taken, by a file
    assert export(None, folder) == folder / "12"


def test_two_exports_at_the_same_time_get_two_versions(monkeypatch, tmp_path):
    stand_in_for_writing(monkeypatch)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_text("the other's")
    listings = iter([[], [tmp_path / "1"]])  # the other's version appears after the first look
    monkeypatch.setattr("pathlib.Path.iterdir", lambda path: next(listings))
    assert export(None, tmp_path) == tmp_path / "2"
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "the other's"
    assert json.loads((tmp_path / "2" / "assets.extra" / "model_card.json").read_text())["version"] == 2


def test_an_export_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    def write(path):
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


@pytest.mark.parametrize(
    ("there", "folder", "message"),
    [
        (
            {"m/1/saved_model.pb": ""},
            "m/1",
            "must be a model's, not that of a version or inside one; give .*m. Received",
        ),
        ({"m/1/saved_model.pb": ""}, "m/1/", r"not that of a version.*Received: folder='.*m/1/?'"),
        ({"m/1/saved_model.pb": ""}, "m/1/assets/x", "not that of a version or inside one; give .*m. Received"),
        (
            {"m/1/saved_model.pb": ""},
            "m/2",
            "must be a model's, as the export numbers the versions itself; give .*m. R",
        ),
        ({}, "m/1", "as the export numbers the versions itself"),
        (
            {"m/1/saved_model.pb": ""},
            "",
            "must be new, or empty, or hold versions of one model; give .*NAME. It contains 'm'",
        ),
        ({"run/config.yaml": "", "run/README.md": ""}, "run", "It contains 'config.yaml'"),
        ({"run/unfinished-notes": ""}, "run", "It contains 'unfinished-notes'"),
        ({"file": ""}, "file", "must be a folder, and .*file is a file"),
        ({"file": ""}, "file/m", "must be a folder, and .*file is a file"),
        ({}, "en:de", "must have a name that clients can ask for, without :"),
        ({}, "en\nde", "must have a name that clients can ask for"),
    ],
)
def test_folders_that_cannot_be_a_models_are_refused_before_the_work(monkeypatch, tmp_path, there, folder, message):
    stand_in_for_writing(monkeypatch, lambda path: pytest.fail("the work began"))
    for name, text in there.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"folder .*{message}"):
        export(None, f"{tmp_path}/{folder}")
    (tmp_path / "no run").mkdir()
    result = CliRunner().invoke(main, ["export", str(tmp_path / "no run"), f"{tmp_path}/{folder}"])
    assert result.exit_code == 1 or "is a file" in result.stderr  # which the command line sees itself
    assert re.search("folder must be|folder must have|is a file", result.stderr)
    (tmp_path / "no run").rmdir()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("target", ["missing", "link"])
def test_a_link_to_nowhere_is_no_folder(monkeypatch, tmp_path, target):
    stand_in_for_writing(monkeypatch, lambda path: pytest.fail("the work began"))
    (tmp_path / "link").symlink_to(target)  # to itself, for one
    with pytest.raises(ValueError, match=r"folder must be a folder, not a broken link; .*Received: folder=.*link'"):
        export(None, tmp_path / "link")
    for arguments in (["export", tmp_path, tmp_path / "link"], ["serve", tmp_path / "link"]):
        result = CliRunner().invoke(main, [*map(str, arguments)])
        assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("name", [".gitignore", "README.md", "3/notes", "models.config", "3/saved_model.pb"])
def test_folders_that_can_be_a_models(monkeypatch, tmp_path, name):
    stand_in_for_writing(monkeypatch)
    (tmp_path / "m" / name).parent.mkdir(parents=True)
    (tmp_path / "m" / name).write_text("")
    assert export(None, tmp_path / "m").name == ("4" if "3" in name else "1")
    (tmp_path / "m" / "notes.txt").write_text("")  # what its owner adds later is in nobody's way
    export(None, tmp_path / "m")


KILLED = """
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("model_folder", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.unfinished_folder(pathlib.Path(sys.argv[2])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_export_leaves_the_next_one_removes(monkeypatch, tmp_path):
    stand_in_for_writing(monkeypatch)
    subprocess.run([sys.executable, "-c", KILLED, model_folder.__file__, str(tmp_path)])
    (left,) = tmp_path.iterdir()
    assert (left / "half").read_text() == "half"
    (tmp_path / "unfinished-notes").mkdir()
    (tmp_path / f"unfinished-{'0' * 32}").symlink_to(tmp_path / "unfinished-notes")
    (tmp_path / "1").mkdir()
    export(None, tmp_path)
    assert not left.exists()
    kept = {path.name for path in tmp_path.iterdir()} - set(SERVER_FILES)
    assert kept == {"1", "2", "unfinished-notes", f"unfinished-{'0' * 32}"}


def test_an_export_leaves_another_that_still_runs_alone(monkeypatch, tmp_path):
    started, other_is_done = threading.Event(), threading.Event()

    def write(path):
        (path / "saved_model.pb").write_text("whole")
        if not started.is_set():
            started.set()
            assert other_is_done.wait(300)

    stand_in_for_writing(monkeypatch, write)
    with futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(export, None, tmp_path)
        try:
            assert started.wait(300)
            assert export(None, tmp_path) == tmp_path / "1"
            assert len(list(tmp_path.glob("unfinished-*"))) == 1
        finally:
            other_is_done.set()  # else a failure would wait for the first export
        assert first.result() == tmp_path / "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", *SERVER_FILES]


def test_settings_are_written_again_and_a_readme_of_somebody_elses_is_not(monkeypatch, tmp_path):
    stand_in_for_writing(monkeypatch)
    export(None, tmp_path / "en-de")
    written = {name: (tmp_path / "en-de" / name).read_text() for name in SERVER_FILES}
    for text in written.values():
        assert "Written by keras_attention's export; the next export writes it again" in text.splitlines()[0]
    for name in SERVER_FILES:
        (tmp_path / "en-de" / name).write_text(written[name].splitlines()[0] + "\nchanged\n")
    export(None, tmp_path / "en-de")
    assert {name: (tmp_path / "en-de" / name).read_text() for name in SERVER_FILES} == written
    (tmp_path / "en-de" / "README.md").write_bytes(b"# Ours \xff\n")
    export(None, tmp_path / "en-de")
    assert (tmp_path / "en-de" / "README.md").read_bytes() == b"# Ours \xff\n"
    assert sorted(path.name for path in (tmp_path / "en-de").iterdir()) == ["1", "2", "3", *SERVER_FILES]


def test_without_the_messages_there_are_no_warm_up_requests(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)  # as if it were not installed
    write_warm_up(tmp_path / "requests", None)
    assert "no warm-up requests: pip install 'keras-attention-transformer[serving]'" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_traced_leaves_nothing_behind(tmp_path):
    with pytest.raises(AttributeError):
        export(Translator(keras.Model(), tiny_tokenizer()), tmp_path / "en-de")
    assert list(tmp_path.iterdir()) == []


def test_the_weights_are_those_of_the_moment(exported):
    """A SavedModel has a copy of the weights: more training changes only the translator."""
    reader = tf.train.load_checkpoint(str(exported / "variables" / "variables"))
    shapes = reader.get_variable_to_shape_map()
    weights = [name for name in shapes if re.search(r"\.ATTRIBUTES/VARIABLE_VALUE$", name)]
    values = [reader.get_tensor(name) for name in weights]
    for weight in tiny_model().trainable_weights:
        assert any(np.array_equal(weight.numpy(), value) for value in values), weight.path


@pytest.mark.slow
def test_an_export_of_a_model_with_most_options_translates_as_it_does(tmp_path):
    keras.utils.set_random_seed(4)
    sizes = {"num_layers": 3, "num_decoder_layers": 1, "hidden_dim": 24, "intermediate_dim": 46}
    config = ka.TransformerConfig(tiny_tokenizer().vocabulary_size, **sizes, **OPTIONS["together"])
    model = ka.Transformer(config)
    for weight in model.weights:
        if weight.path.endswith(("kernel", "embeddings")):
            weight.assign(weight * 2.1)
    translator = Translator(model, tiny_tokenizer(), beam_size=3, max_source_length=61)
    texts = lines()[:5]
    requests = [("serving_default", {"source": saved_model.as_bytes(texts)})]
    answers = saved_model.run_in_tensorflow(export(translator, tmp_path / "options"), requests, requests)
    expected = translator.serve(tf.constant(texts))
    for (answer,) in answers:
        assert answer["text"].tolist() == expected["text"].numpy().tolist()
        np.testing.assert_allclose(answer["score"], expected["score"], rtol=1e-4)
    assert len(set(expected["text"].numpy())) == len(texts)
