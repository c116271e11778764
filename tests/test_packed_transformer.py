"""A Transformer with packed weights: its numbers, its export and what it refuses."""

import json
import platform

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from tiny_translator import tiny_tokenizer

import keras_attention as ka
from keras_attention.cli import main
from keras_attention.serving import PackedTransformer, Translator, export, packed_check, packed_products
from keras_attention.serving.packed_check import TEXTS, encoder_error

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the operations are those of x86-64"),
    # Of `tf.compat.v1.saved_model.load`, which is how servers load.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
]
V = 89
MODERN = {"positions": "rotary", "normalization": "rms", "normalize_first": True, "activation": "swiglu"}
CONFIGS = {"paper": {}, "modern": {**MODERN, "num_kv_heads": 2, "num_decoder_layers": 1}}
SOURCE = np.array([[5, 6, 7, 8, 9, 3], [11, 12, 3, 0, 0, 0], [3, 0, 0, 0, 0, 0]], "int32")


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    keras.utils.set_random_seed(7)
    sizes = {"num_layers": 2, "hidden_dim": 32, "intermediate_dim": 56, "num_heads": 4}
    return ka.Transformer(ka.TransformerConfig(V, **{**sizes, **CONFIGS[request.param]}))


@pytest.mark.parametrize(("weights", "largest"), [("bfloat16", 0.02), ("int8", 0.05)])
def test_encoder_and_decoder_are_those_of_the_trained_model(model, weights, largest):
    packed = PackedTransformer(model, weights)
    assert 0 < encoder_error(packed, tf.constant(SOURCE)) < largest
    stored = "qint8" if weights == "int8" else weights
    assert {matrix.kernel.dtype.name for matrix in packed.matrices.values()} == {stored}
    expected, logits = (steps(each) for each in (model, packed))
    assert np.abs(logits - expected).max() < largest * np.abs(expected).max()


def steps(model):
    """The logits of three steps of two beams, (3, B·K, V)."""

    @tf.function(autograph=False)
    def run(source):
        decoder = model.fused_decoder()
        state, found = decoder.read(source, 2), []
        for ids in ([2] * 6, [5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]):
            logits, state = decoder.step(tf.constant(ids), state)
            found.append(logits)
        return tf.stack(found)

    return run(tf.constant(SOURCE)).numpy()


def test_padding_changes_nothing(model):
    packed = PackedTransformer(model, "int8")
    wide = np.pad(SOURCE, [(0, 0), (0, 5)])
    encode = tf.function(packed.encode, autograph=False)
    narrow, padded = (np.asarray(encode(tf.constant(ids))[0]) for ids in (SOURCE, wide))
    np.testing.assert_allclose(padded[:, :6][SOURCE != 0], narrow[SOURCE != 0], atol=1e-5)


@pytest.fixture(scope="module")
def packed_translator():
    tokenizer = tiny_tokenizer()
    keras.utils.set_random_seed(7)
    model = ka.Transformer.from_preset("tiny", tokenizer.vocabulary_size, num_layers=2)
    return Translator(PackedTransformer(model, "int8"), tokenizer, beam_size=2)


@pytest.fixture(scope="module")
def version(packed_translator, tmp_path_factory):
    return export(packed_translator, tmp_path_factory.mktemp("exports") / "packed")


def test_an_export_contains_the_packed_weights_and_gives_the_same(packed_translator, version):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], str(version)).signature_def
        served = signatures["serving_default"]
        outputs = {name: served.outputs[name].name for name in ("text", "score")}
        found = session.run(outputs, {served.inputs["source"].name: [text.encode() for text in TEXTS]})
    assert set(signatures) - {"__saved_model_init_op"} == {
        "serving_default", "translate_nbest", "encode_ids", "decode_ids"
    }  # fmt: skip
    expected = packed_translator.serve(tf.constant(TEXTS))
    assert found["text"].tolist() == expected["text"].numpy().tolist()
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-5)
    reader = tf.train.load_checkpoint(version / "variables" / "variables")
    dtypes, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
    assert list(dtypes.values()).count(tf.qint8) == len(packed_translator.model.matrices)
    in_float32 = [name for name in shapes if len(shapes[name]) == 2 and dtypes[name] == tf.float32]
    assert len(in_float32) == 1  # the embeddings, whose rows are looked up
    assert "_QuantizedMatMul" in _operations(version)


def _operations(version):
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    graph = SavedModel.FromString((version / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    return {node.op for function in graph.library.function for node in function.node_def}


def test_the_card_and_the_readme_say_what_it_needs(packed_translator, version):
    card = json.loads((version / "assets.extra" / "model_card.json").read_text())
    assert card["weights"] == "int8"
    assert card["kept_bfloat16"] == []
    assert card["runtime"].startswith("TensorFlow 2.21 for x86-64")
    assert card["sizes"]["parameters"] == packed_translator.model.trained().count_params()
    readme = (version.parent / "README.md").read_text()
    assert "built with oneDNN" in readme
    assert "| `align` |" not in readme


@pytest.mark.parametrize("fault", ["packing", pytest.param("loading", marks=pytest.mark.slow)])
def test_wrong_numbers_are_noticed_before_anything_is_published(packed_translator, tmp_path, monkeypatch, fault):
    if fault == "packing":
        monkeypatch.setattr(packed_check, "encoder_error", lambda *_: float("nan"))
        message = r"differs from the trained one.*export without `--runtime x86`.*error=nan"
    else:
        serve = packed_translator.serve

        def shifted(source):  # in Python, not in the graph
            outputs = serve(source)
            return outputs | {"score": outputs["score"] + 0.01} if tf.executing_eagerly() else outputs

        monkeypatch.setattr(packed_translator, "serve", shifted)
        message = r"other scores in a session than in Python"
    with pytest.raises(RuntimeError, match=message):
        export(packed_translator, tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_packed():
    sizes = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 24, "num_heads": 2}
    model = ka.Transformer(ka.TransformerConfig(V, **sizes))
    with pytest.raises(ValueError, match=r"`weights` must be one of bfloat16, int8. Received: weights='int4'"):
        PackedTransformer(model, "int4")
    alibi = ka.Transformer(ka.TransformerConfig(V, **sizes, positions="alibi"))
    with pytest.raises(ValueError, match=r"positions add no bias.*Received: positions='alibi'"):
        PackedTransformer(alibi, "int8")
    model.quantize("int8")
    with pytest.raises(ValueError, match="a model that is not quantized"):
        PackedTransformer(model, "int8")
    with pytest.raises(TypeError, match=r"must be a Transformer\. Received: a CausalTransformer"):
        PackedTransformer(ka.CausalTransformer(ka.TransformerConfig(V, **sizes)), "int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runtime", "x86"], "give --weights int8 or --weights bfloat16"),
        (["--runtime", "x86", "--weights", "float32"], "give --weights int8 or --weights bfloat16"),
        (["--runtime", "x86", "--weights", "int8", "--inspect"], "--inspect needs the trained weights"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(tmp_path, options, message):
    done = CliRunner().invoke(main, ["export", str(tmp_path), str(tmp_path / "saved"), *options])
    assert done.exit_code == 2
    assert message in done.output
    assert list(tmp_path.iterdir()) == []


def test_products_run_outside_of_a_graph_too():
    x, kernel = np.eye(5, 7, dtype="float32"), np.arange(21, dtype="float32").reshape(7, 3)
    packed, scales = packed_products.quantized(tf.constant(kernel))
    product = packed_products.packed_int8(tf.constant(x), packed, scales, -scales)
    np.testing.assert_allclose(product, kernel[:5], atol=0.1)
