"""The checks of users' layers and models: each passes and fails where it should."""

import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from backends import numpy
from tensors import MEMORY_WIDTH, B, F, H, M, S, T, V, draw

import keras_attention as ka
from keras_attention.testing import RULES, check_layer, check_mask_invariance
from keras_attention.testing.implicit_masks import mask_of, with_mask


@keras.saving.register_keras_serializable("test_testing")
class Mixer(keras.layers.Layer):
    """Adds a projection of the mean over real positions to each position. It keeps every rule."""

    def __init__(self, units=M, scale=1.0, dropout=0.1, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.units, self.scale, self.dropout = units, scale, dropout
        self.dense = keras.layers.Dense(units, dtype=self.dtype_policy)
        self.drop = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, x_shape):
        self.dense.build((x_shape[0], x_shape[-1]))

    def mean(self, x, mask):
        if mask is None:
            return keras.ops.mean(x, axis=1)
        mask = keras.ops.cast(mask, x.dtype)[..., None]
        return keras.ops.sum(x * mask, axis=1) / keras.ops.sum(mask, axis=1)

    def call(self, x, mask=None, training=None):
        return self.drop(x + self.scale * self.dense(self.mean(x, mask))[:, None], training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "scale": self.scale, "dropout": self.dropout}


class LosesArgument(Mixer):
    def get_config(self):
        return {name: value for name, value in super().get_config().items() if name != "scale"}


class ChangesArgument(Mixer):
    def get_config(self):
        return {**super().get_config(), "scale": 2 * self.scale}


class ShowsAnotherArgument(Mixer):
    def get_config(self):
        return {**super().get_config(), "scale": 3.0}


class IgnoresTrainable(Mixer):
    def __init__(self, *args, trainable=True, **kwargs):
        super().__init__(*args, **kwargs)


class ForgetsWeights(Mixer):
    built_before = 0

    def build(self, x_shape):
        super().build(x_shape)
        type(self).built_before += 1
        self.extra = self.add_weight(name="extra", shape=(self.built_before,))


class WrongShape(Mixer):
    def compute_output_spec(self, x, mask=None, training=None):
        return keras.KerasTensor((x.shape[0], x.shape[-1], x.shape[1]), dtype=self.compute_dtype)


class WrongDtype(Mixer):
    def compute_output_spec(self, x, mask=None, training=None):
        return keras.KerasTensor(x.shape, dtype="float64")


class WrongCount(Mixer):
    def compute_output_spec(self, x, mask=None, training=None):
        return [keras.KerasTensor(x.shape, dtype=self.compute_dtype)] * 2


class WrongStructure(Mixer):
    def compute_output_spec(self, x, mask=None, training=None):
        return [keras.KerasTensor(x.shape, dtype=self.compute_dtype)]


class UnknownWidth(Mixer):
    def compute_output_spec(self, x, mask=None, training=None):
        width = None if x.shape[1] is None else x.shape[-1]
        return keras.KerasTensor((*x.shape[:-1], width), dtype=self.compute_dtype)


class UnknownComputedWidth(Mixer):
    def compute_output_shape(self, x_shape):
        return x_shape if x_shape[1] else (None, None, None)

    def compute_output_spec(self, x, mask=None, training=None):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)


class WrongComputedShape(Mixer):
    def compute_output_shape(self, x_shape):
        return (*x_shape[:-1], self.units if self.built else 1)

    def compute_output_spec(self, x, mask=None, training=None):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)


class IgnoresMask(Mixer):
    def mean(self, x, mask):
        return keras.ops.mean(x, axis=1)


class TrustsPadding(Mixer):
    """Is only right if the padding holds zeros."""

    def mean(self, x, mask):
        return keras.ops.sum(x, axis=1)


class ChangesCallersMask(Mixer):
    def call(self, x, mask=None, training=None):
        if mask is not None:
            x._keras_mask = keras.ops.logical_not(mask)
        return super().call(x, mask, training)


class CopiesCallersMask(Mixer):
    def call(self, x, mask=None, training=None):
        if mask is not None:
            x._keras_mask = keras.ops.logical_not(keras.ops.logical_not(mask))
        return super().call(x, mask, training)


class LosesMask(Mixer):
    def compute_mask(self, x, previous_mask):
        return None


class InvertsMask(Mixer):
    def compute_mask(self, x, previous_mask):
        return None if previous_mask is None else keras.ops.logical_not(previous_mask)


class AlwaysDrops(Mixer):
    def call(self, x, mask=None, training=None):
        return super().call(x, mask, training=True)


class ScalesAtInference(Mixer):
    def call(self, x, mask=None, training=None):
        return super().call(x, mask, training) * (1 - self.dropout)


class ScalesWithoutTraining(Mixer):
    def call(self, x, mask=None, training=None):
        return super().call(x, mask, training) * (1 - self.dropout if training is False else 1)


class NeverDrops(Mixer):
    def call(self, x, mask=None, training=None):
        return super().call(x, mask, training=False)


class OverflowsUnderAMask(Mixer):
    def mean(self, x, mask):
        return super().mean(x if mask is None else x + keras.ops.cast(1e5, x.dtype) - 1e5, mask)


class Overflows(Mixer):
    def call(self, x, mask=None, training=None):
        return super().call(x, mask, training) + keras.ops.exp(x) * 0.01


class RoundsInHalf(Mixer):
    def call(self, x, mask=None, training=None):
        y = super().call(x, mask, training)
        return y if self.compute_dtype == "float32" else keras.ops.round(y)


class Warns(Mixer):
    def call(self, x, mask=None, training=None):
        warnings.warn("half of this is guessed\nand more", stacklevel=2)
        return super().call(x, mask, training)


BROKEN = [
    (LosesArgument, "config", r"get_config lacks the arguments scale, which were scale=0.7"),
    (ChangesArgument, "config", r"from_config\(get_config\(\)\) changes scale=1.4 to scale=2.8"),
    (
        ShowsAnotherArgument,
        "config",
        r"the layer made from the config differs by up to [\d.]+, where 0.0001 is allowed",
    ),
    (IgnoresTrainable, "config", r"from_config ignores trainable=False: pass \*\*kwargs to super\(\).__init__"),
    (ForgetsWeights, "config", r"has weights of .*, the first one of .*\(1,\)"),
    (WrongShape, "symbolic", r"the shape in a functional model is \(2, 33, 5\), that of a call is \(2, 5, 33\)"),
    (WrongDtype, "symbolic", r"the dtype in a functional model is float64, that of a call is float32"),
    (WrongCount, "symbolic", r"a functional model gets \[\*, \*\], a call returns \* \(\* for each tensor\)"),
    (WrongStructure, "symbolic", r"a functional model gets \[\*\], a call returns \* \(\* for each tensor\)"),
    (
        UnknownWidth,
        "symbolic",
        r"the shape in a functional model is \(None, None, None\), that of a call is \(2, 5, 33\) "
        r"\(batch and lengths unknown\)",
    ),
    (
        UnknownComputedWidth,
        "symbolic",
        r"compute_output_shape returns \(None, None, None\) \(not built yet, batch and lengths unknown\)",
    ),
    (
        WrongComputedShape,
        "symbolic",
        r"compute_output_shape returns \(2, 5, 1\) \(not built yet, batch and lengths known\), "
        r"the shape of a call is \(2, 5, 33\)",
    ),
    (IgnoresMask, "padding", r"row 0, whose mask has \[2\] real positions, trimmed to these and padded, differ by"),
    (ChangesCallersMask, "caller_masks", r"replaces the mask of input 0: 10 of 10 entries differ"),
    (CopiesCallersMask, "caller_masks", r"replaces the mask of input 0: 0 of 10 entries differ"),
    (
        LosesMask,
        "mask_flow",
        r"its output, a sequence of shape \(2, 5, 33\), carries no mask: set self.supports_masking",
    ),
    (InvertsMask, "mask_flow", r"10 of 10 entries of its output's mask differ from its first input's"),
    (AlwaysDrops, "dropout", r"two calls at inference differ by up to [\d.]+"),
    (ScalesAtInference, "dropout", r"dropout=0.5 changes the output at inference by up to [\d.]+"),
    (ScalesWithoutTraining, "dropout", r"dropout=0.5 changes the output with training=False by up to [\d.]+"),
    (NeverDrops, "dropout", r"dropout=0.5 changes nothing in training"),
    (OverflowsUnderAMask, "half", r"\d+ numbers of its output in mixed_float16 are not finite$"),
    (Overflows, "half", r"\d+ numbers of its output in mixed_float16 are not finite for inputs 30 times as large"),
    (
        RoundsInHalf,
        "half",
        r"in mixed_float16 differs from that in float32 by up to 0.\d+, where 0.0\d+ is allowed \(1%",
    ),
    (Warns, "warnings", r"it warns \d+ times, first: half of this is guessed$"),
]


def test_a_layer_that_keeps_the_rules_passes():
    check_layer(Mixer, {"scale": 0.7}, draw(B, T, M))


@pytest.mark.parametrize(("layer_class", "rule", "message"), BROKEN, ids=[each[0].__name__ for each in BROKEN])
def test_each_rule_is_seen_to_be_broken(layer_class, rule, message):
    leave_out = [name for name in RULES if name != rule]
    with pytest.raises(AssertionError, match=rf'^{layer_class.__name__} breaks the rule "{rule}": .*{message}'):
        check_layer(layer_class, {"scale": 0.7}, draw(B, T, M), leave_out=leave_out)


def test_the_broken_layers_break_every_rule():
    assert {rule for _, rule, _ in BROKEN} | {"file"} == set(RULES)


def test_padding_that_is_trusted_to_hold_zeros_is_found():
    x = draw(B, T, M)
    x[0, 2:] = 0
    with pytest.raises(AssertionError, match=r'the rule "padding": row 0, .*changes with what its padding holds by up'):
        check_layer(TrustsPadding, {}, x, leave_out=["config", "file", "symbolic"])


def test_a_class_that_a_file_cannot_name_is_found():
    class Local(Mixer):
        pass

    with pytest.raises(AssertionError, match=r'Local breaks the rule "file": .*register_keras_serializable') as raised:
        check_layer(Local, {}, draw(B, T, M))
    assert raised.value.__cause__ is not None


def test_a_file_that_changes_the_weights_is_found():
    @keras.saving.register_keras_serializable("test_testing")
    class Forgetful(Mixer):
        def build(self, x_shape):
            super().build(x_shape)
            self.offset = self.add_weight(name="offset", shape=(M,))

        def call(self, x, mask=None, training=None):
            return super().call(x, mask, training) + self.offset

        def load_own_variables(self, store):
            pass

    with pytest.raises(AssertionError, match=r'rule "file": after a .keras file the outputs differ by up to [\d.]+'):
        check_layer(Forgetful, {}, draw(B, T, M))


def test_a_file_that_changes_the_config_is_found():
    @keras.saving.register_keras_serializable("test_testing")
    class Rescales(Mixer):
        def load_own_variables(self, store):
            super().load_own_variables(store)
            self.scale = 0.3

    with pytest.raises(AssertionError, match=r'rule "file": a .keras file changes scale=0.7 to scale=0.3'):
        check_layer(Rescales, {"scale": 0.7}, draw(B, T, M))


def test_two_sequences_of_different_lengths_by_name():
    inputs = {"query": draw(B, T, M), "value": draw(B, S, MEMORY_WIDTH)}
    sizes = {"num_heads": H, "key_dim": 5}
    check_layer(ka.MultiHeadAttention, sizes, inputs, call={"return_attention_scores": True}, leave_out=["file"])
    with pytest.raises(AssertionError, match=r'"caller_masks": it erases the mask of query, so that later layers'):
        check_layer(keras.layers.MultiHeadAttention, sizes, inputs)


@pytest.mark.parametrize(
    ("layer_class", "init", "inputs"),
    [
        (ka.EncoderLayer, {"intermediate_dim": F, "num_heads": H, "dropout": 0.1}, draw(B, T, M)),
        (ka.PositionalEncoding, {}, draw(B, T, M)),
        (ka.TokenEmbedding, {"vocabulary_size": V, "hidden_dim": M}, np.ones((B, T), "int32")),
        (keras.layers.GlobalAveragePooling1D, {}, draw(B, T, M)),
    ],
)
def test_layers_of_this_library_and_of_keras_pass(layer_class, init, inputs):
    check_layer(layer_class, init, inputs)


def test_check_layer_says_what_it_wants():
    with pytest.raises(
        ValueError, match=r"`leave_out` takes names of config, file, .*Received: leave_out=\['padings'\]"
    ):
        check_layer(Mixer, {}, draw(B, T, M), leave_out=["padings"])
    for inputs in ((), np.ones(3)):
        with pytest.raises(
            ValueError, match=r"`inputs` are arrays \(batch, length, …\), at least one. Received: inputs of shapes"
        ):
            check_layer(Mixer, {}, inputs)


def test_masks_are_given_and_read():
    mask = np.array([[True, False, True], [False, True, True]])
    x = with_mask(draw(2, 3, 5), mask)
    np.testing.assert_array_equal(numpy(mask_of(x)), mask)
    assert mask_of(keras.ops.ones((2, 3))) is None


def embedded(make):
    """A model that applies a function to embeddings with a mask."""
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(V, M, mask_zero=True, name="embedding")(ids)
    return keras.Model(ids, make(x))


def keras_stack(x):
    for _ in range(3):
        attended = keras.layers.MultiHeadAttention(H, 5)(x, x)
        x = keras.layers.LayerNormalization()(keras.layers.Add()([x, attended]))
    return x


def our_stack(x):
    for _ in range(3):
        x = ka.EncoderLayer(F, H)(x)
    return x


def our_attention_in_their_stack(x):
    for _ in range(3):
        x = keras.layers.LayerNormalization()(keras.layers.Add()([x, ka.MultiHeadAttention(H, 5)(x, x)]))
    return x


def some_ids():
    return np.array([[3, 1, 4, 1, 5], [9, 2, 0, 0, 0], [0, 0, 0, 0, 0]], "int32")


@pytest.mark.parametrize("make", [our_stack, our_attention_in_their_stack])
@pytest.mark.parametrize("pooled", [False, True], ids=["sequence", "pooled"])
def test_padding_leaves_the_predictions_of_our_stacks_alone(make, pooled):
    pool = keras.layers.GlobalAveragePooling1D() if pooled else lambda x: x
    check_mask_invariance(embedded(lambda x: pool(make(x))), some_ids()[:2])


def test_padding_changes_the_predictions_of_a_stack_of_keras_layers():
    model = embedded(keras_stack)
    message = r"those of row 0, trimmed and in the batch, differ by up to [\d.]+, where 0.0001 .*explain_masks\(model\)"
    with pytest.raises(AssertionError, match=message):
        check_mask_invariance(model, some_ids()[1::-1])
    with pytest.raises(AssertionError, match=r"those of row 0, trimmed and with 2 more positions of padding, differ"):
        check_mask_invariance(model, some_ids()[:1], extra=[2])
    check_mask_invariance(model, some_ids()[:1], extra=[])


def test_several_inputs_are_padded_each():
    model = ka.Transformer.from_preset("tiny", vocabulary_size=V, num_layers=1)
    target = np.array([[2, 7, 5], [2, 0, 0], [2, 3, 0]], "int32")
    source = some_ids()
    source[2, 0] = 7
    check_mask_invariance(model, {"source": source, "target": target})


def test_what_stands_under_a_mask_of_its_own_must_not_matter():
    ids, mask = keras.Input((None,), dtype="int32", name="ids"), keras.Input((None,), dtype="bool", name="mask")
    x = keras.layers.Embedding(V, M)(ids)
    inputs = {"ids": some_ids(), "mask": some_ids() > 0}
    inputs["mask"][2, 0] = True
    kept = keras.Model({"ids": ids, "mask": mask}, ka.EncoderLayer(F, H)(x, padding_mask=mask))
    check_mask_invariance(kept, inputs, mask="mask")
    # The vectors of id 0 are zero, so that the sum is only right if the padding holds that id.
    weights = keras.layers.Embedding(V, 1, embeddings_initializer=lambda shape, dtype: np.arange(V)[:, None] / V)(ids)
    trusting = keras.Model({"ids": ids, "mask": mask}, keras.ops.sum(weights, axis=1) + 0 * keras.ops.sum(mask))
    with pytest.raises(AssertionError, match=r"row 1, trimmed and with other ids in its padding, differ by"):
        check_mask_invariance(trusting, inputs, mask="mask")


def test_a_function_is_checked_as_a_model_is():
    check_mask_invariance(lambda ids: keras.ops.sum(ids, axis=1), some_ids())
    with pytest.raises(AssertionError, match=r"Padding changes predictions"):
        check_mask_invariance(lambda ids: keras.ops.sum(ids + 1, axis=1), some_ids())
    with pytest.raises(AssertionError, match=r"differ by up to nan"):
        check_mask_invariance(lambda ids: keras.ops.cast(ids, "float32") / 0.0, some_ids()[2:])


def warned(model):
    return [(record.kind, record.warning) for record in ka.explain_masks(model, verbose=False) if record.warning]


def test_keras_attention_is_said_to_lose_the_mask(capsys):
    records = ka.explain_masks(embedded(keras_stack))
    first, add, *later = [record for record in records if record.warning]
    assert (first.kind, add.kind, later) == ("MultiHeadAttention", "Add", [])
    assert first.masks == (("embedding", True), ("embedding", True))
    assert "erases the mask of its input embedding: layers that read it later see none" in first.warning
    assert add.masks == (("embedding", False), (first.layer, True))
    assert f"embedding has none since {first.layer} erased it" in add.warning
    assert not add.output_mask
    assert not any(mask for record in records[3:] for _, mask in record.masks)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "mask", "in", "mask", "out"]
    assert [line.split()[0] for line in lines[1 : 1 + len(records)]] == [record.layer for record in records]
    assert [line for line in lines if line.endswith("<- LOST")] == lines[2:4]
    assert [line for line in lines if line.startswith("WARNING: ")] == [
        f"WARNING: {first.warning}",
        f"WARNING: {add.warning}",
    ]


def test_arithmetic_is_said_to_lose_the_mask():
    ((kind, text),) = warned(embedded(lambda x: x * 2))
    assert kind == "Multiply"
    assert text.startswith("multiply") and "loses the mask of embedding: its output is a sequence without one" in text
    ((kind, text),) = warned(embedded(lambda x: x + keras.layers.Dense(M, name="dense")(x)))
    assert kind == "Add"
    assert "loses the mask of embedding, dense" in text
    (zeros, _), (add, text) = warned(embedded(lambda x: keras.layers.Add()([x, keras.ops.zeros_like(x)])))
    assert (zeros, add) == ("ZerosLike", "Add")
    assert text.startswith("add") and "(zeros_like" in text and " has none). " in text


def test_nothing_is_said_of_stacks_that_keep_the_mask(capsys):
    for make in (our_stack, our_attention_in_their_stack):
        records = ka.explain_masks(embedded(make))
        assert not any(record.warning for record in records)
        assert all(record.output_mask for record in records if record.kind in ("EncoderLayer", "MultiHeadAttention"))
    assert "LOST" not in capsys.readouterr().out


def test_a_mask_that_ends_with_the_sequence_is_not_lost():
    assert not warned(embedded(lambda x: keras.layers.GlobalAveragePooling1D()(our_stack(x))))
    assert not warned(embedded(lambda x: keras.layers.LSTM(7)(x)))
    assert not warned(ka.Transformer.from_preset("tiny", vocabulary_size=V, num_layers=1))


def test_masks_of_our_models_are_said_to_come_as_arguments(capsys):
    model = ka.Transformer.from_preset("tiny", vocabulary_size=V, num_layers=1)
    packed, causal = model.packed(), ka.CausalTransformer.from_preset("tiny", vocabulary_size=V, num_layers=1)
    by_layer = {record.layer: record for record in ka.explain_masks(model)}
    assert by_layer["encoder"].arguments == by_layer["decoder"].arguments
    assert by_layer["encoder"].arguments[0].startswith("not_equal")
    by_layer = {record.layer: record for record in ka.explain_masks(packed)}
    assert by_layer["encoder"].arguments == ("source_segments",)
    assert set(by_layer["decoder"].arguments) == {"source_segments", "target_segments"}
    assert by_layer["encoder"].masks == (("source_dropout", False),)
    ka.explain_masks(causal)
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("No mask is lost.") == 3


@pytest.mark.parametrize("dtype", ["bool", "float32"])
def test_a_mask_that_is_given_again_is_not_lost(dtype):
    ids = keras.Input((None,), dtype="int32")
    mask = keras.ops.cast(keras.ops.not_equal(ids, 0), dtype)
    x = keras.layers.Embedding(V, M, mask_zero=True)(ids) * 2.0
    assert not warned(keras.Model(ids, ka.EncoderLayer(F, H)(x + 1.0, padding_mask=mask)))
    ((kind, _),) = warned(keras.Model(ids, [ka.EncoderLayer(F, H)(x, padding_mask=mask), ka.EncoderLayer(F, H)(x)]))
    assert kind == "Multiply"


def test_the_model_stays_as_it_is():
    model = embedded(keras_stack)
    before, outputs = model.get_weights(), numpy(model(some_ids()))
    ka.explain_masks(model, verbose=False)
    keras.Model(model.input, model.get_layer("embedding").output)  # a layer called twice has no one output
    assert [layer.name for layer in model.layers] == [layer.name for layer in embedded_names(model)]
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(numpy(model(some_ids())), outputs)


def embedded_names(model):
    return keras.Model(model.input, model.output).layers


def test_models_within_models_and_sequential_ones():
    inner = embedded(lambda x: x * 2)
    outer = keras.Sequential([keras.Input((None,), dtype="int32"), inner, keras.layers.Dense(3, name="dense")])
    records = ka.explain_masks(outer, verbose=False)
    assert [record.layer.partition("/")[0] for record in records] == [inner.name, inner.name, "dense"]
    assert [bool(record.warning) for record in records] == [False, True, False]
    chain = keras.Sequential([keras.Input((None,), dtype="int32"), keras.layers.Embedding(V, M, mask_zero=True)])
    assert [record.output_mask for record in ka.explain_masks(chain, verbose=False)] == [True]


def test_masks_given_as_arguments_and_other_inputs_are_named():
    x, mask = keras.Input((T, M), name="vectors"), keras.Input((T,), dtype="bool", name="real")
    model = keras.Model([x, mask], ka.EncoderLayer(F, H)(keras.layers.Masking()(x), padding_mask=mask))
    masking, encoder = ka.explain_masks(model, verbose=False)
    assert masking.masks == (("vectors", False),)
    assert encoder.masks == ((masking.layer, True),)
    assert encoder.arguments == ("real",)
    given = ka.explain_masks(model, [draw(B, T, M), np.ones((B, T), bool)], verbose=False)
    assert given == [masking, encoder]


def test_a_model_without_a_graph_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    for model in (Own(), keras.Sequential([keras.layers.Dense(3)]), keras.layers.Dense(3)):
        with pytest.raises(TypeError, match=r"`model` must be a functional model, or .* Received: model=<"):
            ka.explain_masks(model)


def test_the_room_is_light():
    heavy = ["tensorflow_text", "tensorboard"]
    code = f"import keras_attention as ka, sys; ka.explain_masks; print([n for n in {heavy} if n in sys.modules])"
    root = Path(__file__).parent.parent
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"
