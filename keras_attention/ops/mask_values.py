"""The values of masks: booleans, or numbers that are all 0 or 1; anything else is refused.

Shapes: B batch, T query length, S key length.
"""

from typing import Any

import keras
from keras import ops


def as_mask(mask: Any, name: str) -> Any:
    """Converts a mask of booleans, or of numbers that are all 0 or 1, to boolean.

    Args:
        mask: A tensor or array, True or 1 = attend.
        name: The name of the argument, for the message.

    Returns:
        A boolean tensor.

    Raises:
        TypeError: Text; or floats inside a compiled function, where their values cannot be seen.
        ValueError: A number other than 0 and 1, such as those of an additive mask. Inside a compiled function
            TensorFlow raises this of integers when it runs, and JAX takes every other integer for True.

    Example:
        >>> keras.ops.convert_to_numpy(as_mask(keras.ops.array([1.0, 0.0]), "padding_mask"))
        array([ True, False])
    """
    mask = ops.convert_to_tensor(mask)
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if _are_zeros_and_ones(mask, dtype, name) is not None and "int" not in dtype:
        raise TypeError(
            f"`{name}` is boolean, True = attend. Whether floats are 0 and 1 cannot be seen inside a compiled "
            f"function: compare them first, as in mask > 0. Received: {name}.dtype={dtype}"
        )
    return ops.cast(mask, "bool")


def checked_masks(**given: Any) -> tuple[list[Any], Any]:
    """Converts masks to boolean in a layer, whose output `nan_unless` can void where they hold other numbers.

    Args:
        **given: Masks by name, of booleans or of numbers that are all 0 or 1; None where there is none.

    Returns:
        The masks in their order, boolean or None; then a scalar boolean that says whether all numbers are 0 or 1,
        or None where that is known.

    Raises:
        TypeError: Text.
        ValueError: A number other than 0 and 1, where it can be seen.

    Example:
        >>> (mask, none), valid = checked_masks(value_mask=ops.array([[1, 0]]), key_mask=None)
        >>> keras.ops.convert_to_numpy(mask).tolist(), none, valid
        ([[True, False]], None, None)
    """
    found, valid = [], None
    for name, mask in given.items():
        if mask is not None:
            mask = ops.convert_to_tensor(mask)
            is_valid = _are_zeros_and_ones(mask, keras.backend.standardize_dtype(mask.dtype), name)
            if is_valid is not None:
                valid = is_valid if valid is None else ops.logical_and(valid, is_valid)
            mask = ops.cast(mask, "bool")
        found.append(mask)
    return found, valid


def nan_unless(valid: Any, x: Any) -> Any:
    """Voids what was computed with a wrong mask, where a compiled program cannot raise.

    Args:
        valid: A scalar boolean, or None for True.
        x: A float tensor.

    Returns:
        The same, or NaN everywhere.

    Example:
        >>> keras.ops.convert_to_numpy(nan_unless(ops.array(False), ops.ones((2,)))).tolist()
        [nan, nan]
    """
    return x if valid is None else ops.where(valid, x, float("nan"))


def _are_zeros_and_ones(mask: Any, dtype: str, name: str) -> Any:
    """None where every value is known to be 0 or 1; a scalar boolean where values cannot be seen; else raises."""
    if dtype == "bool":
        return None
    if "int" not in dtype and "float" not in dtype:
        raise TypeError(f"`{name}` holds booleans, or numbers that are 0 or 1. Received: {name}.dtype={dtype}")
    valid = ops.all(ops.logical_or(ops.equal(mask, 0), ops.equal(mask, 1)))
    rule = (
        f"`{name}` holds booleans, or numbers that are 0 or 1 (1 = attend); numbers to add to the scores, such as 0 "
        f"and -inf, go to `attention_bias` of MultiHeadAttention. Received: {name}"
    )
    known = _known_truth(valid)
    if known is None:
        _assert_in_graph(valid, f"{rule} with other numbers")
        return valid
    if not known:
        low, high = (float(reduced(ops.cast(mask, "float32"))) for reduced in (ops.min, ops.max))
        raise ValueError(f"{rule} with numbers from {low:g} to {high:g}")
    return None


def _known_truth(value: Any) -> bool | None:
    """The truth of a scalar, or None inside a function that is being traced."""
    if getattr(value, "is_meta", False):  # torch finds out shapes
        return None
    try:
        return bool(value)
    except TypeError:
        return None


def _assert_in_graph(valid: Any, message: str) -> None:
    """Has a TensorFlow graph raise when it runs; XLA leaves assertions out, and other backends have none."""
    if keras.config.backend() == "tensorflow" and not isinstance(valid, keras.KerasTensor):
        import tensorflow as tf

        tf.debugging.Assert(valid, [message])
