"""Sets and reads the masks that Keras attaches to tensors, with Keras' public API only."""

from typing import Any

import keras
from keras import ops


class _Masked(keras.layers.Layer):
    """Returns its input with a mask, as `Embedding(mask_zero=True)` does."""

    def __init__(self, padding_mask: Any):
        super().__init__(autocast=False)
        self.padding_mask = padding_mask

    def call(self, x: Any) -> Any:
        return ops.copy(x)

    def compute_mask(self, x: Any, previous_mask: Any) -> Any:
        return ops.convert_to_tensor(self.padding_mask)


class _MaskReader(keras.layers.Layer):
    """Keeps the mask of its input, which Keras passes as the argument `mask`."""

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = True
        self.seen = None

    def call(self, x: Any, mask: Any = None) -> Any:
        self.seen = mask
        return x


def with_mask(x: Any, mask: Any) -> Any:
    """A tensor (B, T, …) of the same values with the implicit mask (B, T)."""
    return _Masked(mask)(x)


def mask_of(x: Any) -> Any:
    """The implicit mask of a tensor, or None."""
    reader = _MaskReader()
    reader(x)
    return reader.seen
