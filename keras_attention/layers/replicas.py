"""Replicas of a strategy of `tf.distribute`: sums over all of them, branches that they take together, their seeds.

Everything here leaves other backends and a single replica as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

# The distance of the seeds of two replicas.
_SEED_STEP = 1_000_003


def replica_context() -> Any:
    """TensorFlow's context of the replica whose computation this is; None without a strategy, and outside of them."""
    if keras.config.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.distribute.get_replica_context() if tf.distribute.has_strategy() else None


def sum_over_replicas(tensors: Sequence[Any]) -> list[Any]:
    """The sum of each tensor over all replicas, through which gradients flow."""
    context = replica_context()
    return list(tensors) if context is None or not tensors else list(context.all_reduce("sum", list(tensors)))


def split_over_replicas(loss: Any) -> Any:
    """The part of a loss that all replicas have in common which one of them adds: TensorFlow sums their gradients."""
    context = replica_context()
    return loss if context is None or context.num_replicas_in_sync == 1 else loss / context.num_replicas_in_sync


def branch(
    condition: Any, function: Callable[[list[Any]], None], otherwise: Callable[[list[Any]], None], x: Any
) -> None:
    """Calls one of two functions of a list of tensors on every replica, by a condition that is the same on each."""
    import tensorflow as tf

    # A branch within a replica cannot merge the replicas, which an optimizer does to update a variable. So the
    # branches are outside of the replicas, which begin again within each branch.
    def decide(strategy: Any, condition: Any, x: list[Any]) -> None:
        def on_all_replicas(function: Callable[[list[Any]], None]) -> Callable[[], None]:
            return lambda: strategy.run(function, args=(x,))

        first = strategy.experimental_local_results(condition)[0]
        tf.cond(first, on_all_replicas(function), on_all_replicas(otherwise))

    replica_context().merge_call(decide, args=(condition, x))


class ReplicaSeeds(keras.random.SeedGenerator):
    """The seeds of a generator, other ones on each replica: a generator of Keras has the same state on all of them."""

    def __init__(self, generator: keras.random.SeedGenerator):
        self._generator = generator  # whose state this has, instead of one of its own

    def next(self, ordered: bool = True) -> Any:
        """The next seed (2,)."""
        seed, context = self._generator.next(ordered), replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return seed
        replica = keras.ops.cast(context.replica_id_in_sync_group, seed.dtype)
        return seed + keras.ops.stack([_SEED_STEP * replica, keras.ops.zeros_like(replica)])


class WithoutSampleBatch:
    """Mixin for a functional model, before Keras' class: builds the state of `compile` without a batch of the data.

    Under a strategy, Keras takes the mean over the replicas of the first batch, to know its shapes: it fails where the
    replicas have different numbers of rows, and a dataset whose iterations are its epochs would begin with the second.
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        labels = keras.KerasTensor((None, None), "int32")
        super()._maybe_symbolic_build(data_batch=(self.input, labels))
