"""Tests of one layer each, which a test class inherits and gives its layer, arguments and inputs.

`check_layer` checks the rules that hold for any Keras layer. The rest is about this library: explicit masks, its own
call arguments, stacks of its layers, gradients, and the formulas in NumPy.
"""

import inspect
import itertools
import random
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
from backends import HAS_XLA, compiled, dtype_of, gradients, numpy, tensors, weighted_sum
from oracle import path_within, weights_of
from tensors import LENGTHS, PAST, B, S, T, V, assert_close, draw, float32, largest_difference, padding, randomize

from keras_attention.layers.composite import matrices_within
from keras_attention.testing import RULES, check_layer
from keras_attention.testing.implicit_masks import with_mask
from keras_attention.testing.layer_rules import BASE_ARGUMENTS

EXACT = {"config", "file", "dropout"}  # rules whose outputs are equal bit for bit


def constructor_arguments(layer_class: type) -> dict[str, Any]:
    """Names and defaults of the constructor arguments, those of Keras' base classes excluded."""
    parameters: dict[str, Any] = {}
    for each in layer_class.__mro__:
        if each.__module__.startswith("keras_attention") and "__init__" in vars(each):
            parameters = {**inspect.signature(each.__init__).parameters, **parameters}
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: each.default for name, each in parameters.items() if name != "self" and each.kind not in kinds}


def with_padding(x: np.ndarray) -> Any:
    """The same values with the padding mask of their length as their implicit mask."""
    return with_mask(x, padding(x.shape[1]))


class Contract:
    """A layer and the arguments to test it with.

    `inputs` maps each tensor of `call` to its (length, width); `padding_masks` maps such a tensor to the call
    argument of its padding mask; `required` and `every_argument` are constructor arguments, the latter all of
    them and none at its default; `variants` are other call arguments, each combination tested by itself.
    """

    layer_class: ClassVar[type]
    inputs: ClassVar[Mapping[str, tuple[int, int]]]
    padding_masks: ClassVar[Mapping[str, str]] = {}
    required: ClassVar[dict[str, Any]] = {}
    every_argument: ClassVar[dict[str, Any]] = {}
    depth: ClassVar[int] = 3  # how many are stacked
    flags: ClassVar[tuple[str, ...]] = ()

    def oracle(self, weights: Mapping[str, np.ndarray], inputs: list[np.ndarray], masks: dict[str, Any]) -> Any:
        """The output by the formulas; `masks` are padding masks by call argument."""
        raise TypeError(f"{type(self).__name__} needs the formulas of its layer: define `oracle`")

    def variants(self) -> list[dict[str, Any]]:
        """Call arguments other than the inputs: every combination of the flags."""
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
    """Tests for any layer: the rules of layers, constructor arguments, frozen weights, paths."""

    def test_every_constructor_argument_is_tried(self):
        arguments = constructor_arguments(self.layer_class)
        assert set(self.every_argument) == set(arguments)
        at_default = [name for name, value in self.every_argument.items() if value == arguments[name]]
        assert not at_default, "these arguments are only tested at their defaults"

    def test_get_config_shows_every_argument(self):
        config = self.layer_class(**self.every_argument, **BASE_ARGUMENTS).get_config()
        plain = self.layer_class(**self.required).get_config()
        unchanged = [name for name in (*self.every_argument, *BASE_ARGUMENTS) if config[name] == plain[name]]
        assert set(unchanged) <= set(self.required), "get_config does not show these arguments"

    @pytest.mark.parametrize("arguments", ["required", "every_argument"])
    def test_keeps_the_rules_of_layers(self, arguments, capfd):
        init, inputs = getattr(self, arguments), self.draw_inputs()
        check_layer(self.layer_class, init, inputs, tolerance=2e-5, leave_out=EXACT)
        capfd.readouterr()  # an operation's first call prints notices of the backend
        check_layer(self.layer_class, init, inputs, leave_out=RULES.keys() - {"warnings"})
        assert capfd.readouterr() == ("", "")

    def test_config_file_and_dropout_change_no_output_at_all(self):
        others = RULES.keys() - EXACT
        check_layer(self.layer_class, self.every_argument, self.draw_inputs(), tolerance=0, leave_out=others)

    def test_a_frozen_layer_keeps_its_config_and_paths_in_a_file(self, tmp_path):
        layer = self.layer_class(**self.every_argument, name="other_name", trainable=False)
        self.model(layer).save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras").get_layer("other_name")
        assert again.get_config() == layer.get_config()
        assert [weight.path for weight in again.weights] == [weight.path for weight in layer.weights]

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
        """A model of embeddings with masks, a stack of the layer, and a pooling layer that needs the mask.

        With it come the padded ids of two sentences, and the outputs for each sentence by itself, trimmed.
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
        trimmed = [model([each[b : b + 1, : LENGTHS[each.shape[1]][b]] for each in ids]) for b in range(B)]
        return model, ids, trimmed

    @pytest.mark.parametrize("mode", ["eager", "function", "predict_xla", "reloaded"])
    def test_padded_stack_equals_trimmed(self, stack, mode, tmp_path):
        model, ids, trimmed = stack
        run = {
            "eager": model,
            "function": compiled(model),
            "predict_xla": lambda ids: model.predict(ids, verbose=0),
            "reloaded": lambda ids: self.reload(model, tmp_path)(ids),
        }[mode]
        padded_sequences, padded_pooled = run(tensors(ids))
        for b, (sequence, pooled) in enumerate(trimmed):
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

    def test_implicit_masks_do_what_explicit_ones_do(self):
        layer, inputs = self.make(), self.draw_inputs()
        implicit = numpy(layer(*map(with_padding, inputs)))
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
            both = layer(*map(with_padding, inputs), **explicit)
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
        before = self.output_shapes(layer, shapes), self.output_shapes(layer, unknown)
        assert not layer.built and not layer.weights and not layer.variables
        assert layer.get_config() == config
        assert random.getstate() == numbers, "it changes the seed of the next initializer"
        output = layer(*inputs)
        for known, any_length in (before, (self.output_shapes(layer, shapes), self.output_shapes(layer, unknown))):
            assert known == {tuple(output.shape)}
            assert any_length == {(None, None, *output.shape[2:])}

    def output_shapes(self, layer: Any, shapes: list[Any]) -> set[tuple[int | None, ...]]:
        """The results of `compute_output_shape` for shapes as tuples, as lists and as keyword arguments."""
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

    def test_equals_the_formulas(self):
        layer, inputs, masks = self.make(), self.draw_inputs(), self.masks()
        expected = self.oracle(weights_of(layer), [x.astype("float64") for x in inputs], masks)
        output = numpy(layer(*inputs, **masks))
        real = padding(output.shape[1])
        np.testing.assert_allclose(output[real], expected[real], atol=1e-4)

    @pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
    def test_half_precision_gives_its_dtype_and_large_scores_stay_finite(self, policy):
        half, inputs, masks = self.make(dtype=policy), self.draw_inputs(), self.masks()
        assert dtype_of(half(*inputs, **masks)) == half.compute_dtype
        large = half(*(x * 30 for x in inputs), **masks)
        assert np.all(np.isfinite(float32(large))), "large scores overflow"

    def test_small_batches(self):
        layer, inputs = self.make(), self.draw_inputs()
        one = layer(*(x[:1, :1] for x in inputs))
        assert tuple(one.shape[:2]) == (1, 1)
        assert np.all(np.isfinite(numpy(one)))
        first = next(iter(self.inputs.values()))
        assert tuple(layer(*(x[:0] for x in inputs)).shape) == (0, first[0], one.shape[-1])

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

        results = gradients(total, inputs, layer.trainable_variables)
        assert all(np.all(np.isfinite(each)) for each in keras.tree.flatten(results))
