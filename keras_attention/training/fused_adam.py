"""Adam in one pass over each variable."""

from typing import Any

import keras
from keras import ops

from keras_attention.training.dense_gradients import DenseGradients
from keras_attention.training.finite_steps import FiniteSteps


@keras.saving.register_keras_serializable("keras_attention")
class FusedAdam(DenseGradients, FiniteSteps, keras.optimizers.Adam):
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − α m̂ / (√v̂ + ε), all in one pass on TensorFlow.

    The arguments, the state and, but for rounding, the results are those of `keras.optimizers.Adam`. Keras writes a
    step as a dozen operations, each of which reads and writes whole variables; TensorFlow has one kernel for all of
    them. With `amsgrad`, and on other backends, the step is Keras' own. Unlike Keras, it sums the repeated rows of an
    embedding's gradient before it squares them, and a step whose gradients are not finite changes nothing.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> model.compile(FusedAdam(learning_rate=0.01), loss="mse")
        >>> history = model.fit(np.ones((4, 8)), np.ones((4, 3)), epochs=2, verbose=0)
        >>> history.history["loss"][1] < history.history["loss"][0]
        True

    Source: Kingma and Ba 2015, algorithm 1.
    """

    def build(self, var_list: list[Any]) -> None:
        """Creates the moments.

        Args:
            var_list: Trainable variables.
        """
        if self.built:
            return
        super().build(var_list)
        # The scales of a float8 layer, which their gradients overwrite, have no moments.
        has_moments = [not getattr(each, "overwrite_with_gradient", False) for each in var_list]
        count = 2 * sum(has_moments)
        moments = iter(self.variables[-count:])  # Keras creates these last: two of each variable in turn
        pairs = [(next(moments), next(moments)) if has else (None, None) for has in has_moments]
        self.first_moments, self.second_moments = map(list, zip(*pairs, strict=True))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable.

        Args:
            gradient: Dense gradient of the loss.
            variable: Variable of the backend.
            learning_rate: Learning rate of this step.
        """
        if keras.config.backend() != "tensorflow" or self.amsgrad:
            return super().update_step(gradient, variable, learning_rate)
        # Keras gives its subclasses this to find the state of the backend's variable, on every device that holds it.
        index = self._get_variable_index(variable)
        apply_adam(self, variable, self.first_moments[index], self.second_moments[index], gradient, learning_rate)


def apply_adam(optimizer: Any, variable: Any, first: Any, second: Any, gradient: Any, learning_rate: Any) -> None:
    """Updates a TensorFlow variable and its moments with TensorFlow's kernel of Adam."""
    import tensorflow as tf

    rate, step, beta_1, beta_2, epsilon, gradient = (
        ops.cast(value, variable.dtype)
        for value in (
            learning_rate, optimizer.iterations + 1, optimizer.beta_1, optimizer.beta_2, optimizer.epsilon, gradient
        )
    )  # fmt: skip
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=first.value.handle,
        v=second.value.handle,
        beta1_power=ops.power(beta_1, step),
        beta2_power=ops.power(beta_2, step),
        lr=rate,
        beta1=beta_1,
        beta2=beta_2,
        epsilon=epsilon,
        grad=gradient,
    )
