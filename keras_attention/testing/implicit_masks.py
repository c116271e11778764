"""The masks that Keras attaches to tensors: giving one and reading it, by Keras' public means alone."""

from typing import Any

import keras
from keras import ops


class _Masked(keras.layers.Layer):
    """Passes its input on with a mask, as `Embedding(mask_zero=True)` does."""

    def __init__(self, given: Any):
        super().__init__(autocast=False)
        self.given = given

    def call(self, x: Any) -> Any:
        return ops.copy(x)

    def compute_mask(self, x: Any, previous_mask: Any) -> Any:
        return ops.convert_to_tensor(self.given)


class _MaskReader(keras.layers.Layer):
    """Keeps what Keras hands to the argument `mask`: the mask of the input."""

    def __init__(self):
        super().__init__(autocast=False)
        self.supports_masking = True
        self.seen = None

    def call(self, x: Any, mask: Any = None) -> Any:
        self.seen = mask
        return x


def with_mask(x: Any, mask: Any) -> Any:
    """The same values with an implicit mask.

    Args:
        x: A tensor or array (B, T, …).
        mask: Boolean (B, T).

    Returns:
        A tensor.

    Example:
        >>> x = with_mask(keras.ops.ones((2, 3, 5)), np.array([[True, True, False], [True, True, True]]))
        >>> keras.ops.convert_to_numpy(mask_of(x)).sum(axis=1).tolist()
        [2, 3]
    """
    return _Masked(mask)(x)


def mask_of(x: Any) -> Any:
    """The implicit mask of a tensor.

    Args:
        x: A tensor.

    Returns:
        Its mask, or None.

    Example:
        >>> mask_of(keras.ops.ones((2, 3, 5))) is None
        True
    """
    reader = _MaskReader()
    reader(x)
    return reader.seen
