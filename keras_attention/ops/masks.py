"""Boolean attention masks, True = attend.

Shapes: B batch, T query length, S key length, H heads.
"""

from typing import Any

import keras
from keras import ops


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


def key_mask(padding_mask: Any, name: str = "padding_mask") -> Any:
    """Turns a padding mask of the keys (B, S) into an attention mask (B, 1, 1, S).

    Args:
        padding_mask: Boolean (B, S), True at real tokens.
        name: What the caller calls it, for the message.

    Returns:
        The same mask, to be broadcast over heads and queries.

    Raises:
        TypeError: A float mask: whether it adds or selects cannot be known.
        ValueError: The mask is not of rank 2.

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
        TypeError: A float mask: whether it adds or selects cannot be known.
        ValueError: The mask is not of rank 2.

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
        TypeError: A float mask: whether it adds or selects cannot be known.
        ValueError: Another rank; a (B, S) mask would be taken for (T, S) otherwise.

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
        "`attention_mask` has shape (batch, queries, keys) or (batch, heads, queries, keys); write a "
        "(queries, keys) mask as mask[None], and give a (batch, keys) mask as the padding mask. "
        f"Received: attention_mask.shape={tuple(attention_mask.shape)}"
    )


def as_mask(mask: Any, name: str) -> Any:
    """Converts a boolean or integer mask to boolean and refuses floats.

    Args:
        mask: A tensor or array.
        name: What the caller calls it, for the message.

    Returns:
        A boolean tensor.

    Raises:
        TypeError: A float mask.

    Example:
        >>> keras.ops.convert_to_numpy(as_mask(keras.ops.array([1, 0]), "padding_mask"))
        array([ True, False])
    """
    mask = ops.convert_to_tensor(mask)
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if "float" in dtype:
        raise TypeError(
            f"`{name}` is boolean, True = attend. A float mask may be additive (0 and -inf) or select (1 and 0), "
            f"so it is not taken: compare it first, as in mask > 0. Received: dtype={dtype}"
        )
    return ops.cast(mask, "bool")


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
            combined = mask if combined is None else ops.logical_and(combined, mask)
    return combined
