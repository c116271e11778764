"""What every layer keeps, as tests that a class of tests inherits for its layer.

A class names what its layer is built and called with; the tests here know nothing else of it.
"""

import inspect
import itertools
import random
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
from backends import HAS_XLA, compiled, dtype_of, gradients, mask_of, numpy, tensors, weighted_sum
from oracle import path_within, weights_of
from tensors import LENGTHS, PAST, B, S, T, V, assert_close, draw, float32, largest_difference, padding, randomize

from keras_attention.layers.composite import matrices_within

BASE_ARGUMENTS = {"name": "other_name", "trainable": False, "dtype": "mixed_bfloat16"}


def constructor_arguments(layer_class: type) -> dict[str, Any]:
    """All arguments and defaults of the constructors up to Keras' own."""
    found: dict[str, Any] = {}
    for each in layer_class.__mro__:
        if each.__module__.startswith("keras_attention") and "__init__" in vars(each):
            found = {**inspect.signature(each.__init__).parameters, **found}
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: each.default for name, each in found.items() if name != "self" and each.kind not in kinds}


class Contract:
    """A layer as its tests see it.

    `inputs` maps each tensor of `call` to its (length, width); `padding_masks` maps such a tensor to the call
    argument of its padding mask; `required` and `every_argument` are constructor arguments, the latter all of
    them and none at its default; `variants` are call arguments to try.
    """

    layer_class: ClassVar[type]
    inputs: ClassVar[Mapping[str, tuple[int, int]]]
    padding_masks: ClassVar[Mapping[str, str]] = {}
    required: ClassVar[dict[str, Any]] = {}
    every_argument: ClassVar[dict[str, Any]] = {}
    dropout_arguments: ClassVar[tuple[str, ...]] = ()
    depth: ClassVar[int] = 3  # how many are stacked
    flags: ClassVar[tuple[str, ...]] = ()

    def oracle(self, weights: Mapping[str, np.ndarray], inputs: list[np.ndarray], masks: dict[str, Any]) -> Any:
        """The layer's output by the formulas, given padding masks by call argument."""
        raise TypeError(f"{type(self).__name__} must say what its layer computes: define `oracle`")

    def variants(self) -> list[dict[str, Any]]:
        """Call arguments beside the inputs: every combination of the flags."""
        values = itertools.product([False, True], repeat=len(self.flags))
        return [dict(zip(self.flags, each, strict=True)) for each in values]

    def make(self, **arguments: Any) -> Any:
        """A built layer with random weights."""
        layer = self.layer_class(**{**self.required, **arguments})
        layer(*self.draw_inputs())
        randomize(layer)
        return layer

    def draw_inputs(self) -> list[np.ndarray]:
        return [draw(B, length, width) for length, width in self.inputs.values()]

    def masks(self) -> dict[str, np.ndarray]:
        return {argument: padding(self.inputs[tensor][0]) for tensor, argument in self.padding_masks.items()}


class ConfigContract(Contract):
    """Every constructor argument survives a configuration and a file."""

    def test_every_constructor_argument_is_tried(self):
        arguments = constructor_arguments(self.layer_class)
        assert set(self.every_argument) == set(arguments)
        at_default = [name for name, value in self.every_argument.items() if value == arguments[name]]
        assert not at_default, "these arguments are tried at their defaults only"

    def test_every_argument_survives_get_config(self):
        layer = self.layer_class(**self.every_argument, **BASE_ARGUMENTS)
        config = layer.get_config()
        again = self.layer_class.from_config(config)
        assert again.get_config() == config
        plain = self.layer_class(**self.required).get_config()
        unchanged = [name for name in (*self.every_argument, *BASE_ARGUMENTS) if config[name] == plain[name]]
        assert set(unchanged) <= set(self.required), "get_config does not show these arguments"
        for name, value in BASE_ARGUMENTS.items():
            shown = getattr(again, name) if name != "dtype" else again.dtype_policy.name
            assert shown == value

    def test_every_argument_survives_a_file(self, tmp_path):
        keywords = {name: value for name, value in BASE_ARGUMENTS.items() if name != "dtype"}
        layer = self.layer_class(**self.every_argument, **keywords)
        model = self.model(layer)
        randomize(layer)
        model.save(tmp_path / "model.keras")
        reloaded = keras.models.load_model(tmp_path / "model.keras")
        again = reloaded.get_layer("other_name")
        assert again.get_config() == layer.get_config()
        assert [weight.path for weight in again.weights] == [weight.path for weight in layer.weights]
        inputs = self.draw_inputs()
        assert_close(reloaded(inputs), model(inputs), atol=0, rtol=0)

    def test_what_is_frozen_stays_frozen(self, tmp_path):
        layer = self.layer_class(**{**self.required, **self.every_argument}, trainable=False)
        model = self.model(layer)
        assert model.trainable_weights == []
        self.assert_frozen_alike(keras.models.clone_model(model), model)
        layer.trainable = True
        assert len(model.trainable_weights) == len(layer.weights)
        for _, matrix in list(matrices_within(layer))[::2]:
            matrix.trainable = False
        model.save(tmp_path / "model.keras")
        self.assert_frozen_alike(keras.models.load_model(tmp_path / "model.keras"), model)
        layer.trainable = True
        assert len(model.trainable_weights) == len(layer.weights)

    def assert_frozen_alike(self, copy: Any, model: Any) -> None:
        assert [weight.trainable for weight in copy.weights] == [weight.trainable for weight in model.weights]
        assert copy.layers[-1].get_config() == model.layers[-1].get_config()

    def test_weights_have_paths_of_their_own(self):
        layer = self.make()
        paths = [path_within(layer, weight) for weight in layer.weights]
        assert len(set(paths)) == len(paths)
        again = self.make()
        assert paths == [path_within(again, weight) for weight in again.weights]

    def model(self, layer: Any) -> Any:
        inputs = [keras.Input((None, width)) for _, width in self.inputs.values()]
        return keras.Model(inputs, layer(*inputs))


class LayerContract(ConfigContract):
    """The tests for a layer from float sequences to a float sequence."""

    @pytest.fixture(scope="class")
    @classmethod
    def stack(cls):
        """Layers one after the other on embeddings that carry masks, and a layer after them that needs the mask.

        With it come ids of two sentences, padded, and what the model makes of each of them alone, trimmed.
        """
        ids = [keras.Input((None,), dtype="int32", name=name) for name in cls.inputs]
        x, *others = [
            keras.layers.Embedding(V, width, mask_zero=True)(each)
            for each, (_, width) in zip(ids, cls.inputs.values(), strict=True)
        ]
        for _ in range(cls.depth):
            layer = cls.layer_class(**cls.required)
            x = layer(x, *others)
            randomize(layer)
        model = keras.Model(ids, [x, keras.layers.GlobalAveragePooling1D()(x)])
        model.jit_compile = HAS_XLA  # predict runs under XLA
        lengths = [length for length, _ in cls.inputs.values()]
        ids = [np.where(padding(length), np.random.randint(1, V, (B, length)), 0).astype("int32") for length in lengths]
        alone = [model([each[b : b + 1, : LENGTHS[each.shape[1]][b]] for each in ids]) for b in range(B)]
        return model, ids, alone

    @pytest.mark.parametrize("mode", ["eager", "function", "predict_xla", "reloaded"])
    def test_padded_stack_equals_trimmed(self, stack, mode, tmp_path):
        model, ids, alone = stack
        run = {
            "eager": model,
            "function": compiled(model),
            "predict_xla": lambda ids: model.predict(ids, verbose=0),
            "reloaded": lambda ids: self.reload(model, tmp_path)(ids),
        }[mode]
        padded_sequences, padded_pooled = run(tensors(ids))
        for b, (sequence, pooled) in enumerate(alone):
            assert_close(padded_sequences[b : b + 1, : sequence.shape[1]], sequence)
            assert_close(padded_pooled[b : b + 1], pooled)

    def test_explicit_mask_equals_trimmed_whatever_the_padding_holds(self):
        layer, inputs, masks = self.make(), self.draw_inputs(), self.masks()
        for x in inputs:
            x[~padding(x.shape[1])] = np.nan
        output = layer(*inputs, **masks)
        for b in range(B):
            sentence = layer(*(x[b : b + 1, : LENGTHS[x.shape[1]][b]] for x in inputs))
            assert_close(output[b : b + 1, : sentence.shape[1]], sentence)

    def test_padding_gets_no_gradient_and_gives_none(self):
        layer, masks = self.make(), self.masks()
        inputs = self.draw_inputs()
        output = layer(*inputs, **masks)
        direction = draw(*output.shape) * padding(output.shape[1])[..., None]

        def total(*inputs):
            return weighted_sum(layer(*inputs, **masks), direction)

        for x, gradient in zip(inputs, gradients(total, inputs)[0], strict=True):
            real = padding(x.shape[1])
            assert np.all(gradient[~real] == 0)
            assert np.all(np.any(gradient[real] != 0, axis=-1)), "a real token has no influence"

    def test_callers_masks_are_untouched_and_flow_on(self):
        layer = self.make()
        inputs = [self.with_mask(x) for x in self.draw_inputs()]
        before = [mask_of(x) for x in inputs]
        output = layer(*inputs)
        for x, mask in zip(inputs, before, strict=True):
            assert mask_of(x) is mask
            np.testing.assert_array_equal(numpy(mask), padding(x.shape[1]))
        np.testing.assert_array_equal(numpy(mask_of(output)), padding(output.shape[1]))

    def test_implicit_masks_do_what_explicit_ones_do(self):
        layer, inputs = self.make(), self.draw_inputs()
        implicit = numpy(layer(*map(self.with_mask, inputs)))
        explicit = numpy(layer(*inputs, **self.masks()))
        real = padding(implicit.shape[1])
        assert_close(implicit[real], explicit[real])

    def test_explicit_mask_beats_implicit(self):
        layer, inputs = self.make(), self.draw_inputs()
        for argument, mask in self.masks().items():
            other = ~mask
            other[:, 0] = True
            explicit = {**self.masks(), argument: other}
            plain = layer(*inputs, **explicit)
            both = layer(*map(self.with_mask, inputs), **explicit)
            assert_close(both[:, :3], plain[:, :3])  # the first three positions are real in both sentences
            assert largest_difference(plain, layer(*inputs, **self.masks())) > 1e-3, "the mask changes nothing"

    @pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
    def test_symbolic_equals_eager(self, known):
        layer, inputs = self.make(), self.draw_inputs()
        for variant in self.variants():
            eager = layer(*inputs, **variant)
            arguments = keras.tree.map_structure(lambda x: self.symbol(x, known), (inputs, variant))
            symbolic = layer(*arguments[0], **arguments[1])
            keras.tree.assert_same_structure(symbolic, eager)
            for one, other in zip(keras.tree.flatten(symbolic), keras.tree.flatten(eager), strict=True):
                assert dtype_of(one) == dtype_of(other)
                unknown = {} if known else {B, T, S, PAST, PAST + T}
                expected = tuple(None if size in unknown else size for size in other.shape)
                assert tuple(one.shape) == expected, variant

    @pytest.mark.parametrize("arguments", ["required", "every_argument"])
    def test_output_shape_needs_no_weights(self, arguments):
        layer, inputs = self.layer_class(**getattr(self, arguments)), self.draw_inputs()
        shapes = [x.shape for x in inputs]
        unknown = [(None, None, x.shape[-1]) for x in inputs]
        config, numbers = layer.get_config(), random.getstate()
        found = self.output_shapes(layer, shapes), self.output_shapes(layer, unknown)
        assert not layer.built and not layer.weights and not layer.variables
        assert layer.get_config() == config
        assert random.getstate() == numbers, "it draws random numbers, which the next initializer would have drawn"
        output = layer(*inputs)
        for known, any_length in (found, (self.output_shapes(layer, shapes), self.output_shapes(layer, unknown))):
            assert known == {tuple(output.shape)}
            assert any_length == {(None, None, *output.shape[2:])}

    def output_shapes(self, layer: Any, shapes: list[Any]) -> set[tuple[int | None, ...]]:
        """What the layer says of shapes given by position, as lists and by name."""
        named = {f"{name}_shape": shape for name, shape in zip(self.inputs, shapes, strict=True)}
        compute = layer.compute_output_shape
        return {compute(*shapes), compute(*map(list, shapes)), compute(**named)}

    @pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
    def test_symbolic_outputs_are_the_same_before_the_layer_is_built(self, policy):
        for variant in LayerContract.variants(self):
            layer, inputs = self.layer_class(**self.required, dtype=policy), self.draw_inputs()
            symbols = [self.symbol(x, known=True) for x in inputs]
            before = layer.compute_output_spec(*symbols, **variant)
            assert not layer.built
            eager, called = layer(*inputs, **variant), layer(*symbols, **variant)
            for symbolic in (before, called, layer.compute_output_spec(*symbols, **variant)):
                keras.tree.assert_same_structure(symbolic, eager)
                for one, other in zip(keras.tree.flatten(symbolic), keras.tree.flatten(eager), strict=True):
                    assert (tuple(one.shape), dtype_of(one)) == (tuple(other.shape), dtype_of(other)), variant

    def test_dropout_at_inference_changes_no_output(self):
        layer, inputs = self.make(), self.draw_inputs()
        for name in self.dropout_arguments:
            dropping = self.make(**{name: 0.5})
            dropping.set_weights(layer.get_weights())
            for training in (None, False):
                assert_close(dropping(*inputs, training=training), layer(*inputs), atol=0, rtol=0)
            assert largest_difference(dropping(*inputs, training=True), layer(*inputs)) > 1e-3, f"{name} does nothing"

    def test_equals_the_formulas(self):
        layer, inputs, masks = self.make(), self.draw_inputs(), self.masks()
        expected = self.oracle(weights_of(layer), [x.astype("float64") for x in inputs], masks)
        output = numpy(layer(*inputs, **masks))
        real = padding(output.shape[1])
        np.testing.assert_allclose(output[real], expected[real], atol=1e-4)

    @pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)])
    def test_half_precision_follows_float32(self, policy, tolerance):
        layer, inputs, masks = self.make(), self.draw_inputs(), self.masks()
        half = self.make(dtype=policy)
        half.set_weights(layer.get_weights())
        output = half(*inputs, **masks)
        assert dtype_of(output) == half.compute_dtype
        expected = float32(layer(*inputs, **masks))
        size = np.abs(expected).max()
        assert_close(output, expected, atol=tolerance * size)
        large = half(*(x * 30 for x in inputs), **masks)
        assert np.all(np.isfinite(float32(large))), "large scores overflow"

    def test_small_batches(self):
        layer, inputs = self.make(), self.draw_inputs()
        one = layer(*(x[:1, :1] for x in inputs))
        assert tuple(one.shape[:2]) == (1, 1)
        assert np.all(np.isfinite(numpy(one)))
        first = next(iter(self.inputs.values()))
        assert tuple(layer(*(x[:0] for x in inputs)).shape) == (0, first[0], one.shape[-1])

    def test_nothing_is_printed(self, capfd):
        layer = self.make()
        layer(*map(self.with_mask, self.draw_inputs()))
        layer(*[keras.KerasTensor((None, None, width)) for _, width in self.inputs.values()])
        assert capfd.readouterr() == ("", "")

    def with_mask(self, x: np.ndarray) -> Any:
        """The same values with an implicit mask, as a layer that knows of padding makes it."""
        return MaskSource()(x)

    def symbol(self, x: Any, known: bool) -> Any:
        if not hasattr(x, "shape"):
            return x
        shape = [size if known or size not in {B, T, S, PAST, PAST + T} else None for size in x.shape]
        return keras.KerasTensor(shape, dtype=dtype_of(x))

    def reload(self, model: Any, folder: Any) -> Any:
        model.save(folder / "model.keras")
        return keras.models.load_model(folder / "model.keras")


class AttentionContract(LayerContract):
    """More tests for a layer that can return its attention weights."""

    def test_asking_for_weights_changes_no_output(self):
        layer, inputs, masks = self.make(), self.draw_inputs(), self.masks()
        output, *weights = layer(*inputs, **masks, return_attention_scores=True)
        assert_close(output, layer(*inputs, **masks), atol=0, rtol=0)
        assert weights
        for each in keras.tree.flatten(weights):
            total = numpy(each).sum(-1)
            assert np.all(np.isclose(total, 1, atol=1e-5) | (total == 0))

    def test_fully_masked_sentence_gives_zero_weights_and_finite_gradients(self):
        layer, masks = self.make(), self.masks()
        for mask in masks.values():
            mask[0] = False
        inputs = self.draw_inputs()
        output, *weights = layer(*inputs, **masks, return_attention_scores=True)
        for each in numpy(keras.tree.flatten(weights)):
            assert np.all(each[0] == 0)
            assert np.any(each[1] != 0)
        direction = draw(*output.shape)

        def total(*inputs):
            output, *_ = layer(*inputs, **masks, return_attention_scores=True)
            return weighted_sum(output, direction)

        found = gradients(total, inputs, layer.trainable_variables)
        assert all(np.all(np.isfinite(each)) for each in keras.tree.flatten(found))


class MaskSource(keras.layers.Layer):
    """Passes its inputs on with the padding mask of their length."""

    def call(self, inputs: Any) -> Any:
        return keras.ops.copy(inputs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return keras.ops.convert_to_tensor(padding(inputs.shape[1]))
