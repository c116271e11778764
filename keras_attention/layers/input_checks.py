"""Checks of the tensors that layers are given, with messages that say how to mend them."""

import numbers
from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import concrete_integer


def check_sequence(x: Any, name: str, rank: int | None = 3) -> Any:
    """Refuses what is not a padded batch of vectors.

    Args:
        x: The value of the argument.
        name: The argument's name, for the message.
        rank: How many axes it has; None for three or more.

    Returns:
        The same, dense: in a functional model Keras takes `x * 2` for a sparse tensor.

    Raises:
        TypeError: A ragged tensor, or one that does not hold floats.
        ValueError: Another rank.
    """
    if hasattr(x, "row_splits"):
        raise TypeError(
            f"`{name}` must be a padded tensor: give {name}.to_tensor() with its padding mask. "
            f"Received: a ragged tensor of shape {tuple(x.shape)}"
        )
    dtype = keras.backend.standardize_dtype(x.dtype)
    if "float" not in dtype:
        raise TypeError(
            f"`{name}` must hold floats, such as the vectors that a TokenEmbedding makes of ids. "
            f"Received: {name}.dtype={dtype}"
        )
    check_shape(x.shape, name, rank)
    return ops.convert_to_tensor(x, sparse=False)


def check_shape(shape: Any, name: str, rank: int | None = 3, like: str | None = None) -> None:
    """Refuses a shape that is not that of a batch of sequences of vectors of known width.

    Args:
        shape: Of the argument.
        name: The argument's name, for the message.
        rank: How many axes it has; None for three or more.
        like: The argument that has as many axes, where that is the reason for the rank.

    Raises:
        TypeError: None in the place of a tensor.
        ValueError: Another rank, or a width of None.

    Example:
        >>> check_shape((None, 7, 16), "inputs")
    """
    check_given(shape, name)
    if len(shape) < 3 if rank is None else len(shape) != rank:
        axes = "(batch, length, width)" if rank == 3 or rank is None else f"of {rank} axes"
        equal = f": the ranks of `{like}` and `{name}` must be equal" if like else ""
        vectors = "vectors, such as a TokenEmbedding makes of ids, in " if len(shape) == 2 else ""
        raise ValueError(f"`{name}` must have {vectors}shape {axes}{equal}. Received: {name}.shape={tuple(shape)}")
    if shape[-1] is None:
        raise ValueError(f"The last axis of `{name}`, its width, must be known. Received: {name}.shape={tuple(shape)}")


def check_given(shape: Any, name: str) -> None:
    """Refuses None in the place of a tensor.

    Args:
        shape: Of the argument, None where there is no tensor.
        name: The argument's name, for the message.

    Raises:
        TypeError: There is none.

    Example:
        >>> check_given((2, 3, 5), "inputs")
    """
    if shape is None:
        raise TypeError(f"`{name}` must be a tensor (batch, length, width). Received: {name}=None")


def check_built(layer: Any, what: str) -> None:
    """Refuses what needs the weights of a layer before there are any.

    Args:
        layer: A layer.
        what: The method that was called, for the message.

    Raises:
        ValueError: The layer is not built.

    Example:
        >>> check_built(keras.layers.Dense(3), "init_cache")
        Traceback (most recent call last):
        ValueError: The layer must be built before `init_cache`: call it once. Received: ...
    """
    if not layer.built:
        raise ValueError(f"The layer must be built before `{what}`: call it once. Received: {layer.name}, not built")


def start_position(start_index: Any) -> Any:
    """The position of the first token, in the dtype of positions.

    Args:
        start_index: An integer, or a scalar tensor that holds one.

    Returns:
        A Python integer, or a scalar int32 tensor.

    Raises:
        TypeError: Anything else.
        ValueError: A negative number, where that is known, or a tensor that is no scalar.

    Example:
        >>> start_position(3)
        3
    """
    if isinstance(start_index, numbers.Integral) and not isinstance(start_index, bool):
        start_index = int(start_index)
    else:
        dtype = getattr(start_index, "dtype", None)
        is_other = dtype is not None and "int" not in keras.backend.standardize_dtype(dtype)
        if is_other or start_index is None or isinstance(start_index, str | bool | float | list | tuple):
            raise TypeError(f"`start_index` is an integer. Received: start_index={start_index!r}")
        if dtype is None:
            return start_index  # a size that a program which is being exported does not know yet
        if len(start_index.shape):
            raise ValueError(
                "`start_index` is one position for all rows, a scalar. "
                f"Received: start_index.shape={tuple(start_index.shape)}"
            )
        start_index = ops.cast(start_index, "int32")
    known = concrete_integer(start_index)
    if known is not None and known < 0:
        raise ValueError(f"`start_index` counts from 0. Received: start_index={known}")
    return start_index


def check_batches_and_lengths(query_shape: Any, value_shape: Any, key_shape: Any) -> None:
    """Refuses a query, value and key that do not fit together. Sizes that are not known yet are not looked at.

    Args:
        query_shape: (B, …, M).
        value_shape: (B, …, M).
        key_shape: (B, …, M), or None.

    Raises:
        ValueError: A batch or a length differs.
    """
    check_same("query", query_shape[:1], "value", value_shape[:1], "batch")
    if key_shape is not None:
        what = "batch and length, a key for each value: all sizes but the last must be equal"
        check_same("key", key_shape[:-1], "value", value_shape[:-1], what)


def check_same(name: str, shape: Any, other_name: str, other: Any, what: str) -> None:
    """Refuses two shapes that differ. Sizes that are not known yet are not looked at.

    Args:
        name: Of what has the first shape, for the message.
        shape: A shape.
        other_name: Of what has the second shape.
        other: Another of the same rank.
        what: The meaning of the axes.

    Raises:
        ValueError: A size differs.

    Example:
        >>> check_same("query", (2, None), "value", (2, 3), "batch and length")
    """
    if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(shape, other, strict=True)):
        raise ValueError(
            f"`{name}` and `{other_name}` must have the same {what}. "
            f"Received: {tuple(shape)} of {name}, {tuple(other)} of {other_name}"
        )
