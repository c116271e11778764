"""Adam in one pass over each variable."""

from typing import Any

import keras
from keras import ops

from keras_attention.training.summed_rows import SummedRows


@keras.saving.register_keras_serializable("keras_attention")
class FusedAdam(SummedRows, keras.optimizers.Adam):
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − α m̂ / (√v̂ + ε), all in one pass on TensorFlow.

    `keras.optimizers.Adam` in its arguments, its state and, but for rounding, its results. Keras writes a step as a
    dozen operations, each of which reads and writes whole variables; TensorFlow has a kernel that does all of them.
    With `amsgrad`, and on other backends, the step is Keras' own. A row that an embedding's gradient has twice is
    summed before it is squared, as it is not by Keras.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> model.compile(FusedAdam(learning_rate=0.01), loss="mse")
        >>> history = model.fit(np.ones((4, 8)), np.ones((4, 3)), epochs=2, verbose=0)
        >>> history.history["loss"][1] < history.history["loss"][0]
        True

    Source: Kingma and Ba 2015, algorithm 1.
    """

    def build(self, var_list: list[Any]) -> None:
        """Makes the moments.

        Args:
            var_list: What is trained.
        """
        if self.built:
            return
        super().build(var_list)
        # What a float8 layer replaces with its gradient, its scales, has no moments.
        has_moments = [not getattr(each, "overwrite_with_gradient", False) for each in var_list]
        count = 2 * sum(has_moments)
        moments = iter(self.variables[-count:])  # what Keras makes last: two of each variable in turn
        pairs = [(next(moments), next(moments)) if has else (None, None) for has in has_moments]
        self.first_moments, self.second_moments = map(list, zip(*pairs, strict=True))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Changes one variable.

        Args:
            gradient: Of the loss, dense.
            variable: What is changed, as the backend's own.
            learning_rate: Of this step.
        """
        if keras.config.backend() != "tensorflow" or self.amsgrad:
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf

        # What Keras gives its subclasses to find the state of the backend's variable, on every device that holds it.
        index = self._get_variable_index(variable)
        rate, step, beta_1, beta_2, epsilon, gradient = (
            ops.cast(value, variable.dtype)
            for value in (learning_rate, self.iterations + 1, self.beta_1, self.beta_2, self.epsilon, gradient)
        )
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self.first_moments[index].value.handle,
            v=self.second_moments[index].value.handle,
            beta1_power=ops.power(beta_1, step),
            beta2_power=ops.power(beta_2, step),
            lr=rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=gradient,
        )
