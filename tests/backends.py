"""Backend-specific helpers of the tests: gradients, compilation, NumPy arrays.

Keras takes the backend from the environment: `KERAS_BACKEND=jax python -m pytest …` runs the same tests on JAX.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

BACKEND = keras.backend.backend()
HAS_XLA = BACKEND != "torch"


def numpy(structure: Any) -> Any:
    """A tensor, or a structure of them, as NumPy arrays."""
    return keras.tree.map_structure(lambda x: None if x is None else keras.ops.convert_to_numpy(x), structure)


def tensors(structure: Any) -> Any:
    """Arrays as the backend's tensors, of the same dtype."""
    return keras.tree.map_structure(keras.ops.convert_to_tensor, structure)


def dtype_of(x: Any) -> str:
    """The name of a dtype, which each backend writes in its own way."""
    return keras.backend.standardize_dtype(x.dtype)


def weighted_sum(x: Any, weights: Any) -> Any:
    """Σ x w: a scalar to take the gradient of."""
    return keras.ops.sum(keras.ops.multiply(x, weights))


def gradients(function: Callable[..., Any], inputs: Sequence[Any], variables: Sequence[Any] = ()) -> Any:
    """Gradients of a scalar function by its inputs, and by Keras variables that it uses; zeros where there are none.

    Args:
        function: Takes the inputs one by one.
        inputs: Arrays or tensors of floats.
        variables: Such as the trainable variables of a layer.

    Returns:
        Two lists of NumPy arrays.
    """
    by_inputs, by_variables = _GRADIENTS[BACKEND](function, tensors(list(inputs)), list(variables))
    return numpy(list(by_inputs)), numpy(list(by_variables))


def gradient(function: Callable[[Any], Any], x: Any) -> np.ndarray:
    """The gradient of a scalar function of one tensor."""
    return gradients(function, [x])[0][0]


def compiled(function: Callable[..., Any], signature: Sequence[Any] | None = None) -> Callable[..., Any]:
    """The function as the backend compiles it: `tf.function`, `jax.jit`, itself on torch.

    Args:
        function: Of tensors and structures of them.
        signature: `keras.KerasTensor` for each of them, for one program whatever the unknown sizes are.
            JAX compiles one for each size.

    Returns:
        A function of tensors or arrays.
    """
    return _COMPILED[BACKEND](function, signature)


def _tensorflow_gradients(function: Any, inputs: Any, variables: Any) -> Any:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = function(*inputs)
    places = [inputs, [variable.value for variable in variables]]
    found = tape.gradient(total, places, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return keras.tree.map_structure(tf.convert_to_tensor, found)  # the rows of a matrix come as slices


def _jax_gradients(function: Any, inputs: Any, variables: Any) -> Any:
    import jax

    def total(inputs: Any, values: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*inputs)

    return jax.grad(total, argnums=(0, 1))(inputs, [variable.value for variable in variables])


def _torch_gradients(function: Any, inputs: Any, variables: Any) -> Any:
    import torch

    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    places = [*inputs, *(variable.value for variable in variables)]
    found = torch.autograd.grad(function(*inputs), places, materialize_grads=True)
    return found[: len(inputs)], found[len(inputs) :]


def _tensorflow_compiled(function: Any, signature: Any) -> Any:
    import tensorflow as tf

    def spec(x: Any) -> Any:
        return tf.TensorSpec(x.shape, x.dtype)

    specs = None if signature is None else [keras.tree.map_structure(spec, each) for each in signature]
    return tf.function(function, input_signature=specs)


def _jax_compiled(function: Any, signature: Any) -> Any:
    import jax

    # A new function each time: JAX would take the program that it made of this one before, with the weights of then.
    return jax.jit(lambda *arguments: function(*arguments))


def _torch_compiled(function: Any, signature: Any) -> Any:
    return lambda *arguments: function(*tensors(arguments))


_GRADIENTS = {"tensorflow": _tensorflow_gradients, "jax": _jax_gradients, "torch": _torch_gradients}
_COMPILED = {"tensorflow": _tensorflow_compiled, "jax": _jax_compiled, "torch": _torch_compiled}
