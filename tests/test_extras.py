"""Packages that are not installed: each error names the extra that installs them."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import keras_attention
from keras_attention.extras import DISTRIBUTION, MODULES, MissingExtraError, install_command, is_installed, needed_by

ROOT = Path(__file__).parent.parent

# What people do with the library installed without extras, and the extras that the error names.
USES = {
    "keras_attention.cli": ("import keras_attention.cli", "cli,text"),
    "keras_attention.pipeline": ("ka.pipeline", "cli,text"),
    "a run": ("from keras_attention.pipeline import RunFolder", "cli,text"),
    "a run's config": ("import keras_attention.pipeline.config", "cli,text"),
    "BLEU": ("from keras_attention.pipeline import evaluate_translations", "cli,text"),
    "the demo": ("from keras_attention.demo import run_demo", "cli,text"),
    "the demo's phrases": ("from keras_attention.demo.phrases import make_pairs", "cli,text"),
    "the drawing": ("from keras_attention.demo.heat_map import draw_attention", "cli,text"),
    "a tokenizer": ("ka.text.SubwordTokenizer(b'model')", "text"),
    "a trained tokenizer": ("ka.text.SubwordTokenizer.train(__file__, 30)", "text"),
    "a loaded tokenizer": ("ka.text.SubwordTokenizer.load(__file__)", "text"),
    "a tokenizer in a graph": (
        "ka.text.SubwordTokenizer.__new__(ka.text.SubwordTokenizer)._graph_tokenizer()",
        "text",
    ),
    "the server": ("from keras_attention.server import Server", "serving,text"),
    "a part of the server": ("import keras_attention.server.model", "serving,text"),
    "a client over gRPC": ("keras_attention.client.GrpcClient('localhost:8500')", "serving"),
    "a URL of gRPC": ("keras_attention.client.connect('grpc://localhost:8500/en-de')", "serving"),
    "CTranslate2": ("ka.conversion.to_ctranslate2(None, None, 'folder')", "convert"),
    "ONNX": ("ka.conversion.to_onnx(None, None, 'folder')", "convert"),
    "LiteRT": ("ka.conversion.to_litert(None, None, 'folder')", "convert"),
}
WORKS = [
    "ka.layers",
    "ka.models",
    "ka.ops",
    "ka.training",
    "ka.decoding",
    "ka.serving.Translator",
    "ka.serving.export",
    "ka.conversion",
    "ka.testing",
    "ka.text.ParallelCorpus",
    "keras_attention.client.connect('http://localhost:8501/v1/models/en-de')",
]
# What Keras and TensorFlow install for themselves.
OF_THE_CORE = {"rich", "grpc"}
# Without the packages of every extra, in one process, since each loads Keras.
SCRIPT = f"""if True:
    import json, sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {sorted(set().union(*MODULES.values()) - OF_THE_CORE)!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Missing())
    __file__ = {str(ROOT / "LICENSE")!r}
    import keras_attention as ka
    import keras_attention.client
    found = {{}}
    for use in {[code for code, _ in USES.values()] + WORKS!r}:
        try:
            exec(use)
            found[use] = "works"
        except Exception as error:
            found[use] = f"{{type(error).__name__}}: {{error}}"
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def without_extras():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("use", USES)
def test_the_error_names_the_extra(use, without_extras):
    code, extras = USES[use]
    kind, _, message = without_extras[code].partition(": ")
    assert kind == ("ValueError" if "conversion" in code else "MissingExtraError"), message
    assert message.endswith(f": pip install 'keras-attention-transformer[{extras}]'")


@pytest.mark.parametrize("code", WORKS)
def test_the_rest_works_without_extras(code, without_extras):
    assert without_extras[code] == "works"


def test_the_command_without_its_extra_says_so_in_one_line():
    code = "import sys; sys.modules['click'] = None; from keras_attention_command import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    expected = "Error: The command keras-attention needs click, which is not installed: "
    assert (done.returncode, done.stderr) == (1, f"{expected}pip install 'keras-attention-transformer[cli,text]'\n")


def test_a_command_without_the_extra_of_its_room_says_so_in_one_line(monkeypatch, tmp_path):
    from click.testing import CliRunner

    from keras_attention.cli import main

    for name in [name for name in sys.modules if name.startswith("keras_attention.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(keras_attention), "server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(main, ["serve", str(tmp_path)])
    assert done.exit_code == 1
    assert done.output == (
        "Error: keras_attention.server needs uvicorn, which is not installed: "
        "pip install 'keras-attention-transformer[serving,text]'\n"
    )


def test_the_extra_of_a_package_is_the_one_that_installs_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    distributions = metadata.packages_distributions()
    for extra, modules in MODULES.items():
        wanted = {re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"][extra]}
        found = {name.lower().replace("_", "-") for module in modules for name in distributions[module]}
        assert found == wanted, extra


WITHOUT_TENSORFLOW = """
import sys
sys.modules.update(dict.fromkeys(("tensorflow", "tensorflow_text", "tensorboard")))  # as if not installed
from pathlib import Path
import keras
import keras_attention as ka
from keras_attention.pipeline import RunConfig, RunFolder, train
for room in ("ops", "layers", "models", "training", "text", "decoding", "serving"):
    getattr(ka, room)
for name, text in {"a": "the cat sat\\nthe hat\\n", "b": "die katze\\nder hut\\n"}.items():
    Path(name).write_text(text * 5)
tokenizer = ka.text.SubwordTokenizer.train(["a", "b"], vocabulary_size=30)
data = ka.text.ParallelCorpus("a", "b").batches(tokenizer, tokens_per_batch=128, max_length=16)
sizes = {"num_layers": 1, "hidden_dim": 8, "intermediate_dim": 8, "num_heads": 2}
model = ka.Transformer(ka.TransformerConfig(tokenizer.vocabulary_size, **sizes))
model.compile("sgd", ka.training.MaskedCrossEntropy())
losses = model.fit(data, shuffle=False, verbose=0).history["loss"]
translator = ka.serving.Translator(model, tokenizer, beam_size=2, max_length=5)
print(len(losses), len(translator(["the cat", "", b"\\xff"])))
config = RunConfig("a", "b", "a", "b", "tiny", 30, model=sizes, max_length=16, evaluate_every=2, score_sentences=2)
train("run", config, max_steps=4)
train("run", max_steps=5)
print(int(RunFolder("run").load(RunFolder("run").model_file("last")).optimizer.iterations))
print([n for n in sys.modules if n.startswith("tensorflow.")])
try:
    ka.serving.export(translator, "saved")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_all_but_exports_works_without_tensorflow(backend, tmp_path):
    if not is_installed(backend):
        pytest.skip(f"needs {backend}: install the extra `backends`")
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiling takes longer than computing here
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "1 3" in lines
    assert any(line.startswith("no TensorBoard logs: ") for line in lines)
    *_, steps, modules, error = lines
    assert (steps, modules) == ("5", "[]")
    assert error.startswith("An export is a SavedModel, which only TensorFlow writes: ")
    assert error.endswith(f"Received: KERAS_BACKEND={backend}")


def test_other_errors_pass():
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as found, needed_by("A test"):
        importlib.import_module("no_such_module")
    assert not isinstance(found.value, MissingExtraError)
    with pytest.raises(ModuleNotFoundError) as found, needed_by("A test"):  # a broken package is not a missing one
        raise ModuleNotFoundError("No module named 'click.nothing'", name="click.nothing")
    assert not isinstance(found.value, MissingExtraError)


def test_the_inner_error_is_kept(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert not is_installed("yaml")
    with (
        pytest.raises(MissingExtraError, match=r"^Inner needs yaml, ") as found,
        needed_by("Outer"),
        needed_by("Inner"),
    ):
        importlib.import_module("yaml")
    assert found.value.name == "yaml"
    assert str(found.value).endswith(install_command("cli"))
