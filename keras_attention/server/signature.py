"""The inputs and outputs of a signature of a SavedModel, and the checks of requests against them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_attention.server.errors import RequestError

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Signature:
    """A signature of a SavedModel: its name, and the spec of each input and output."""

    name: str
    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]

    @property
    def batchable(self) -> bool:
        """Whether requests can be joined: the first dimension of every input and output is unknown."""
        shapes = [spec.shape for spec in (*self.inputs.values(), *self.outputs.values())]
        return all(shape.rank is not None and shape.rank > 0 and shape[0] is None for shape in shapes)

    @property
    def heads(self) -> int:
        """The number of heads whose attention weights (batch, …, target, source) are outputs, those of all layers."""
        shapes = [spec.shape.as_list() for spec in self.outputs.values() if spec.shape.rank]
        weights = [shape[1:-2] for shape in shapes if len(shape) > 3 and shape[-2:] == [None, None]]
        return max(1, sum(math.prod(size or 1 for size in sizes) for sizes in weights))

    def rows(self, inputs: Arrays) -> int:
        """Returns the number of rows of a request, that of its longest array; a scalar has one."""
        return max((len(array) if array.ndim else 1 for array in inputs.values()), default=1)

    def check(self, inputs: Arrays) -> None:
        """Checks the names, dtypes, shapes and numbers of rows of the arrays of a request."""
        self._check_names(inputs)
        for name, array in inputs.items():
            spec = self.inputs[name]
            received = tf.as_dtype(array.dtype)
            if received != spec.dtype:
                raise self._error(f"input '{name}' takes {spec.dtype.name}. Received: {received.name}")
            if not spec.shape.is_compatible_with(array.shape):
                raise self._error(f"input '{name}' takes shape {_shape_text(spec.shape)}. Received: {array.shape}")
        lengths = {name: len(array) for name, array in inputs.items() if array.ndim}
        if self.batchable and len(set(lengths.values())) > 1:
            raise self._error(f"all inputs need the same number of rows. Received: {lengths}")

    def _check_names(self, inputs: Arrays) -> None:
        missing, unknown = sorted(set(self.inputs) - set(inputs)), sorted(set(inputs) - set(self.inputs))
        if missing or unknown:
            named = [name[:80] for name in unknown[:8]] + ["…"] * (len(unknown) > 8)
            raise self._error(f"the inputs are {sorted(self.inputs)}. Missing: {missing}. Unknown: {named}")

    def select(self, names: list[str]) -> list[str]:
        """Checks the output filter of a request and returns the names of its outputs, all by default."""
        unknown = sorted(set(names) - set(self.outputs))
        if unknown or len(set(names)) < len(names):
            raise self._error(f"the outputs are {sorted(self.outputs)}, each once. Received: {names!r:.200}")
        return names or sorted(self.outputs)

    def _error(self, rule: str) -> RequestError:
        return RequestError("INVALID_ARGUMENT", f"Signature '{self.name}': {rule}")


def read_signatures(signature_defs: Mapping[str, Any]) -> dict[str, Signature]:
    """Returns the signatures of a SavedModel by name, without those that have no inputs, such as its initializer."""
    return {
        name: Signature(name, _specs(definition.inputs), _specs(definition.outputs))
        for name, definition in signature_defs.items()
        if definition.inputs and definition.outputs
    }


def elements(shape: list[int]) -> int:
    """Returns the number of elements of an array with the shape of a request."""
    if any(size < 0 for size in shape):
        raise RequestError("INVALID_ARGUMENT", f"A shape has no negative dimensions. Received: {shape!r:.200}")
    return math.prod(shape)


def _specs(infos: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
    return {
        name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype), info.name)
        for name, info in infos.items()
    }


def _shape_text(shape: tf.TensorShape) -> str:
    if shape.rank is None:
        return "(any)"
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
