"""Tensor operations whose best form differs between backends.

Shapes: B sentences, n entries of each, t tokens so far.
"""

from typing import Any

import keras
import numpy as np
from keras import ops


def is_tensorflow() -> bool:
    """Returns whether TensorFlow is the backend, whose searches grow their tensors; others keep fixed shapes."""
    return keras.backend.backend() == "tensorflow"


def gather(x: Any, indices: Any) -> Any:
    """Gathers entries of each sentence: from x (B, n, …) those at the indices (B, m), as (B, m, …)."""
    if is_tensorflow():
        import tensorflow as tf

        return tf.gather(x, indices, batch_dims=1)
    return ops.take_along_axis(x, ops.reshape(indices, (*indices.shape, *[1] * (len(x.shape) - 2))), axis=1)


def take_rows(x: Any, rows: Any) -> Any:
    """Gathers rows (m,), which must exist, of x (n, …)."""
    if is_tensorflow():  # `ops.take` also accepts negative indices, which takes more operations
        import tensorflow as tf

        return tf.gather(x, rows)
    return ops.take(x, rows, axis=0)


def top_k(x: Any, number: Any) -> tuple[Any, Any]:
    """Returns the largest entries of each row, largest first, and their indices, int32; of equal ones the first."""
    if keras.backend.backend() == "torch":  # whose `topk` takes any of equal entries
        indices = ops.argsort(-x, axis=-1)[..., :number]  # a stable sort
        return ops.take_along_axis(x, indices, axis=-1), ops.cast(indices, "int32")
    values, indices = ops.top_k(x, number)
    return values, ops.cast(indices, "int32")


def smaller(x: Any, y: Any) -> Any:
    """Returns the smaller of two sizes, as an integer where both are known."""
    return min(x, y) if isinstance(x, int) and isinstance(y, int) else ops.minimum(x, y)


def rows_of_each(rows: Any, sentences: Any) -> Any:
    """Returns how many of the rows each sentence has, as an integer where both are known; 0 without sentences."""
    return rows // (max(sentences, 1) if isinstance(sentences, int) else ops.maximum(sentences, 1))


def append_token(ids: Any, last: Any, index: Any = None) -> Any:
    """Appends tokens (B, K) to (B, K, t), or writes them at an index of ids of a fixed length."""
    if index is None:
        return ops.concatenate([ids, last[:, :, None]], axis=2)
    return ops.slice_update(ids, (0, 0, index), ops.cast(last[:, :, None], ids.dtype))


def as_float32(x: Any) -> Any:
    """Casts to float32."""
    if is_tensorflow():
        import tensorflow as tf

        # The check of the shape keeps TensorFlow from moving the cast behind each reshaping, to cast several times.
        return tf.ensure_shape(tf.cast(x, tf.float32), x.shape)
    return ops.cast(x, "float32")


def known_value(x: Any) -> np.ndarray | None:
    """Returns a number or a tensor as an array, or None where it is unknown while a function is traced."""
    if is_tensorflow():
        import tensorflow as tf

        return tf.get_static_value(tf.convert_to_tensor(x))
    try:
        return ops.convert_to_numpy(x)
    except TypeError:
        return None


def assert_positive(x: Any, message: str) -> None:
    """Makes a graph of TensorFlow fail where numbers are not positive; other compiled functions cannot fail."""
    if is_tensorflow():
        import tensorflow as tf

        tf.debugging.assert_positive(x, message)


def argmax(x: Any) -> Any:
    """Returns the index of the first largest entry of each row, int32."""
    if is_tensorflow():  # `ops.argmax` takes more passes, to tell zeros of different signs apart
        import tensorflow as tf

        return tf.argmax(x, axis=-1, output_type=tf.int32)
    return ops.cast(ops.argmax(x, axis=-1), "int32")


def argmin(x: Any) -> Any:
    """Returns the index of the first smallest entry of each row, int32."""
    if is_tensorflow():
        import tensorflow as tf

        return tf.argmin(x, axis=-1, output_type=tf.int32)
    return ops.cast(ops.argmin(x, axis=-1), "int32")
