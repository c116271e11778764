"""Consistency losses: two passes over the same batch, with different noise, should predict the same distributions.

Shapes: B batch, T length, C tokens, M model width, V vocabulary.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.layers.arguments import fraction, one_of, positive_number
from keras_attention.layers.replicas import ReplicaSeeds

# α, with which the papers train translation models.
CONSISTENCY_WEIGHTS = {"rdrop": 5.0, "simcut": 3.0}
# Probability with which SimCut cuts off a token.
CUTOFF_RATE = 0.05


class PassWeights(NamedTuple):
    """c, a and b of the loss Σ_i c_i CE(p_i) + a KL(p_1 ‖ p_2) + b KL(p_2 ‖ p_1) of one or two passes."""

    cross_entropy: tuple[float, ...]
    forward: float = 0.0
    backward: float = 0.0


def pass_weights(consistency: str | None, consistency_weight: float | None = None) -> PassWeights:
    """Checks the arguments of a consistency loss and returns the weights of its terms."""
    if consistency is None:
        if consistency_weight is not None:
            raise ValueError(
                '`consistency_weight` is the weight of a consistency loss: set `consistency` to "rdrop" or "simcut". '
                f"Received: consistency_weight={consistency_weight!r} with consistency=None"
            )
        return PassWeights((1.0,))
    one_of(consistency, "consistency", tuple(CONSISTENCY_WEIGHTS))
    weight = CONSISTENCY_WEIGHTS[consistency] if consistency_weight is None else consistency_weight
    weight = positive_number(weight, "consistency_weight")
    if consistency == "rdrop":
        return PassWeights((0.5, 0.5), weight / 4, weight / 4)
    return PassWeights((1.0, 0.0), weight)


def divergences(logits: Any, probabilities: Any, weights: PassWeights) -> tuple[Any, Any]:
    """a KL(p_1 ‖ p_2) + b KL(p_2 ‖ p_1), (C,), and its gradient by the logits (2C, V), the first pass first."""
    a, b = weights.forward, weights.backward
    largest = ops.max(logits, axis=-1, keepdims=True)  # (2C, 1)
    # log Σ exp z. The largest probability is at least 1/V, so its logarithm is finite.
    log_sums = largest - ops.log(ops.max(probabilities, axis=-1, keepdims=True))
    (first, second), (first_sums, second_sums) = ops.split(logits, 2), ops.split(log_sums, 2)
    p, q = ops.split(probabilities, 2)  # (C, V) each
    log_ratio = (first - second) - (first_sums - second_sums)  # log p_1 − log p_2
    forward = ops.sum(p * log_ratio, axis=-1, keepdims=True)  # (C, 1)
    backward = -ops.sum(q * log_ratio, axis=-1, keepdims=True)
    by_first = a * (p * (log_ratio - forward)) + b * (p - q)
    by_second = a * (q - p) - b * (q * (log_ratio + backward))
    return (a * forward + b * backward)[:, 0], ops.concatenate([by_first, by_second])


def twice(inputs: Any) -> Any:
    """Tensors (2B, …) with all rows of the inputs (B, …) for the first pass, then all rows for the second."""
    return keras.tree.map_structure(lambda x: ops.concatenate([x, x]), inputs)


def with_cutoff(inputs: Any, outputs: Any, embedding: keras.layers.Layer) -> tuple[Any, Any]:
    """Inputs and outputs of a graph that applies `TokenCutoff` wherever the given graph embeds tokens."""
    cutoff = TokenCutoff(CUTOFF_RATE, dtype=embedding.dtype_policy)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        x = layer(*args, **kwargs)
        return cutoff(x) if layer is embedding else x

    graph = keras.Model(inputs, outputs)
    # All layers are those of the graph itself; only the connections are new.
    graph = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
    return graph.input, graph.output


class TokenCutoff(keras.layers.Layer):
    """Sets the vectors (2B, T, M) of some tokens of the second pass to zero in training (Gao et al. 2022)."""

    def __init__(self, rate: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = fraction(rate, "rate")
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Sets each vector of the second half of the rows to zero with probability `rate`."""
        if not training:
            return inputs
        rows, length = ops.shape(inputs)[:2]
        is_cut = keras.random.uniform((rows, length), seed=ReplicaSeeds(self.seed_generator)) < self.rate
        is_second = ops.arange(rows)[:, None] >= rows // 2
        kept = ops.logical_not(ops.logical_and(is_cut, is_second))  # (2B, T)
        return inputs * ops.cast(kept, inputs.dtype)[..., None]
