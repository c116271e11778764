"""Symbolic outputs of layers, before and after they are built."""

import inspect
from typing import Any

import keras

from keras_attention.layers.inputs import check_built


class ShapedLayer(keras.layers.Layer):
    """Base of layers that define `compute_output_shape`.

    Keras would derive the symbolic outputs of every call from that method, which covers one output and no options. A
    built layer traces `call` instead, so that outputs, caches and errors are those of an eager call.
    """

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(self.call)
        if "training" not in signature.parameters:
            kwargs.pop("training", None)  # a Sequential passes it to every layer
        if self.built:
            args, kwargs = keras.tree.map_structure(self._converted, (args, kwargs))  # like a call
            outputs = keras.Operation.compute_output_spec(self, *args, **kwargs)
            return keras.tree.map_structure(self._in_compute_dtype, outputs)
        arguments = signature.bind(*args, **kwargs).arguments
        if any("cache" in name and value is not None for name, value in arguments.items()):
            check_built(self, "compute_output_spec")  # the width of a cache is that of the weights
        output = super().compute_output_spec(*args, **kwargs)
        if not arguments.get("return_attention_scores"):
            return output
        names = [name.removesuffix("_shape") for name in inspect.signature(self.compute_output_shape).parameters]
        weights = self._weights_shapes(*(getattr(arguments.get(name), "shape", None) for name in names))
        return output, *keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor(shape, dtype=self.compute_dtype), weights
        )

    def _converted(self, argument: Any) -> Any:
        is_symbol = isinstance(argument, keras.KerasTensor)
        return self.dtype_policy.convert_input(argument, self.autocast, self.input_dtype) if is_symbol else argument

    def _in_compute_dtype(self, output: keras.KerasTensor) -> keras.KerasTensor:
        # Outside of a call, and on torch, weights have the dtype in which they are stored.
        # float64 is left as it is, since JAX may compute float32 instead.
        if not self.autocast or self.compute_dtype == "float64" or "float" not in output.dtype:
            return output
        return keras.KerasTensor(output.shape, dtype=self.compute_dtype)

    def _weights_shapes(self, *shapes: Any) -> tuple[Any, ...]:
        """The shapes of the attention weights, from the arguments of `compute_output_shape`."""
        raise TypeError(f"{type(self).__name__} must define `_weights_shapes`, since it can return attention weights")
