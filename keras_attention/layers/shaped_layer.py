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

    def _in_compute_dtype(self, output: keras.KerasTensor) -> keras.KerasTensor:
        # torch traces with weights in the dtype that they are stored in, not in that of the computation.
        if keras.config.backend() == "torch" and self.autocast and "float" in output.dtype:
            return keras.KerasTensor(output.shape, dtype=self.compute_dtype)
        return output

    def _weights_shapes(self, *shapes: Any) -> tuple[Any, ...]:
        """The shapes of what `return_attention_scores` adds, from the arguments of `compute_output_shape`."""
        raise TypeError(f"{type(self).__name__} must define `_weights_shapes`, since it can return its weights")
