"""Boolean attention masks, True = attend: making, checking and combining them.

Shapes: B batch, T query length, S key length, H heads.
"""

from typing import Any

import keras
from keras import ops


def causal_mask(query_length: Any, key_length: Any, offset: Any = 0) -> Any:
    """Causal mask: the query at position `offset + i` attends to the keys up to that position.

    The offset is the number of keys before the first query, such as the length of a cache, so that one step of
    cached decoding (T = 1) attends to all of them.

    Args:
        query_length: T, an integer or a scalar tensor.
        key_length: S, an integer or a scalar tensor.
        offset: Position of the first query among the keys.

    Returns:
        A mask of shape (T, S).

    Example:
        >>> from keras_attention.ops import causal_mask
        >>> keras.ops.convert_to_numpy(causal_mask(2, 4, offset=2)).astype(int)
        array([[1, 1, 1, 0],
               [1, 1, 1, 1]])

    Source: Vaswani et al. 2017, section 3.2.3.
    """
    queries = ops.arange(query_length, dtype="int32")[:, None] + offset  # (T, 1)
    keys = ops.arange(key_length, dtype="int32")[None, :]  # (1, S)
    return keys <= queries  # (T, S)


def window_mask(query_length: Any, key_length: Any, window: int, offset: Any = 0) -> Any:
    """Sliding window: a query attends to the keys at a distance below `window`, before and after its own position.

    Args:
        query_length: T, an integer or a scalar tensor.
        key_length: S, an integer or a scalar tensor.
        window: Size of the window to each side; 1 is only the own position.
        offset: Position of the first query among the keys.

    Returns:
        A mask of shape (T, S).

    Example:
        >>> keras.ops.convert_to_numpy(window_mask(3, 3, window=2)).astype(int)
        array([[1, 1, 0],
               [1, 1, 1],
               [0, 1, 1]])

    Source: Vaswani et al. 2017, section 4, restricted self-attention.
    """
    queries = ops.arange(query_length, dtype="int32")[:, None] + offset  # (T, 1)
    keys = ops.arange(key_length, dtype="int32")[None, :]  # (1, S)
    return ops.abs(keys - queries) < window  # (T, S)


def segment_mask(query_segments: Any, key_segments: Any) -> Any:
    """Mask of packed sequences: a query attends only to the keys of its own sequence.

    Args:
        query_segments: Segment ids of the queries, integers (B, T), one number for each packed sequence.
        key_segments: Segment ids of the keys, integers (B, S).

    Returns:
        A mask of shape (B, 1, T, S).

    Raises:
        TypeError: Numbers that are not integers.
        ValueError: Another rank.

    Example:
        >>> ids = keras.ops.array([[1, 1, 2]])
        >>> keras.ops.convert_to_numpy(segment_mask(ids, ids))[0, 0].astype(int)
        array([[1, 1, 0],
               [1, 1, 0],
               [0, 0, 1]])
    """
    queries, keys = _segments(query_segments), _segments(key_segments)
    return ops.equal(queries[:, None, :, None], keys[:, None, None, :])


def segment_positions(segment_ids: Any) -> Any:
    """Positions in packed rows, which restart at 0 with each sequence.

    Args:
        segment_ids: Integers (B, T); the tokens of a sequence are contiguous.

    Returns:
        Integers (B, T).

    Raises:
        TypeError: Numbers that are not integers.
        ValueError: Another rank.

    Example:
        >>> keras.ops.convert_to_numpy(segment_positions([[7, 7, 7, 8, 8, 0]])).tolist()
        [[0, 1, 2, 0, 1, 0]]
    """
    ids = _segments(segment_ids)
    indices = ops.arange(ops.shape(ids)[1], dtype="int32")[None, :]  # (1, T)
    starts = ops.not_equal(ids[:, 1:], ids[:, :-1])
    starts = ops.concatenate([ops.ones_like(ids[:, :1], dtype="bool"), starts], axis=1)  # (B, T)
    segments = ops.cumsum(ops.cast(starts, "int32"), axis=1) - 1  # (B, T), 0 for the first of a row
    firsts = ops.sort(ops.where(starts, indices, 2**31 - 1), axis=1)  # (B, T), where each segment starts
    return indices - ops.take_along_axis(firsts, segments, axis=1)


def key_mask(padding_mask: Any, name: str = "padding_mask") -> Any:
    """Converts a padding mask of the keys (B, S) to an attention mask (B, 1, 1, S).

    Args:
        padding_mask: Boolean (B, S), True at real tokens.
        name: Name of the argument, for the error message.

    Returns:
        The mask, which broadcasts over heads and queries.

    Raises:
        TypeError: Floats inside a compiled function, where their values cannot be seen.
        ValueError: A number other than 0 and 1. The mask is not of rank 2.

    Example:
        >>> print(key_mask(keras.ops.ones((3, 5), dtype="bool")).shape)
        (3, 1, 1, 5)
    """
    padding_mask = as_mask(padding_mask, name)
    if len(padding_mask.shape) != 2:
        raise ValueError(
            f"`{name}` has shape (batch, length), True at real tokens; a mask over pairs of positions goes to "
            f"`attention_mask`. Received: {name}.shape={tuple(padding_mask.shape)}"
        )
    return padding_mask[:, None, None, :]


def query_mask(padding_mask: Any) -> Any:
    """Converts a padding mask of the queries (B, T) to an attention mask (B, 1, T, 1).

    Args:
        padding_mask: Boolean (B, T), False where the query attends to nothing.

    Returns:
        The mask, which broadcasts over heads and keys.

    Raises:
        TypeError: Floats inside a compiled function, where their values cannot be seen.
        ValueError: A number other than 0 and 1. The mask is not of rank 2.

    Example:
        >>> print(query_mask(keras.ops.ones((3, 5), dtype="bool")).shape)
        (3, 1, 5, 1)
    """
    return ops.swapaxes(key_mask(padding_mask, "query_mask"), 2, 3)


def pair_mask(attention_mask: Any) -> Any:
    """Converts an attention mask (B, T, S) or (B, H, T, S) to four axes.

    Args:
        attention_mask: Boolean, True where the query attends to the key; axes of size 1 broadcast.

    Returns:
        The mask as (B, H or 1, T, S).

    Raises:
        TypeError: Floats inside a compiled function, where their values cannot be seen.
        ValueError: A number other than 0 and 1. Another rank, such as a mask (B, S), which would broadcast as (T, S).

    Example:
        >>> print(pair_mask(keras.ops.ones((3, 5, 7), dtype="bool")).shape)
        (3, 1, 5, 7)
    """
    attention_mask = as_mask(attention_mask, "attention_mask")
    rank = len(attention_mask.shape)
    if rank == 3:
        return attention_mask[:, None, :, :]
    if rank == 4:
        return attention_mask
    raise ValueError(
        "`attention_mask` has shape (batch, queries, keys) or (batch, heads, queries, keys); write a (queries, keys) "
        "mask, which layers take only where it cannot be a mask of a batch, as mask[None], and give a (batch, keys) "
        "mask as the padding mask. "
        f"Received: attention_mask.shape={tuple(attention_mask.shape)}"
    )


def same_pairs_for_all(attention_mask: Any, batch: Any, queries: Any, keys: Any) -> Any:
    """Adds the batch axis to a mask (T, S), where B differs from T so that it cannot be a mask (B, S)."""
    is_one = isinstance(queries, int) and isinstance(keys, int) and tuple(attention_mask.shape) == (queries, keys)
    return attention_mask[None] if is_one and (batch != queries or batch == 1) else attention_mask


def combine_masks(*masks: Any) -> Any:
    """Combines masks with a logical and.

    Args:
        *masks: Masks that broadcast against each other; None allows everything.

    Returns:
        Their conjunction, or None where all are None.

    Example:
        >>> combine_masks(None, None) is None
        True
    """
    combined = None
    for mask in masks:
        if mask is not None:
            dtype = getattr(mask, "dtype", "float32")
            mask = mask if keras.backend.standardize_dtype(dtype) == "bool" else as_mask(mask, "mask")
            combined = mask if combined is None else ops.logical_and(combined, mask)
    return combined


def check_mask_fits(mask: Any, name: str, broadcast: bool = False, **sizes: Any) -> None:
    """Checks that a mask has the sizes of the inputs.

    Args:
        mask: A tensor.
        name: Name of the argument, for the error message.
        broadcast: Whether an axis may have size 1 instead.
        **sizes: Name and expected size of each of its last axes. Unknown sizes are not checked.

    Raises:
        ValueError: A size differs.

    Example:
        >>> check_mask_fits(keras.ops.ones((2, 5)), "padding_mask", batch=2, length=5)
    """
    for given, size in zip(mask.shape[-len(sizes) :], sizes.values(), strict=True):
        known = isinstance(given, int) and isinstance(size, int)
        if known and given != size and not (broadcast and given == 1):
            expected = ", ".join(f"{what} {size}" for what, size in sizes.items() if size != 1)
            same = " with 1 where it is the same for all" if broadcast or 1 in sizes.values() else ""
            raise ValueError(
                f"`{name}` must fit the inputs: {expected}. "
                f"Received: {name} of {tuple(mask.shape)}, its last axes as ({', '.join(sizes)}){same}"
            )


def check_segments_fit(ids: Any, name: str, batch: Any, length: Any) -> None:
    """Checks that segment ids are integers with the batch size and length of the inputs.

    Args:
        ids: Integers (B, T).
        name: Description of the ids, for the error message.
        batch: B.
        length: T.

    Raises:
        TypeError: Numbers that are not integers.
        ValueError: Another rank, or a size differs.

    Example:
        >>> check_segments_fit(keras.ops.array([[1, 1, 2]]), "segment_ids", batch=1, length=3)
    """
    check_mask_fits(_segments(ids), name, batch=batch, length=length)


def as_mask(mask: Any, name: str) -> Any:
    """Converts a mask of booleans, or of numbers that are all 0 or 1, to boolean.

    Args:
        mask: A tensor or array, True or 1 = attend.
        name: Name of the argument, for the error message.

    Returns:
        A boolean tensor.

    Raises:
        TypeError: Text; or floats inside a compiled function, where their values cannot be seen.
        ValueError: A number other than 0 and 1, such as those of an additive mask. Inside a compiled function
            TensorFlow raises this for integers when it runs, and JAX treats every other integer as True.

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


def checked_masks(**masks: Any) -> tuple[list[Any], Any]:
    """Converts named masks to boolean; `valid` is a scalar for `nan_unless`, or None where no check is left to run."""
    checked, valid = [], None
    for name, mask in masks.items():
        if mask is not None:
            mask = ops.convert_to_tensor(mask)
            is_valid = _are_zeros_and_ones(mask, keras.backend.standardize_dtype(mask.dtype), name)
            if is_valid is not None:
                valid = is_valid if valid is None else ops.logical_and(valid, is_valid)
            mask = ops.cast(mask, "bool")
        checked.append(mask)
    return checked, valid


def nan_unless(valid: Any, x: Any) -> Any:
    """Returns x, or NaN where a mask was invalid and a compiled program could not raise."""
    return x if valid is None else ops.where(valid, x, float("nan"))


def _segments(ids: Any) -> Any:
    ids = ops.convert_to_tensor(ids)
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if "int" not in dtype:
        raise TypeError(f"Segment ids are integers, one number for each packed sequence. Received: dtype={dtype}")
    if len(ids.shape) != 2:
        raise ValueError(f"Segment ids have shape (batch, length). Received: shape={tuple(ids.shape)}")
    return ops.cast(ids, "int32")


def _are_zeros_and_ones(mask: Any, dtype: str, name: str) -> Any:
    """Returns None for masks of 0 and 1, a scalar boolean while a function is traced, and raises for others."""
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
    """The value of a scalar boolean, or None while a function is traced."""
    if getattr(value, "is_meta", False):  # a torch tensor without values, from shape inference
        return None
    try:
        return bool(value)
    except TypeError:
        return None


def _assert_in_graph(valid: Any, message: str) -> None:
    """Adds an assertion to a TensorFlow graph; XLA drops assertions, and other backends have none."""
    if keras.config.backend() == "tensorflow" and not isinstance(valid, keras.KerasTensor):
        import tensorflow as tf

        tf.debugging.Assert(valid, [message])
