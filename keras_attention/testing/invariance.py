"""Checks that padding does not change the predictions of a model."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


def check_mask_invariance(
    model: Any,
    inputs: Any,
    padding_value: int = 0,
    mask: str | None = None,
    extra: Sequence[int] = (1, 6),
    tolerance: float = 1e-4,
) -> None:
    """Checks that a model predicts the same for a sentence by itself, in a batch, and with more padding.

    Args:
        model: A Keras model, or a function of the inputs.
        inputs: Token ids (B, T), or a dictionary or list of them, padded at the end of the rows.
        padding_value: The id of padding.
        mask: The key of the input that marks the real tokens, if `inputs` is a dictionary with a mask. Other ids are
            then tried in the padding too.
        extra: The numbers of padding positions to append, one batch each.
        tolerance: The largest difference allowed between predictions.

    Raises:
        AssertionError: If a prediction changes; the message says by how much.

    Example:
        >>> ids = keras.Input((None,), dtype="int32")
        >>> x = keras.layers.Embedding(11, 8, mask_zero=True)(ids)
        >>> x = ka.EncoderLayer(intermediate_dim=16, num_heads=2)(x)
        >>> model = keras.Model(ids, keras.layers.GlobalAveragePooling1D()(x))
        >>> check_mask_invariance(model, np.array([[3, 1, 4, 1], [5, 9, 0, 0]]))
    """
    arrays = keras.tree.map_structure(np.asarray, inputs)
    lengths = _real_lengths(arrays, padding_value, mask)
    batches = {"in the batch": _predict(model, arrays)}
    for number in extra:
        batches[f"with {number} more positions of padding"] = _predict(model, _padded(arrays, number, padding_value))
    if mask is not None:
        batches["with other ids in its padding"] = _predict(model, _refilled(arrays, mask))
    for row in range(len(keras.tree.flatten(arrays)[0])):
        trimmed = _predict(model, keras.tree.map_structure(lambda x, n, b=row: x[b : b + 1, : n[b]], arrays, lengths))
        for what, predictions in batches.items():
            _compare(row, what, trimmed, predictions, tolerance)


def _real_lengths(arrays: Any, padding_value: int, mask: str | None) -> Any:
    """The number of real positions of each row, at least one, for each input."""

    def lengths(real: np.ndarray) -> np.ndarray:
        return np.maximum(1, (np.arange(1, real.shape[1] + 1) * real).max(axis=1, initial=0))

    if mask is None:
        return keras.tree.map_structure(lambda x: lengths(x != padding_value), arrays)
    return keras.tree.map_structure(lambda x: lengths(arrays[mask]), arrays)


def _padded(arrays: Any, number: int, padding_value: int) -> Any:
    def pad(x: np.ndarray) -> np.ndarray:
        value = False if x.dtype == bool else padding_value
        return np.pad(x, ((0, 0), (0, number)), constant_values=value)

    return keras.tree.map_structure(pad, arrays)


def _refilled(arrays: dict[str, np.ndarray], mask: str) -> dict[str, np.ndarray]:
    real = arrays[mask].astype(bool)
    return {
        name: x
        if name == mask or x.shape != real.shape
        else np.where(real, x, np.roll(x, 1, axis=0).max()).astype(x.dtype)
        for name, x in arrays.items()
    }


def _predict(model: Any, inputs: Any) -> list[np.ndarray]:
    outputs = model(inputs, training=False) if isinstance(model, keras.Model) else model(inputs)
    return [keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")) for x in keras.tree.flatten(outputs)]


def _compare(row: int, what: str, trimmed: list[np.ndarray], predictions: list[np.ndarray], tolerance: float) -> None:
    for one, other in zip(trimmed, predictions, strict=True):
        # The rest of a longer output is padding.
        same_part = other[row : row + 1][tuple(map(slice, one.shape))]
        difference = np.abs(one - same_part).max(initial=0)
        if not difference <= tolerance:
            raise AssertionError(
                f"Padding changes predictions: those of row {row}, trimmed and {what}, differ by up to "
                f"{difference:.3g}, where {tolerance:.3g} is allowed (output of shape {one.shape}). "
                "keras_attention.explain_masks(model) shows where the mask is lost."
            )
