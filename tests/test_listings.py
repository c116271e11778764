"""Every listing of README and pages: Python runs, commands parse, requests are answered, the rest has a reason."""

import ast
import dataclasses
import importlib
import importlib.util
import json
import re
import shlex
import textwrap
import types
import urllib.request
from pathlib import Path
from unittest import mock

import pytest
import tensorflow as tf
from test_project import ROOT, tracked_files

import keras_attention as ka
from keras_attention.demo import make_pairs

pytestmark = pytest.mark.tensorflow

# The test that runs the Python listings of each page.
RUN_BY = {
    "README.md": "test_examples.py",
    "docs/generation.md": "test_examples.py",
    "docs/migrating.md": "test_examples.py",
    "docs/conversions.md": "test_conversion.py",
    "docs/numpy.md": "test_numpy_page.py",
    "docs/paper_to_code.md": "test_paper_to_code.py",
    "docs/experiments/other_uses.md": "test_other_uses.py",
    "docs/concepts/attention.md": "test_concepts_attention.py",
    "docs/concepts/heads.md": "test_concepts_attention.py",
    "docs/concepts/sequences.md": "test_concepts_attention.py",
    "docs/concepts/order_and_masks.md": "test_concepts_pages.py",
    "docs/concepts/layers.md": "test_concepts_pages.py",
    "docs/concepts/decoding.md": "test_concepts_pages.py",
    "docs/concepts/mistakes.md": "test_concepts_pages.py",
    "docs/concepts/touch.md": "test_concepts_pages.py",
    "docs/backends.md": "test_listings.py",
    "docs/watching.md": "test_watching.py",
    "docs/index.md": "test_listings.py",
    "docs/tutorial.md": "test_listings.py",
    "docs/resuming.md": "test_listings.py",
    "docs/serving.md": "test_listings.py",
    "docs/server.md": "test_listings.py",
    "docs/scaling.md": "test_listings.py",
    "saved_models/README.md": "test_listings.py",
}
NOT_RUN = {
    "pip": "would change the environment of the tests",
    "git": "downloads the repository",
    "tensorboard": "does not end; test_watching.py opens it in a browser",
    "docker": "needs Docker and the image of TensorFlow Serving",
    "tensorflow_model_server": "needs the binary of TensorFlow Serving",
    "./serve": "is built and run by test_serving_c.py",
}
SHORTER = {
    "20_700": "340",
    "-700": "-140",
    "-500": "-110",
    'from_preset("small", vocabulary_size=': 'from_preset("tiny", num_layers=1, vocabulary_size=',
    '"small"': '"tiny"',
    "vocabulary_size=8000": "vocabulary_size=300",
    "seed=1), 10": "seed=1), 2",
    "epochs=10": "epochs=1",
    # Two steps take less than tracing one.
    "MaskedCrossEntropy(label_smoothing=0.1)": "MaskedCrossEntropy(label_smoothing=0.1), run_eagerly=True",
    "loss=ka.training.MaskedCrossEntropy())": "loss=ka.training.MaskedCrossEntropy(), run_eagerly=True)",
    "range(6, 11)": "range(1, 3)",
    "num_layers=4, hidden_dim=384, intermediate_dim=1536": "num_layers=1, hidden_dim=24, intermediate_dim=96",
}


def pages() -> dict[str, str]:
    """The text of each tracked page."""
    paths = [path for path in tracked_files() if path.suffix == ".md" and path.name != "CHANGELOG.md"]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def python_listings(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [textwrap.dedent(code) for code in re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)]


def command_lines(text: str) -> list[str]:
    """The lines of the listings of a shell, each with its continuation lines."""
    listings = re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for code in listings for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def run(page: str, names: dict) -> None:
    for code in python_listings(page):
        for long, short in SHORTER.items():
            code = code.replace(long, short)
        exec(compile(code, page, "exec"), names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the listings of the tutorial have run, and their names."""
    folder = tmp_path_factory.mktemp("listings")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # What takes long has tests of its own: test_pipeline.py, test_forecast.py, test_comparison.py.
        forecast = types.SimpleNamespace(
            **dict.fromkeys(field.name for field in dataclasses.fields(ka.pipeline.Forecast))
        )
        comparison = ka.pipeline.compare_translations(*[["a b c d"] * 9] * 3)
        for name, value in (("train", None), ("forecast_run", forecast), ("compare", comparison)):
            patch.setattr(ka.pipeline, name, mock.create_autospec(getattr(ka.pipeline, name), return_value=value))
        run("docs/tutorial.md", names)
    return folder, names


@pytest.fixture(scope="module")
def served(folder):
    """A server of the model that the tutorial exports."""
    pytest.importorskip("grpc")
    from keras_attention.server import Server

    with Server(folder[0] / "saved_models" / "en-de", rest_port=0, grpc_port=0) as server:
        yield server


def test_each_page_with_python_is_run_by_a_test():
    found = {page for page, text in pages().items() if re.search(r"^ *```python", text, re.MULTILINE)}
    assert found == set(RUN_BY)
    for page, test in RUN_BY.items():
        assert Path(page).stem in (ROOT / "tests" / test).read_text(encoding="utf-8")


def test_the_front_page_has_the_listings_of_the_readme_and_one_that_prints(capsys):
    def code(listing: str) -> list[str]:
        return [ast.dump(part) for part in ast.parse(listing).body if not isinstance(part, ast.Import)]

    readme = [code(listing) for listing in python_listings("README.md")]
    *first, last = python_listings("docs/index.md")
    assert len(first) == 2
    assert all(code(listing) in readme for listing in first)
    exec(compile(last, "index.md", "exec"), {})
    assert f"```text\n{capsys.readouterr().out}```" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_the_tutorial_runs_from_the_first_listing_to_the_last(folder):
    path, names = folder
    assert {problem.level for problem in names["report"].problems} == {"warning"}
    assert len(names["translations"]) == 110
    assert (path / "saved_models" / "en-de" / "1" / "saved_model.pb").is_file()
    assert (path / "runs" / "en-de.keras").is_file()
    assert names["train"].call_args.args == (
        "runs/en-de",
        names["RunConfig"].from_preset(
            "tiny", source="train.en", target="train.de", valid_source="dev.en", valid_target="dev.de"
        ),
    )


@pytest.mark.slow
def test_other_pages_run_with_what_the_tutorial_made(folder, monkeypatch):
    path, names = folder
    monkeypatch.chdir(path)
    pairs = make_pairs("de", 60)
    batches = ka.text.TokenBatches.from_pairs(pairs, names["tokenizer"], shuffle=False)
    run("docs/resuming.md", resumed := {"pairs": pairs, "tokenizer": names["tokenizer"], "valid_batches": batches})
    assert resumed["run"].history["loss"]
    model = ka.Transformer.from_preset("tiny", vocabulary_size=names["tokenizer"].vocabulary_size)
    model.compile("adam", loss=ka.training.MaskedCrossEntropy())
    run("docs/backends.md", {"ka": ka, "pairs": pairs, "tokenizer": names["tokenizer"], "model": model})
    run("saved_models/README.md", {})
    export = mock.create_autospec(ka.serving.export)  # test_export.py writes cards
    monkeypatch.setattr(ka.serving, "export", export)
    run("docs/serving.md", {"ka": ka, "translator": names["translator"]})
    (with_card,) = [call for call in export.call_args_list if "card" in call.kwargs]
    assert with_card.kwargs["card"]["data"]["source"] == "train.en"
    assert any(isinstance(call.args[0].model, ka.serving.PackedTransformer) for call in export.call_args_list)
    shortlists = [call.args[0].shortlist for call in export.call_args_list]
    assert [each.size["per_piece"] for each in shortlists if each is not None] == [100]


@pytest.mark.slow
def test_the_listings_about_several_devices_and_shards(folder, monkeypatch):
    path, names = folder
    monkeypatch.chdir(path)
    mirrored, logical, *on_jax, shards = python_listings("docs/scaling.md")
    for code in (logical, *on_jax):  # they need several devices: test_devices.py and test_distribution.py have them
        compile(code, "docs/scaling.md", "exec")
    for side in ("en", "de"):
        (path / "corpus").mkdir(exist_ok=True)
        (path / "corpus" / f"train-1.{side}").write_text((path / f"train.{side}").read_text(encoding="utf-8"))
    names = {"ka": ka, "tf": tf, "tokenizer": names["tokenizer"], "batches": small_batches(names["tokenizer"])}
    for code in (mirrored, shards):
        for long, short in {**SHORTER, "tokens_per_batch=4096": "tokens_per_batch=256"}.items():
            code = code.replace(long, short)
        if code.lstrip().startswith("pairs"):
            names["model"] = ka.Transformer.from_preset("tiny", names["tokenizer"].vocabulary_size, num_layers=1)
            names["model"].compile("adam", loss=ka.training.MaskedCrossEntropy(), run_eagerly=True)
        exec(compile(code, "docs/scaling.md", "exec"), names)
    assert len(names["batches"]) > 0


def small_batches(tokenizer):
    return ka.text.TokenBatches.from_pairs([("a", "b"), ("b c", "a")], tokenizer, tokens_per_batch=64)


def test_the_clients_listing_gets_answers(folder, served, monkeypatch):
    serve = mock.create_autospec(ka.server.serve)  # it would not return
    monkeypatch.setattr(ka.server, "serve", serve)
    monkeypatch.chdir(folder[0])
    starting, asking = python_listings("docs/server.md")
    exec(compile(starting, "server.md", "exec"), {})
    assert serve.call_args.kwargs["limits"].deadline == 10
    names = {}
    exec(compile(asking.replace("http://localhost:8501", served.url), "server.md", "exec"), names)
    assert names["client"].status()


def option_words(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def check_command(words: list[str], folder: Path) -> None:
    """Parses a documented command as click does, with its files in place."""
    if "|" in words:
        words = words[words.index("|") + 1 :]
    words = words[: words.index("<")] if "<" in words else words
    for word in words[2:]:
        if re.fullmatch(r"[\w.-]+\.(en|de|gz|model)", word):
            Path(word).touch()
        elif word.startswith(("runs/", "saved_models/")):
            Path(word).mkdir(parents=True, exist_ok=True)
    command = importlib.import_module("keras_attention.cli").main.commands[words[1]]
    with command.make_context(words[1], words[2:]):
        pass


def check_script(words: list[str], path: Path) -> None:
    """Checks that a documented script has the options."""
    text = path.read_text(encoding="utf-8")
    assert all(f'"{option}"' in text for option in option_words(words)), words


def check_python(words: list[str], folder: Path) -> None:
    if words[1] == "-m":
        check_script(words, Path(importlib.util.find_spec(words[2]).origin))
    else:
        check_script(words, ROOT / words[1])


def check_make(words: list[str], folder: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in (word for word in words[1:] if "=" not in word):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


CHECKS = {"keras-attention": check_command, "python": check_python, "make": check_make}


def first_program(words: list[str]) -> str:
    return words[words.index("|") + 1] if "|" in words else words[0]


def test_each_command_line_is_checked_or_has_a_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checked = 0
    for page, text in pages().items():
        for line in command_lines(text):
            words = shlex.split(line, comments=True)
            program = first_program(words)
            assert program in {*CHECKS, *NOT_RUN, "curl"}, f"{page}: {line}"
            if program in CHECKS:
                CHECKS[program](words, tmp_path)
                checked += 1
    assert checked > 40


def test_requests_of_the_pages_are_answered(served):
    requests = set()
    for text in pages().values():
        for line in command_lines(text):
            if line.startswith("curl"):
                _, flag, body, url = shlex.split(line)
                assert (flag, url) == ("-d", "localhost:8501/v1/models/en-de:predict")
                requests.add(body)
    assert len(requests) >= 5
    for body in requests:
        request = urllib.request.Request(f"{served.url}/v1/models/en-de:predict", body.encode())
        with urllib.request.urlopen(request) as response:
            assert json.load(response)


def test_files_that_the_pages_name_exist():
    # These two name files of other libraries as well.
    named = {page: text for page, text in pages().items() if not page.endswith(("comparison.md", "paper_to_code.md"))}
    paths = {(page, path) for page, text in named.items() for path in re.findall(r"`((?:\w+/)+\w+\.py)`", text)}
    missing = [
        (page, path) for page, path in paths if not ((ROOT / path).exists() or (ROOT / ka.__name__ / path).exists())
    ]
    assert len(paths) > 100
    assert not missing
