"""The paper's learning-rate schedule and optimizer."""

from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import positive_integer, positive_number
from keras_attention.training.fused_adam import FusedAdam

# The most of a training that the warm-up takes, and the part over which the learning rate falls to zero.
MAX_WARMUP, DECAY = 1 / 4, 1 / 2


@keras.saving.register_keras_serializable("keras_attention")
class InverseSqrtSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """lr = scale · d_model^−½ · min(step^−½, step · warmup^−3/2): linear warm-up, then 1/√step.

    With `total_steps`, the learning rate is multiplied by a linear decay to zero over the second half of the steps,
    which helps as averaging checkpoints does, and it reaches its peak after a quarter of the steps where the warm-up
    would take longer.

    Args:
        hidden_dim: d_model.
        warmup_steps: Number of warm-up steps.
        scale: Factor on the learning rate; 1 in the paper.
        total_steps: Step at which the learning rate reaches zero; None, as in the paper, for no decay.
        batches_per_step: The `gradient_accumulation_steps` of the optimizer, which passes its schedule the number of
            batches.

    Raises:
        ValueError: If a size or the scale is not above zero.

    Example:
        >>> float(InverseSqrtSchedule(hidden_dim=512)(3999))  # the 4000th step, the highest
        0.00069877...

    Source: Vaswani et al. 2017, section 5.3, equation 3; for the decay, Hägele et al. 2024, "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations", section 3.
    """

    def __init__(
        self,
        hidden_dim: int,
        warmup_steps: int = 4000,
        scale: float = 1.0,
        total_steps: int | None = None,
        batches_per_step: int = 1,
    ):
        self.hidden_dim = positive_integer(hidden_dim, "hidden_dim")
        self.warmup_steps = positive_integer(warmup_steps, "warmup_steps")
        self.scale = positive_number(scale, "scale")
        self.total_steps = None if total_steps is None else positive_integer(total_steps, "total_steps")
        self.batches_per_step = positive_integer(batches_per_step, "batches_per_step")

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        return self.scale * (self.hidden_dim * self.warmup_steps) ** -0.5

    def __call__(self, step: Any) -> Any:
        # Keras passes the number of batches before this one.
        step = ops.cast(ops.floor_divide(step, self.batches_per_step), "float32") + 1.0
        if self.total_steps is None:
            return self.scale * self.hidden_dim**-0.5 * ops.minimum(ops.rsqrt(step), step * self.warmup_steps**-1.5)
        warmup = min(self.warmup_steps, MAX_WARMUP * self.total_steps)
        after_warmup = ops.sqrt(self.warmup_steps / ops.maximum(step, self.warmup_steps))
        remaining = ops.maximum(1 - step / self.total_steps, 0.0)
        return self.peak * ops.minimum(step / warmup, after_warmup) * ops.minimum(remaining / DECAY, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {
            "hidden_dim": self.hidden_dim,
            "warmup_steps": self.warmup_steps,
            "scale": self.scale,
            "total_steps": self.total_steps,
            "batches_per_step": self.batches_per_step,
        }


def paper_optimizer(
    config: Any,
    warmup_steps: int = 4000,
    scale: float = 1.0,
    global_clipnorm: float | None = 1.0,
    total_steps: int | None = None,
    gradient_accumulation_steps: int = 1,
    weight_decay: float | None = None,
) -> keras.optimizers.Optimizer:
    """Returns Adam with β₁ = 0.9, β₂ = 0.98, ε = 1e-9, the paper's schedule and gradients clipped by their norm.

    Args:
        config: Config with a `hidden_dim`, such as `model.config`.
        warmup_steps: See `InverseSqrtSchedule`.
        scale: See `InverseSqrtSchedule`.
        global_clipnorm: Maximum norm of all gradients together; None, as in the paper, for no clipping.
        total_steps: See `InverseSqrtSchedule`.
        gradient_accumulation_steps: Number of batches whose gradients are averaged for one step of the optimizer and
            the schedule. Each batch counts the same, also one with fewer tokens.
        weight_decay: λ of all variables, see `keras.optimizers.Adam`; None, as in the paper, for no decay.

    Returns:
        An optimizer for `compile`.

    Raises:
        ValueError: If a size or the scale is not above zero.

    Example:
        >>> from keras_attention import TransformerConfig
        >>> paper_optimizer(TransformerConfig(vocabulary_size=100)).epsilon
        1e-09

    Source: Vaswani et al. 2017, section 5.3.
    """
    batches = positive_integer(gradient_accumulation_steps, "gradient_accumulation_steps")
    # On torch, Keras updates all variables at once, but only for its own class; on JAX, XLA fuses the operations.
    adam = FusedAdam if keras.config.backend() == "tensorflow" else keras.optimizers.Adam
    return adam(
        InverseSqrtSchedule(config.hidden_dim, warmup_steps, scale, total_steps, batches),
        beta_1=0.9,
        beta_2=0.98,
        epsilon=1e-9,
        global_clipnorm=global_clipnorm,
        gradient_accumulation_steps=batches if batches > 1 else None,
        weight_decay=weight_decay,
    )
