"""Optimizer steps with gradients that are not finite, which change nothing, and the norm that tells."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_attention.layers.replicas import branch, replica_context, sum_over_replicas


class GradientNorm:
    """The norm of the gradients of the last batch, not among the variables of the optimizer, since it is no state."""

    def __init__(self) -> None:
        self._value = keras.Variable(
            0.0, trainable=False, synchronization="on_read", aggregation="mean", name="gradient_norm"
        )

    def assign(self, norm: Any) -> None:
        """Sets the norm."""
        self._value.assign(norm)

    def __float__(self) -> float:
        return float(ops.convert_to_numpy(self._value))


class FiniteSteps:
    """Mixin for an optimizer, before Keras' class: skips a step whose gradients do not have a finite norm.

    A skipped step changes neither weights nor moments, accumulated gradients or the number of iterations, as if its
    batch were not in the data. With several replicas of `tf.distribute`, the norm is that of the sum of their
    gradients, by which Keras' clipping and the accumulation of gradients then go, too.

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
        has_replicas = replica_context() is not None
        if has_replicas:
            grads = _sums(grads)
        norm = global_norm(grads)
        if self.gradient_norm is not None:
            self.gradient_norm.assign(norm)
        is_finite = ops.isfinite(norm)
        if has_replicas:
            branch(is_finite, lambda grads: apply(grads, trainable_variables), lambda grads: None, grads)
        else:
            ops.cond(is_finite, lambda: apply(grads, trainable_variables), lambda: None)

    def _all_reduce_sum_gradients(self, grads_and_vars: Sequence[Any]) -> Sequence[Any]:
        """Leaves the gradients, which Keras would sum over the replicas here, after it has clipped those of each."""
        return grads_and_vars

    def _backend_apply_gradients(self, grads: list[Any], trainable_variables: list[Any]) -> None:
        """Accumulates gradients on replicas, where Keras would merge them in a branch."""
        batches = self.gradient_accumulation_steps
        if not batches or self.use_ema or replica_context() is None:
            super()._backend_apply_gradients(grads, trainable_variables)
            return
        accumulated = [self._accumulated_gradients[self._get_variable_index(each)] for each in trainable_variables]

        def update(grads: list[Any]) -> None:
            pairs = zip(grads, accumulated, strict=True)
            grads = self._clip_gradients([(grad + earlier) / batches for grad, earlier in pairs])
            self._apply_weight_decay(trainable_variables)
            self._backend_update_step(grads, trainable_variables, self.learning_rate)
            self._backend_reset_gradient_accumulators()

        def accumulate(grads: list[Any]) -> None:
            for grad, earlier in zip(grads, accumulated, strict=True):
                earlier.assign(earlier + grad)

        is_last = ops.equal((self._iterations + 1) % batches, 0)
        branch(is_last, update, accumulate, grads)

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


def _sums(gradients: Sequence[Any]) -> list[Any]:
    """The sums of the gradients over all replicas, None where there is no gradient."""
    sums = iter(sum_over_replicas([each for each in gradients if each is not None]))
    return [None if each is None else next(sums) for each in gradients]
