"""Optimizer steps with gradients that are not finite, which change nothing, and the norm that tells."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class GradientNorm:
    """The norm of the gradients of the last batch, not among the variables of the optimizer, since it is no state.

    On several devices it is the sum of the norms of their parts of the gradients.
    """

    def __init__(self) -> None:
        self._value = keras.Variable(
            0.0, trainable=False, synchronization="on_read", aggregation="sum", name="gradient_norm"
        )

    def assign(self, norm: Any) -> None:
        """Sets the norm."""
        self._value.assign(norm)

    def __float__(self) -> float:
        return float(ops.convert_to_numpy(self._value))


class FiniteSteps:
    """Mixin for an optimizer, before Keras' class: skips a step whose gradients do not have a finite norm.

    A skipped step changes neither weights nor moments, accumulated gradients or the number of iterations, as if its
    batch were not in the data. With several replicas of `tf.distribute`, all steps are applied.

    On TensorFlow, `gradient_norm` has the norm of the gradients of the last batch, before they are clipped.
    """

    gradient_norm: GradientNorm | None = None

    def build(self, variables: list[Any]) -> None:
        """Creates the state: see `keras.optimizers.Optimizer.build`."""
        super().build(variables)
        if keras.config.backend() == "tensorflow" and self.gradient_norm is None:
            self.gradient_norm = GradientNorm()

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Updates all variables: see `keras.optimizers.Optimizer.apply`."""
        apply = super().apply
        if keras.config.backend() == "jax":  # there, `stateless_apply` branches
            apply(grads, trainable_variables)
            return
        if not self.built:  # a branch creates no variables
            with keras.name_scope(self.name, caller=self):
                self.build(trainable_variables)
        norm = global_norm(grads)
        if self.gradient_norm is not None:
            self.gradient_norm.assign(norm)
        if _has_replicas():
            apply(grads, trainable_variables)
        else:
            ops.cond(ops.isfinite(norm), lambda: apply(grads, trainable_variables), lambda: None)

    def stateless_apply(
        self, optimizer_variables: list[Any], grads: list[Any], trainable_variables: list[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Returns updated variables: see `keras.optimizers.Optimizer.stateless_apply`."""
        apply = super().stateless_apply
        if keras.config.backend() != "jax":
            return apply(optimizer_variables, grads, trainable_variables)
        return ops.cond(
            ops.isfinite(global_norm(grads)),
            lambda: apply(optimizer_variables, grads, trainable_variables),
            # Within the optimizer that scales a float16 loss, some of these are Keras variables.
            lambda: tuple(
                [ops.convert_to_tensor(v) for v in each] for each in (trainable_variables, optimizer_variables)
            ),
        )


def global_norm(gradients: Sequence[Any]) -> Any:
    """Returns the norm of all gradients together, which is not finite if one of them holds NaN or an infinity."""
    squares = [ops.sum(ops.square(ops.cast(each, "float32"))) for each in gradients if each is not None]
    return ops.sqrt(ops.sum(ops.stack(squares))) if squares else ops.zeros(())


def _has_replicas() -> bool:
    """Returns True for several replicas of TensorFlow, whose update merges them, which it cannot in a branch."""
    if keras.config.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync > 1
