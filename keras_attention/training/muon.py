"""Muon, an optimizer that makes all singular values of a matrix's update about 1."""

import math
from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import fraction, one_of, positive_integer, positive_number
from keras_attention.training.dense_gradients import DenseGradients
from keras_attention.training.finite_steps import FiniteSteps
from keras_attention.training.fused_adam import apply_adam
from keras_attention.training.schedules import InverseSqrtSchedule

# (a, b, c) of polynomials x ↦ a x + b x³ + c x⁵. Each brings the values that the one before leaves, ± 10% for rounding
# in bfloat16, as near to 1 as such a polynomial can: from [0.02, 1] to [0.15, 1.85], [0.42, 1.58] and [0.81, 1.19].
POLYNOMIALS = ((7.5738, -20.8915, 14.7576), (3.0951, -1.9694, 0.3407), (2.3324, -1.5278, 0.3254))
LAST_POLYNOMIAL = (15 / 8, -10 / 8, 3 / 8)  # Newton's and Schulz', for further steps
# Root mean square of an update by Adam, to which updates of matrices are scaled (Liu et al. 2025, section 2.2).
UPDATE_SIZE = 0.2
ITERATION_DTYPES = ("float32", "bfloat16")


@keras.saving.register_keras_serializable("keras_attention")
class Muon(DenseGradients, FiniteSteps, keras.optimizers.Optimizer):
    """W ← W − lr · 0.2 √max(m, n) · U Vᵀ, where U Σ Vᵀ is the momentum of the gradient of an m × n matrix.

    Every variable named "kernel" with two or more axes is such a matrix. Adam trains all others (embeddings, biases,
    scales of normalization layers) with the same learning rate. A step costs a few products of each matrix with itself
    more than a step of Adam, so use batches of a few thousand tokens.

    A step whose gradients are not finite changes nothing.

    `keras.optimizers.Muon` only takes kernels with two axes; those of attention have three.

    Args:
        learning_rate: A number or a schedule.
        momentum: Nesterov momentum of the matrices.
        beta_1: β₁ of Adam.
        beta_2: β₂ of Adam.
        epsilon: ε of Adam.
        steps: Number of polynomials, the iterations of Newton and Schulz, that bring singular values to 1: after the
            third, those above ‖X Xᵀ‖^½ / 50 are between 0.8 and 1.2.
        iteration_dtype: Dtype of these iterations, "float32" or "bfloat16", which is accurate enough and twice as fast
            where the processor multiplies it.
        **kwargs: See `keras.optimizers.Optimizer`; with a `weight_decay` of λ, each step also subtracts lr · λ · W from
            every matrix W and every variable named "embeddings". Biases and scales do not decay.

    Raises:
        ValueError: If a momentum is outside [0, 1), `steps` is below 1, or the dtype is another one.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> model.compile(Muon(learning_rate=0.01), loss="mse")
        >>> history = model.fit(np.ones((4, 8)), np.ones((4, 3)), epochs=2, verbose=0)
        >>> history.history["loss"][1] < history.history["loss"][0]
        True

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
    Scalable for LLM Training", arXiv 2502.16982; Amsel et al. 2025, "The Polar Express: Optimal Matrix Sign Methods and
    Their Application to the Muon Algorithm", arXiv 2505.16932.
    """

    def __init__(
        self,
        learning_rate: Any = 0.002,
        momentum: float = 0.9,
        beta_1: float = 0.9,
        beta_2: float = 0.98,
        epsilon: float = 1e-9,
        steps: int = 3,
        iteration_dtype: str = "float32",
        **kwargs: Any,
    ):
        super().__init__(learning_rate=learning_rate, **{"name": "muon", **kwargs})
        self.momentum = fraction(momentum, "momentum")
        self.beta_1 = fraction(beta_1, "beta_1")
        self.beta_2 = fraction(beta_2, "beta_2")
        self.epsilon = positive_number(epsilon, "epsilon")
        self.steps = positive_integer(steps, "steps")
        self.iteration_dtype = one_of(iteration_dtype, "iteration_dtype", ITERATION_DTYPES)
        self.excluded_variables, self.excluded_names = (), None

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Excludes further variables from weight decay: see `keras.optimizers.Optimizer.exclude_from_weight_decay`.

        Args:
            var_list: Matrices and embeddings that do not decay.
            var_names: Parts of names of matrices and embeddings that do not decay.
        """
        super().exclude_from_weight_decay(var_list, var_names)
        self.excluded_variables, self.excluded_names = tuple(var_list or ()), var_names

    def build(self, variables: list[Any]) -> None:
        """Creates the moments: one for each matrix, two for every other variable.

        Args:
            variables: Trainable variables.
        """
        if self.built:
            return
        others = [each for each in variables if not (is_matrix(each) or each.name == "embeddings")]
        super().exclude_from_weight_decay([*self.excluded_variables, *others], self.excluded_names)
        super().build(variables)
        make = self.add_variable_from_reference
        self.first_moments = [make(variable, name="momentum") for variable in variables]
        self.second_moments = [None if is_matrix(each) else make(each, name="velocity") for each in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable.

        Args:
            gradient: Gradient of the loss.
            variable: Variable of the backend.
            learning_rate: Learning rate of this step.
        """
        # Keras gives its subclasses this to find the state of the backend's variable, on every device that holds it.
        index = self._get_variable_index(variable)
        first, second = self.first_moments[index], self.second_moments[index]
        if second is not None and keras.config.backend() == "tensorflow":
            apply_adam(self, variable, first, second, gradient, learning_rate)
            return
        rate, gradient = ops.cast(learning_rate, variable.dtype), ops.cast(gradient, variable.dtype)
        if second is None:
            update = self._matrix_update(gradient, first, tuple(variable.shape))
        else:
            update = self._adam_update(gradient, first, second)
        self.assign_sub(variable, ops.multiply(rate, update))

    def _matrix_update(self, gradient: Any, moment: Any, shape: tuple[int, ...]) -> Any:
        self.assign(moment, ops.add(ops.multiply(moment, self.momentum), gradient))
        ahead = ops.add(gradient, ops.multiply(moment, self.momentum))
        rows, columns = matrix_shape(shape)
        update = orthogonalize(ops.reshape(ahead, (rows, columns)), self.steps, self.iteration_dtype)
        return ops.reshape(update, shape) * (UPDATE_SIZE * max(rows, columns) ** 0.5)

    def _adam_update(self, gradient: Any, first: Any, second: Any) -> Any:
        step = ops.cast(self.iterations + 1, first.dtype)
        self.assign(first, ops.add(first, (1 - self.beta_1) * ops.subtract(gradient, first)))
        self.assign(second, ops.add(second, (1 - self.beta_2) * ops.subtract(ops.square(gradient), second)))
        mean = ops.divide(first, 1 - ops.power(self.beta_1, step))
        spread = ops.sqrt(ops.divide(second, 1 - ops.power(self.beta_2, step)))
        return ops.divide(mean, spread + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """Returns the config of the optimizer.

        Returns:
            Keyword arguments of the constructor.
        """
        names = ("momentum", "beta_1", "beta_2", "epsilon", "steps", "iteration_dtype")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def orthogonalize(matrix: Any, steps: int, dtype: str = "float32") -> Any:
    """Approximates U Vᵀ = (X Xᵀ)^-½ X of a matrix X = U Σ Vᵀ, (m, n), with nothing but matrix products."""
    x = ops.cast(matrix, dtype)
    is_tall = matrix.shape[0] > matrix.shape[1]
    gram = ops.matmul(ops.transpose(x), x) if is_tall else ops.matmul(x, ops.transpose(x))
    square = ops.sqrt(ops.sum(ops.square(ops.cast(gram, "float32")))) + 1e-14  # no σ² is above it
    root = inverse_root(gram / ops.cast(square, dtype), steps) / ops.cast(ops.sqrt(square), dtype)
    return ops.cast(ops.matmul(x, root) if is_tall else ops.matmul(root, x), matrix.dtype)


def inverse_root(gram: Any, steps: int) -> Any:
    """Approximates G^-½ of a Gram matrix whose eigenvalues are at most 1."""
    root = factor = _quintic(gram, 0)
    for step in range(1, steps):
        gram = ops.matmul(factor, ops.matmul(gram, factor))  # that of the factors' product with X
        factor = _quintic(gram, step)
        root = ops.matmul(factor, root)
    return root


def _quintic(gram: Any, step: int) -> Any:
    """Returns a I + b G + c G², whose product with X maps each singular value σ to a σ + b σ³ + c σ⁵."""
    a, b, c = POLYNOMIALS[step] if step < len(POLYNOMIALS) else LAST_POLYNOMIAL
    return a * ops.eye(gram.shape[0], dtype=gram.dtype) + b * gram + c * ops.matmul(gram, gram)


def is_matrix(variable: Any) -> bool:
    """Returns True for kernels with two or more axes."""
    return variable.name == "kernel" and len(variable.shape) > 1


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The most nearly square matrix of a kernel: (M, H, D) maps M to H·D, (H, D, M) maps H·D to M."""
    splits = [(math.prod(shape[:axis]), math.prod(shape[axis:])) for axis in range(1, len(shape))]
    return min(splits, key=lambda split: max(split) / min(split))


def muon_optimizer(
    config: Any,
    warmup_steps: int = 4000,
    scale: float = 1.0,
    total_steps: int | None = None,
    gradient_accumulation_steps: int = 1,
    iteration_dtype: str = "float32",
    weight_decay: float | None = None,
) -> Muon:
    """Returns `Muon` with the paper's learning-rate schedule.

    Args:
        config: Config with a `hidden_dim`, such as `model.config`.
        warmup_steps: See `InverseSqrtSchedule`.
        scale: See `InverseSqrtSchedule`.
        total_steps: See `InverseSqrtSchedule`.
        gradient_accumulation_steps: See `paper_optimizer`.
        iteration_dtype: See `Muon`.
        weight_decay: λ of matrices and embeddings, such as `recommended_weight_decay`; None for no decay.

    Returns:
        An optimizer for `compile`.

    Raises:
        ValueError: If a size or the scale is not above zero, or the dtype is unknown.

    Example:
        >>> from keras_attention import TransformerConfig
        >>> muon_optimizer(TransformerConfig(vocabulary_size=100)).momentum
        0.9
    """
    batches = positive_integer(gradient_accumulation_steps, "gradient_accumulation_steps")
    return Muon(
        InverseSqrtSchedule(config.hidden_dim, warmup_steps, scale, total_steps, batches),
        gradient_accumulation_steps=batches if batches > 1 else None,
        iteration_dtype=iteration_dtype,
        weight_decay=weight_decay,
    )
