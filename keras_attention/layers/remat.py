"""Rematerialization: activations are recomputed in the backward pass instead of stored."""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import as_tuple

# The name of the variable of a `keras.random.SeedGenerator`.
SEED = "seed_generator_state"


def rematerialize(layer: keras.layers.Layer, *inputs: Any, **arguments: Any) -> tuple[Any, ...]:
    """Calls a built layer so that only its inputs are stored for the backward pass, which recomputes the rest.

    Gradients flow to `inputs`, float tensors or None, and not to `arguments`. Random numbers, such as those of dropout,
    come from the same seeds both times; `keras.remat` by itself would take the next seeds, which gives another dropout
    mask and wrong gradients.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 3.
    """
    tensors = [each for each in inputs if each is not None]
    # From `variables`: the `trainable_variables` of a frozen layer leave out a trainable layer inside.
    weights = [each for each in layer.variables if each.trainable]
    others = [each for each in layer.variables if not each.trainable]
    # Read once and, where they change, copied, so that both passes start from the same values.
    seeds = [(each, each.value * 1) for each in others if each.path.endswith(SEED)]
    frozen = [(each, ops.copy(each)) for each in others if not each.path.endswith(SEED)]

    def run(*values: Any) -> tuple[Any, ...]:
        rest = iter(values)
        layer_inputs = [each if each is None else next(rest) for each in inputs]
        with keras.StatelessScope([*zip(weights, rest, strict=True), *frozen, *seeds]) as scope:
            outputs = as_tuple(layer(*layer_inputs, **arguments))
        steps = [_difference(scope.get_current_value(seed), start) for seed, start in seeds]
        return (*outputs, *steps)

    # Copies: TensorFlow counts the gradient of a variable twice, as an argument and as a variable that is read.
    results = keras.remat(run)(*tensors, *map(ops.copy, weights))
    outputs, steps = results[: len(results) - len(seeds)], results[len(results) - len(seeds) :]
    for (seed, start), count in zip(seeds, steps, strict=True):
        seed.assign(start + ops.cast(count, start.dtype))
    return tuple(outputs)


def _difference(seed: Any, start: Any) -> Any:
    # As a float: TensorFlow differentiates every result of a recomputed function.
    return ops.cast(ops.cast(seed, "int32") - ops.cast(start, "int32"), "float32")
