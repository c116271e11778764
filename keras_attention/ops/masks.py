"""Boolean attention masks, True = attend.

Shapes: B batch, T query length, S key length, H heads.
"""

from typing import Any

import keras
from keras import ops

from keras_attention.ops.mask_values import as_mask


def causal_mask(query_length: Any, key_length: Any, offset: Any = 0) -> Any:
    """Lets query position i, standing at `offset + i`, see the keys up to its own position.

    The offset is the number of keys that were there before the first query (the length of a cache),
    so that one step of cached decoding (T = 1) sees all of them.

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
    """Lets a query see the keys at a distance below `window`, before and after its own position.

    Args:
        query_length: T, an integer or a scalar tensor.
        key_length: S, an integer or a scalar tensor.
        window: 1 for the own position alone.
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
    """Keeps the sequences that are packed into one row apart.

    Args:
        query_segments: Integers (B, T), the same for all tokens of a sequence.
        key_segments: Integers (B, S).

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
    """Positions that start again at 0 with each of the sequences packed into a row.

    Args:
        segment_ids: Integers (B, T); the tokens of a sequence stand together.

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
    """Turns a padding mask of the keys (B, S) into an attention mask (B, 1, 1, S).

    Args:
        padding_mask: Boolean (B, S), True at real tokens.
        name: What the caller calls it, for the message.

    Returns:
        The same mask, to be broadcast over heads and queries.

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
    """Turns a padding mask of the queries (B, T) into an attention mask (B, 1, T, 1).

    Args:
        padding_mask: Boolean (B, T), True where the query attends to anything.

    Returns:
        The same mask, to be broadcast over heads and keys.

    Raises:
        TypeError: Floats inside a compiled function, where their values cannot be seen.
        ValueError: A number other than 0 and 1. The mask is not of rank 2.

    Example:
        >>> print(query_mask(keras.ops.ones((3, 5), dtype="bool")).shape)
        (3, 1, 5, 1)
    """
    return ops.swapaxes(key_mask(padding_mask, "query_mask"), 2, 3)


def pair_mask(attention_mask: Any) -> Any:
    """Gives an attention mask (B, T, S) or (B, H, T, S) its head axis.

    Args:
        attention_mask: Boolean, True where the query may see the key; axes of 1 broadcast.

    Returns:
        The mask as (B, H or 1, T, S).

    Raises:
        TypeError: Floats inside a compiled function, where their values cannot be seen.
        ValueError: A number other than 0 and 1. Another rank; a (B, S) mask would be taken for (T, S) otherwise.

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
    """Gives an attention mask (T, S) its batch axis, where it cannot be a mask (B, S).

    Args:
        attention_mask: A mask of any rank.
        batch: B.
        queries: T.
        keys: S.

    Returns:
        (1, T, S) if the mask is (T, S) and B is another number than T; else the same.

    Example:
        >>> print(same_pairs_for_all(keras.ops.ones((5, 7)), batch=2, queries=5, keys=7).shape)
        (1, 5, 7)
    """
    is_one = isinstance(queries, int) and isinstance(keys, int) and tuple(attention_mask.shape) == (queries, keys)
    return attention_mask[None] if is_one and (batch != queries or batch == 1) else attention_mask


def combine_masks(*masks: Any) -> Any:
    """A pair is attended to where every given mask allows it.

    Args:
        *masks: Masks that broadcast together; None counts as all True.

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
    """Refuses a mask that does not have the sizes of the inputs.

    Args:
        mask: A tensor.
        name: What the caller calls it, for the message.
        broadcast: Whether an axis of size 1 fits too.
        **sizes: What each of its last axes stands for and the size it should have. Sizes that are not known yet
            are not looked at.

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
    """Refuses segment ids of other sizes than those of the inputs.

    Args:
        ids: Integers (B, T).
        name: What they are, for the message.
        batch: B.
        length: T.

    Raises:
        TypeError: Numbers that are not integers.
        ValueError: Another rank, or a size differs.

    Example:
        >>> check_segments_fit(keras.ops.array([[1, 1, 2]]), "segment_ids", batch=1, length=3)
    """
    check_mask_fits(_segments(ids), name, batch=batch, length=length)


def _segments(ids: Any) -> Any:
    ids = ops.convert_to_tensor(ids)
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if "int" not in dtype:
        raise TypeError(f"Segment ids are integers, one number for each packed sequence. Received: dtype={dtype}")
    if len(ids.shape) != 2:
        raise ValueError(f"Segment ids have shape (batch, length). Received: shape={tuple(ids.shape)}")
    return ops.cast(ids, "int32")
