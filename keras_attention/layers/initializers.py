"""How the kernels of encoder and decoder layers start."""

from typing import Any

import keras

from keras_attention.layers.arguments import integer_or_none, positive_number

# The kernels of attention and of the feed-forward network; those that end a residual branch start small.
LAST = ("attention_output", "output")
OTHERS = ("query", "key", "value", "intermediate", "gate")


@keras.saving.register_keras_serializable("keras_attention")
class ResidualBranchInitializer(keras.initializers.Initializer):
    """W ~ U(−a, a), a = gain · √(6 / (fan_in + fan_out)): Glorot's bound, with a small gain where a sub-layer ends.

    The gain applies to the last kernel of each sub-layer: W_O of attention and W_2 of the feed-forward network. All
    others have Glorot's bound. So the sub-layers start small, LayerNorm(x + Sublayer(x)) starts close to x, and the
    embeddings and the gradients reach every layer of a deep model.

    `EncoderLayer`, `DecoderLayer`, their stacks and the models start like this; `kernel_initializer="glorot_uniform"`
    is Keras' default.

    Args:
        gain: Factor on Glorot's bound.
        seed: Integer for reproducible values, or None.

    Raises:
        ValueError: If the gain is not above zero, or the seed is not an integer.

    Example:
        >>> layer = ka.EncoderLayer(64, num_heads=4, kernel_initializer=ResidualBranchInitializer(gain=0.1, seed=3))
        >>> layer.build((None, None, 16))
        >>> last = layer.feed_forward.output_dense.kernel
        >>> bool(keras.ops.max(keras.ops.abs(last)) <= 0.1 * (6 / (64 + 16)) ** 0.5)
        True

    Source: Glorot and Bengio 2010, equation 16. Small residual branches: Zhang et al. 2019 (Fixup), section 3; Radford
    et al. 2019 (GPT-2), section 2.3; Huang et al. 2020 (T-Fixup).
    """

    def __init__(self, gain: float = 0.2, seed: int | None = None):
        self.gain = positive_number(gain, "gain")
        self.seed = integer_or_none(seed, "seed")

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return self._glorot(1.0)(shape, dtype)

    def for_kernel(self, name: str) -> keras.initializers.Initializer:
        """Returns the initializer of the kernel with this name, or for a layer that holds kernels, itself."""
        if name in LAST:
            return self._glorot(self.gain)
        # Not itself, since Keras tells its own initializers which axes of a kernel are inputs.
        return self._glorot(1.0) if name in OTHERS else self

    def _glorot(self, gain: float) -> keras.initializers.Initializer:
        return keras.initializers.VarianceScaling(gain**2, mode="fan_avg", distribution="uniform", seed=self.seed)

    def get_config(self) -> dict[str, Any]:
        return {"gain": self.gain, "seed": self.seed}


INITIALIZATIONS = {
    "residual_branch": ResidualBranchInitializer,
    "alternating_signs": ResidualBranchInitializer,  # and the scales of a model's last normalization, see `Network`
    "glorot": keras.initializers.GlorotUniform,
}
