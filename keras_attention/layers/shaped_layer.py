"""Symbolic outputs of layers, before and after they are built."""

import inspect
from typing import Any

import keras

from keras_attention.layers.input_checks import check_built


class ShapedLayer(keras.layers.Layer):
    """Base of the layers that define `compute_output_shape`.

    Keras would take the symbolic output of every call from that method, which knows one output and no options. Here a
    built layer traces `call`, so that outputs, caches and errors are those of an eager call.
    """

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(self.call)
        if "training" not in signature.parameters:
            kwargs.pop("training", None)  # a Sequential gives it to every layer
        if self.built:
            args, kwargs = keras.tree.map_structure(self._converted, (args, kwargs))  # as a call does
            outputs = keras.Operation.compute_output_spec(self, *args, **kwargs)
            return keras.tree.map_structure(self._in_compute_dtype, outputs)
        given = signature.bind(*args, **kwargs).arguments
        if any("cache" in name and value is not None for name, value in given.items()):
            check_built(self, "compute_output_spec")  # it says how wide a cache is
        output = super().compute_output_spec(*args, **kwargs)
        if not given.get("return_attention_scores"):
            return output
        names = [name.removesuffix("_shape") for name in inspect.signature(self.compute_output_shape).parameters]
        weights = self._weights_shapes(*(getattr(given.get(name), "shape", None) for name in names))
        return output, *keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor(shape, dtype=self.compute_dtype), weights
        )

    def _converted(self, argument: Any) -> Any:
        is_symbol = isinstance(argument, keras.KerasTensor)
        return self.dtype_policy.convert_input(argument, self.autocast, self.input_dtype) if is_symbol else argument

    def _in_compute_dtype(self, output: keras.KerasTensor) -> keras.KerasTensor:
        # torch, and a trace that no call started, have weights in the dtype that they are stored in.
        # float64 is unchanged: JAX may compute float32 instead.
        if not self.autocast or self.compute_dtype == "float64" or "float" not in output.dtype:
            return output
        return keras.KerasTensor(output.shape, dtype=self.compute_dtype)

    def _weights_shapes(self, *shapes: Any) -> tuple[Any, ...]:
        """The shapes of what `return_attention_scores` adds, from the arguments of `compute_output_shape`."""
        raise TypeError(f"{type(self).__name__} must define `_weights_shapes`, since it can return its weights")
