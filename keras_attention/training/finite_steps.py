"""Optimizer steps with gradients that are not finite, which change nothing."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class FiniteSteps:
    """Mixin for an optimizer, before Keras' class: skips a step whose gradients are not all finite.

    A skipped step changes neither weights nor moments, accumulated gradients or the number of iterations, as if its
    batch were not in the data. With several replicas of `tf.distribute`, all steps are applied.
    """

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Updates all variables: see `keras.optimizers.Optimizer.apply`."""
        apply = super().apply
        if not _can_branch():
            apply(grads, trainable_variables)
            return
        if not self.built:  # a branch creates no variables
            with keras.name_scope(self.name, caller=self):
                self.build(trainable_variables)
        ops.cond(all_finite(grads), lambda: apply(grads, trainable_variables), lambda: None)

    def stateless_apply(
        self, optimizer_variables: list[Any], grads: list[Any], trainable_variables: list[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Returns updated variables: see `keras.optimizers.Optimizer.stateless_apply`."""
        apply = super().stateless_apply
        if keras.config.backend() != "jax":
            return apply(optimizer_variables, grads, trainable_variables)
        return ops.cond(
            all_finite(grads),
            lambda: apply(optimizer_variables, grads, trainable_variables),
            # Within the optimizer that scales a float16 loss, some of these are Keras variables.
            lambda: tuple(
                [ops.convert_to_tensor(v) for v in each] for each in (trainable_variables, optimizer_variables)
            ),
        )


def all_finite(gradients: Sequence[Any]) -> Any:
    """Returns a boolean tensor that is True if no gradient holds NaN or an infinity."""
    finite = [ops.all(ops.isfinite(each)) for each in gradients if each is not None]
    return ops.all(ops.stack(finite)) if finite else ops.convert_to_tensor(True)


def _can_branch() -> bool:
    """Returns False where `ops.cond` cannot have an update in a branch."""
    if keras.config.backend() != "tensorflow":
        return keras.config.backend() != "jax"  # there, `stateless_apply` branches
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync == 1  # an update in a branch cannot merge replicas
