"""Converted models compute the same as ours, and those that do not are refused."""

import functools
import importlib.util
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from model_options import OPTIONS
from tiny_translator import tiny_model, tiny_tokenizer

from keras_attention import Transformer, TransformerConfig
from keras_attention.cli import main
from keras_attention.conversion import ctranslate2 as to_ctranslate2_module
from keras_attention.conversion import functions, parity, to_ctranslate2, to_litert, to_onnx
from keras_attention.conversion.folder import atomic_folder
from keras_attention.pipeline import RunConfig, RunFolder

pytestmark = pytest.mark.tensorflow

BOS, EOS = 2, 3
SOURCES = [[17, 5, 29, 11, 90, 41, 7], [23], [8, 8, 61]]
# Of another number of ids at once than the conversion's own check takes.
TARGETS = [[19, 4], [50, 6, 37, 101, 140], [33, 12, 9]]


@functools.cache
def small(activation="relu", normalize_first=False, use_attention_bias=False, dtype=None, scale=1.7, **changes):
    """A model of odd sizes whose every weight matters."""
    keras.utils.set_random_seed(5)
    config = TransformerConfig(
        vocabulary_size=tiny_tokenizer().vocabulary_size,
        **{"num_layers": 2, "hidden_dim": 20, "intermediate_dim": 38, "num_heads": 5, **changes},
        activation=activation,
        normalize_first=normalize_first,
        use_attention_bias=use_attention_bias,
        layer_norm_epsilon=3e-3,
        initialization="glorot",
    )
    model = Transformer(config, dtype=dtype)
    random = np.random.default_rng(3)
    for weight in model.weights:
        if weight.path.endswith(("bias", "beta", "gamma")):
            weight.assign(weight + random.normal(0, 0.3, weight.shape))
        else:
            weight.assign(weight * scale)
    return model


def rows(ids):
    length = max(map(len, ids))
    return np.array([[*row, *[0] * (length - len(row))] for row in ids], "int32")


def log_softmax(logits):
    logits = logits.astype("float64")
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def model_log_probs(model, sources, targets):
    """The log probabilities of the tokens of each target, eos included, sentence by sentence, without padding."""
    log_probs = []
    for source, target in zip(sources, targets, strict=True):
        inputs = {"source": rows([[*source, EOS]]), "target": rows([[BOS, *target]])}
        table = log_softmax(keras.ops.convert_to_numpy(model(inputs)))[0]
        log_probs.append(table[np.arange(len(target) + 1), [*target, EOS]])
    return log_probs


def pieces(ids):
    return [tiny_tokenizer().pieces(row) for row in ids]


def scored(folder):
    ctranslate2 = pytest.importorskip("ctranslate2")
    converted = ctranslate2.Translator(str(folder))
    return [score.log_probs for score in converted.score_batch(pieces(SOURCES), pieces(TARGETS))]


@pytest.fixture(autouse=True)
def quiet(caplog):
    """tf2onnx logs its progress."""
    caplog.set_level("ERROR")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_first": True, "use_attention_bias": True, "activation": "gelu"},
        {"use_attention_bias": True, "activation": "swiglu"},
        {"normalize_first": True, "activation": "tanh"},
        {"activation": "geglu"},
        {"num_decoder_layers": 1, "num_layers": 3},
        {"key_dim": 7},
        {"key_dim": 3, "value_dim": 7, "use_attention_bias": True},
        {"key_dim": 7, "value_dim": 3},
        {"positions": "learned", "max_length": 31},
        {"num_heads": 6, "num_kv_heads": 2, "key_dim": 4, "use_attention_bias": True},
        {"normalization": "rms"},
        {"normalization": "rms", "normalize_first": True},
        {"positions": "rotary"},
        {**OPTIONS["together"], "normalize_first": True},
    ],
    ids=str,
)
def test_ctranslate2_scores_as_ours(options, tmp_path):
    pytest.importorskip("ctranslate2")
    model = small(**options)
    folder = to_ctranslate2(model, tiny_tokenizer(), tmp_path / "new" / "model")
    assert folder == tmp_path / "new" / "model"
    for actual, expected in zip(scored(folder), model_log_probs(model, SOURCES, TARGETS), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["layer_norm_epsilon"] == 3e-3
    assert (folder / "tokenizer.model").read_bytes() == tiny_tokenizer().model


def test_ctranslate2_follows_the_same_beams(tmp_path):
    """The scores of its hypotheses are those of our model."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    model, tokenizer = tiny_model(), tiny_tokenizer()
    folder = to_ctranslate2(model, tokenizer, tmp_path / "model")
    translations = ctranslate2.Translator(str(folder)).translate_batch(
        pieces(SOURCES), beam_size=3, num_hypotheses=2, length_penalty=0, max_decoding_length=19, return_scores=True,
        min_decoding_length=0, return_end_token=True,
    )  # fmt: skip
    ids_of = {piece: id_ for id_, piece in enumerate(tokenizer.pieces(range(tokenizer.vocabulary_size)))}
    for source, each in zip(SOURCES, translations, strict=True):
        for hypothesis, score in zip(each.hypotheses, each.scores, strict=True):
            ids = [ids_of[piece] for piece in hypothesis]
            ended = ids[-1] == EOS
            (expected,) = model_log_probs(model, [source], [ids[:-1] if ended else ids])
            np.testing.assert_allclose(score, expected[: len(ids)].sum(), rtol=0, atol=1e-3)


def test_ctranslate2_in_int8_is_near_and_smaller(tmp_path):
    pytest.importorskip("ctranslate2")
    model = small()
    exact = to_ctranslate2(model, tiny_tokenizer(), tmp_path / "float32")
    near = to_ctranslate2(model, tiny_tokenizer(), tmp_path / "int8", quantization="int8")
    # The table of positions stays float32: what shrinks is the rest.
    table = 2048 * model.config.hidden_dim * 4
    sizes = [(folder / "model.bin").stat().st_size - table for folder in (exact, near)]
    assert sizes[1] < 0.5 * sizes[0]
    actual, expected = np.concatenate(scored(near)), np.concatenate(model_log_probs(model, SOURCES, TARGETS))
    assert np.abs(actual - expected).max() > 1e-4  # it was rounded
    assert np.corrcoef(actual, expected)[0, 1] > 0.98


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_the_weights_of_other_dtypes_are_converted_as_float32(dtype, tmp_path):
    pytest.importorskip("ctranslate2")
    model = small(dtype=dtype)
    folder = to_ctranslate2(model, tiny_tokenizer(), tmp_path / "model")
    same = Transformer(model.config, dtype="float32")
    same.set_weights([np.asarray(weight, "float32") for weight in model.get_weights()])
    for actual, expected in zip(scored(folder), model_log_probs(same, SOURCES, TARGETS), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_adapters_are_converted_with_the_model(tmp_path):
    pytest.importorskip("ctranslate2")
    model = small.__wrapped__(dtype="mixed_bfloat16")  # one of its own, since it is changed
    before = model_log_probs(model, SOURCES, TARGETS)
    model.enable_lora(rank=2, pattern="query|value|intermediate|embedding")
    random = np.random.default_rng(4)
    for weight in model.trainable_weights:
        weight.assign(random.normal(0, 0.3, weight.shape))
    same = Transformer.from_config({**model.get_config(), "dtype": "float32"})
    same.set_weights(model.get_weights())
    expected = model_log_probs(same, SOURCES, TARGETS)
    assert np.abs(np.concatenate(expected) - np.concatenate(before)).max() > 0.1
    folder = to_ctranslate2(model, tiny_tokenizer(), tmp_path / "model")
    np.testing.assert_allclose(np.concatenate(scored(folder)), np.concatenate(expected), rtol=0, atol=1e-4)


def greedy(encode, decode_step, sources, steps):
    """Decodes with only the documented tensors, each sentence three times, in reordered rows."""
    source = rows([[*row, EOS] for row in sources])
    memory = encode({"source": source})
    batch, beams = len(sources), 3
    keys, values = (
        np.zeros((beams * batch, *memory[name].shape[1:3], 0, memory[name].shape[4]), "float32")
        for name in ("memory_keys", "memory_values")
    )
    ids, written, tables = np.full((beams * batch, 1), BOS, "int32"), [], []
    for _ in range(steps):
        outputs = decode_step({"ids": ids, "source": source, **memory, "past_keys": keys, "past_values": values})
        reordered = np.arange(beams * batch).reshape(batch, beams)[:, ::-1].ravel()  # as a search would reorder them
        keys, values = outputs["keys"][reordered], outputs["values"][reordered]
        ids = outputs["logits"][:, -1].argmax(-1).astype("int32")[reordered, None]
        written.append(ids[::beams, 0])
        tables.append(outputs["logits"][::beams, -1])
    return np.stack(written, 1), np.stack(tables, 1)


def logits_of(model, sources, written):
    """The logits at each step of decoded rows, in one pass without caches."""
    inputs = {"source": rows([[*row, EOS] for row in sources]), "target": rows([[BOS, *row] for row in written])}
    return keras.ops.convert_to_numpy(model(inputs))[:, :-1]


def onnx_functions(folder):
    onnxruntime = pytest.importorskip("onnxruntime")

    def function(name):
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True))

    return function("encoder"), function("decoder_step")


def litert_functions(folder):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(folder / "model.tflite"))

    def function(name):
        signature = interpreter.get_signature_runner(name)
        return lambda inputs: {key: np.array(value) for key, value in signature(**inputs).items()}

    return function("encode"), function("decode_step")


FORMATS = {"onnx": (to_onnx, onnx_functions, "tf2onnx"), "litert": (to_litert, litert_functions, "ai_edge_litert")}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A folder with a model in both formats."""
    folder = tmp_path_factory.mktemp("converted")
    model = small(normalize_first=True, use_attention_bias=True)
    for name, (convert, _, package) in FORMATS.items():
        if importlib.util.find_spec(package) is not None:
            convert(model, tiny_tokenizer(), folder / name / "en-de")
    return folder, model


@pytest.mark.parametrize("name", FORMATS)
def test_functions_decode_as_ours(name, converted):
    _, functions_of, package = FORMATS[name]
    pytest.importorskip(package)
    folder, model = converted
    ids, logits = greedy(*functions_of(folder / name / "en-de"), SOURCES, steps=11)
    expected = logits_of(model, SOURCES, ids.tolist())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(ids, expected.argmax(-1))
    assert len({tuple(row) for row in ids.tolist()}) == len(SOURCES)


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_with_most_options_is_converted(name, tmp_path):
    """The conversion itself compares the logits."""
    convert, functions_of, package = FORMATS[name]
    pytest.importorskip(package)
    model = small(num_layers=3, num_decoder_layers=1, **OPTIONS["together"])
    encode, _ = functions_of(convert(model, tiny_tokenizer(), tmp_path / "model"))
    memory = encode({"source": rows([[*row, EOS] for row in SOURCES])})
    assert memory["memory_keys"].shape == (3, 1, 2, 8, 4)
    assert memory["memory_values"].shape == (3, 1, 2, 8, 7)


def test_the_listings_of_the_page_run(converted, monkeypatch, capsys):
    for package in ("ctranslate2", "tf2onnx", "ai_edge_litert"):
        pytest.importorskip(package)
    folder, model = converted
    monkeypatch.chdir(folder)
    page = Path(__file__).parent.parent / "docs" / "conversions.md"
    listings = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(listings) == 4
    source, limit = tiny_tokenizer().encode(["How are you?"])[0], 50
    for listing in listings:
        names = {"model": model, "tokenizer": tiny_tokenizer()}
        exec(compile(listing, "conversions.md", "exec"), names)
        if "written" in names:
            written = names["written"]
            inputs = {"source": rows([[*source, EOS]]), "target": rows([[BOS, *written]])}
            likeliest = keras.ops.convert_to_numpy(model(inputs))[0].argmax(-1).tolist()
            assert likeliest[:-1] == written
            assert likeliest[-1] == EOS or len(written) == len(source) + 1 + limit
    assert len(names["outputs"]["logits"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3


def run_by_tensorflow(function):
    return lambda inputs: {key: value.numpy() for key, value in function(**inputs).items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_functions_of_onnx_and_litert_support_each_option(name):
    """Their check, here of functions that TensorFlow itself runs."""
    model = small(**OPTIONS[name])
    right = functions.DecodingFunctions(model)
    functions.check(model, run_by_tensorflow(right.encode), run_by_tensorflow(right.decode_step))


def test_functions_whose_padding_shows_are_refused(monkeypatch, tmp_path):
    model, run = small(), run_by_tensorflow
    right = functions.DecodingFunctions(model)
    functions.check(model, run(right.encode), run(right.decode_step))
    monkeypatch.setattr(functions, "_key_mask", lambda source: None)
    wrong = functions.DecodingFunctions(model)
    with pytest.raises(ValueError, match=r"refused.*logits of random targets differ by up to \d"):
        functions.check(model, run(wrong.encode), run(wrong.decode_step))


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_conversion_that_computes_something_else_is_refused(quantization, monkeypatch, tmp_path):
    pytest.importorskip("ctranslate2")
    right = to_ctranslate2_module.sinusoids
    monkeypatch.setattr(to_ctranslate2_module, "sinusoids", lambda positions, width: right(positions + 1, width))
    with pytest.raises(ValueError, match=r"refused.*log probabilities of random targets differ by"):
        to_ctranslate2(small(), tiny_tokenizer(), tmp_path / "new" / "model", quantization)
    assert list(tmp_path.iterdir()) == []


def test_a_greedy_translation_that_is_none_is_refused():
    model = small()
    source_ids = rows([[*row, EOS] for row in SOURCES])
    written = [[] for _ in SOURCES]
    for _ in range(3):
        likeliest = logits_of(model, SOURCES, [[*row, 0] for row in written])[:, -1].argmax(-1).tolist()
        written = [[*row, token] for row, token in zip(written, likeliest, strict=True)]
    to_ctranslate2_module._check_greedy(model, source_ids, written)
    written[1][2] = (written[1][2] + 1) % model.config.vocabulary_size
    with pytest.raises(ValueError, match="logits of the tokens of a greedy translation differ"):
        to_ctranslate2_module._check_greedy(model, source_ids, written)


def test_differences_and_nan_are_noticed():
    numbers = np.array([[1.0, -20.0, 300.0]])
    parity.assert_close(numbers + 9e-4, numbers, "numbers")
    for wrong in (numbers - [[0, 4e-3, 0]], numbers * [[1, 1, np.nan]]):
        with pytest.raises(ValueError, match="numbers differ by up to"):
            parity.assert_close(wrong, numbers, "numbers")
    with pytest.raises(ValueError, match=r"numbers have shape \(3,\) where the model gives \(1, 3\)"):
        parity.assert_close(numbers[0], numbers, "numbers")
    spread = np.array([-5.0, -7.0, -11.0, -3.0])
    parity.assert_near(spread - [0.1, -0.1, 0.2, 0], spread, "numbers")
    for wrong in (spread - [0.5, -0.5, 0.5, 0.5], spread * np.nan):
        with pytest.raises(ValueError, match=r"numbers differ by .* of their spread, where 0\.1 is allowed"):
            parity.assert_near(wrong, spread, "numbers")


def test_token_log_probs_are_those_of_numpy():
    logits = np.random.default_rng(2).normal(0, 9, (2, 3, 7)).astype("float32")
    labels = np.array([[1, 6, 0], [5, 5, 2]])
    expected = np.take_along_axis(log_softmax(logits), labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(parity.token_log_probs(logits, labels), expected, rtol=0, atol=1e-9)


def test_what_cannot_be_converted_is_refused_first(monkeypatch, tmp_path):
    tokenizer, folder = tiny_tokenizer(), tmp_path / "model"
    folder.mkdir()
    (folder / "mine").write_text("keep")
    other = Transformer.from_preset("tiny", 97, num_layers=1)
    quantized = Transformer.from_preset("tiny", 97, num_layers=1)
    quantized.quantize("int8", filters=lambda layer: layer.name == "embedding")
    for convert in (to_ctranslate2, to_litert, to_onnx):
        module = importlib.import_module(convert.__module__)
        monkeypatch.setattr(module, "check_installed", lambda *packages: None)
        with pytest.raises(
            TypeError, match=r"`model` must be a keras_attention.Transformer. Received: model=Sequential"
        ):
            convert(keras.Sequential(), tokenizer, folder)
        with pytest.raises(ValueError, match=r"`tokenizer` must be the one .* Received: tokenizer.vocabulary_size=151"):
            convert(other, tokenizer, folder)
        with pytest.raises(ValueError, match=r"A quantized model cannot be converted.* weights of float32, int8"):
            convert(quantized, tokenizer, folder)
        with pytest.raises(ValueError, match=r"`folder` must not exist.* Received: folder="):
            convert(tiny_model(), tokenizer, folder)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_what_ctranslate2_cannot_express_is_refused(tmp_path):
    pytest.importorskip("ctranslate2")
    with pytest.raises(
        ValueError, match=r"`model` must have an activation of CTranslate2: relu.* Received: .*='softplus'"
    ):
        to_ctranslate2(small(activation="softplus"), tiny_tokenizer(), tmp_path / "model")
    with pytest.raises(ValueError, match=r"`quantization` must be None or 'int8'. Received: quantization='int4'"):
        to_ctranslate2(small(), tiny_tokenizer(), tmp_path / "model", quantization="int4")
    for positions in ("alibi", "relative"):
        with pytest.raises(ValueError, match=rf"convert to ONNX or LiteRT, .* Received: .*positions='{positions}'"):
            to_ctranslate2(small(positions=positions), tiny_tokenizer(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_whole_or_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as temporary:
        (temporary / "file").write_text("whole")
        assert list((tmp_path / "empty").iterdir()) == []
    assert (tmp_path / "empty" / "file").read_text() == "whole"
    with pytest.raises(OSError, match="disk full"), atomic_folder(tmp_path / "a" / "b") as temporary:
        (temporary / "file").write_text("half")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    (tmp_path / "link").symlink_to("linked")
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "file").write_text("whole")
    assert (tmp_path / "linked" / "file").read_text() == "whole"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ValueError, match=r"must not exist.* Received: folder=.*circle"):
        atomic_folder(tmp_path / "circle").__enter__()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, as training leaves it."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    sizes = tiny_model().config.to_dict()
    files = {"source": "a", "target": "b", "valid_source": "c", "valid_target": "d"}
    folder.start(RunConfig.from_preset("tiny", **files, vocabulary_size=sizes.pop("vocabulary_size"), model=sizes))
    tiny_tokenizer().save(folder.tokenizer_file)
    folder.checkpoints.mkdir()
    tiny_model().save(folder.model_file("final"))
    return folder.path


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_converts_a_run(run, tmp_path):
    pytest.importorskip("ctranslate2")
    done = command("convert", run, "--to", "ctranslate2", "--quantization", "int8", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(tmp_path / "out")
    actual, expected = np.concatenate(scored(tmp_path / "out")), model_log_probs(tiny_model(), SOURCES, TARGETS)
    assert np.corrcoef(actual, np.concatenate(expected))[0, 1] > 0.95
    again = command("convert", run, "--to", "ctranslate2", tmp_path / "out")
    assert again.exit_code == 1
    assert "`folder` must not exist" in again.output


def test_the_command_says_what_does_not_fit(run, tmp_path):
    done = command("convert", run, "--to", "onnx", "--quantization", "int8", tmp_path / "out")
    assert done.exit_code == 2
    assert "--quantization is for --to ctranslate2. Received: --to onnx" in done.output


def test_a_package_that_is_missing_is_named():
    from keras_attention.conversion.model import check_installed

    with pytest.raises(
        ValueError, match=r"needs no_such_package: pip install 'keras-attention-transformer\[convert\]'"
    ):
        check_installed("numpy", "no_such_package")
