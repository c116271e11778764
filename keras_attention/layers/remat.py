"""Layers whose activations are computed once more in the backward pass, in place of being kept for it."""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import as_tuple

# What Keras calls the variable of a `keras.random.SeedGenerator`.
SEED = "seed_generator_state"


def rematerialize(layer: keras.layers.Layer, *inputs: Any, **arguments: Any) -> tuple[Any, ...]:
    """Calls a layer so that the backward pass keeps what went in alone, and computes the rest again from it.

    What the layer draws at random, such as dropout, is drawn from the same seeds both times. With `keras.remat` alone,
    a layer that runs again goes on with the seeds that come next: other dropout, and gradients of something else.

    Args:
        layer: It is built.
        *inputs: Float tensors that gradients flow to; None for none.
        **arguments: Everything else, such as masks: no gradient flows to these.

    Returns:
        The layer's outputs, as a tuple.

    Example:
        >>> layer = keras.layers.Dense(3)
        >>> layer.build((None, 5))
        >>> [output] = rematerialize(layer, keras.ops.ones((2, 5)))
        >>> print(output.shape)
        (2, 3)

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 3.
    """
    given = [each for each in inputs if each is not None]
    # By the variables: a frozen layer leaves one inside that trains out of its `trainable_variables`.
    weights = [each for each in layer.variables if each.trainable]
    others = [each for each in layer.variables if not each.trainable]
    # Read once and, where they change, copied: both passes start from the same.
    seeds = [(each, each.value * 1) for each in others if each.path.endswith(SEED)]
    frozen = [(each, ops.copy(each)) for each in others if not each.path.endswith(SEED)]

    def run(*tensors: Any) -> tuple[Any, ...]:
        rest = iter(tensors)
        arranged = [each if each is None else next(rest) for each in inputs]
        with keras.StatelessScope([*zip(weights, rest, strict=True), *frozen, *seeds]) as scope:
            outputs = as_tuple(layer(*arranged, **arguments))
        draws = [_difference(scope.get_current_value(seed), start) for seed, start in seeds]
        return (*outputs, *draws)

    # TensorFlow would count the gradients of a variable twice: as an argument, and as what the function reads.
    results = keras.remat(run)(*given, *map(ops.copy, weights))
    outputs, draws = results[: len(results) - len(seeds)], results[len(results) - len(seeds) :]
    for (seed, start), count in zip(seeds, draws, strict=True):
        seed.assign(start + ops.cast(count, start.dtype))
    return tuple(outputs)


def _difference(seed: Any, start: Any) -> Any:
    # As a float, because TensorFlow takes every result of what it computes again for something to differentiate.
    return ops.cast(ops.cast(seed, "int32") - ops.cast(start, "int32"), "float32")
