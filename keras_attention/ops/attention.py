"""Scaled dot-product attention as a pure function of tensors."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_attention.ops.mask_values import as_mask

MASKED_SCORE = -1e30  # finite instead of -inf, so that a fully masked row does not become 0/0


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    bias: Any = None,
    dropout: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any]:
    """Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V, for each head on its own.

    The query is scaled before the product, which therefore stays in the range of float16, and the
    softmax is taken in float32. A row whose keys are all masked has zero weights and a zero output.

    Args:
        query: Q, (B, H, T, D).
        key: K, (B, G, S, D); G divides H, and H/G query heads in a row share a head of keys and values.
        value: V, (B, G, S, E).
        mask: Boolean, broadcastable to (B, H, T, S), True = attend.
        bias: Added to the scaled scores, broadcastable to (B, H, T, S).
        dropout: Applied to the weights, as in training.

    Returns:
        The output (B, H, T, E) and the weights (B, H, T, S) before dropout.

    Example:
        >>> q, k, v = keras.ops.ones((2, 3, 5, 7)), keras.ops.ones((2, 3, 11, 7)), keras.ops.ones((2, 3, 11, 13))
        >>> output, weights = dot_product_attention(q, k, v)
        >>> print(output.shape, weights.shape)
        (2, 3, 5, 13) (2, 3, 5, 11)

    Source: Vaswani et al. 2017, section 3.2.1, equation 1; Ainslie et al. 2023 for G < H.
    """
    query = ops.multiply(
        query, ops.convert_to_tensor(key.shape[-1] ** -0.5, query.dtype)
    )  # a cast would start from float32
    logits = _for_each_head(_scores, query, key)  # (B, H, T, S)
    logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
    if bias is not None:
        logits = logits + ops.cast(bias, logits.dtype)
    weights = ops.cast(masked_softmax(logits, mask), value.dtype)  # (B, H, T, S)
    dropped = weights if dropout is None else dropout(weights)
    return _for_each_head(ops.matmul, dropped, value), weights  # (B, H, T, E)


def fused_attention(query: Any, key: Any, value: Any, mask: Any = None, bias: Any = None) -> Any:
    """The output of `dot_product_attention` from the backend's flash kernel, which never stores the weights.

    Args:
        query: Q, (B, H, T, D).
        key: K, (B, G, S, D).
        value: V, (B, G, S, D).
        mask: Boolean, broadcastable to (B, H, T, S), True = attend.
        bias: Added to the scaled scores, broadcastable to (B, H, T, S).

    Returns:
        The output (B, H, T, D).

    Raises:
        ValueError: The backend is TensorFlow, which has no such kernel.

    Source: Dao et al. 2022 (FlashAttention); `keras.ops.dot_product_attention`.
    """
    if keras.config.backend() == "tensorflow":
        raise ValueError(
            "TensorFlow has no flash kernel: give flash_attention=None, or use JAX or PyTorch on an accelerator. "
            "Received: flash_attention=True, backend=tensorflow"
        )
    heads, groups = query.shape[1], key.shape[1]
    if groups < heads:
        key, value = (ops.repeat(x, heads // groups, axis=1) for x in (key, value))
    mask = None if mask is None else as_mask(mask, "mask")
    some = None if mask is None else ops.any(mask, axis=-1, keepdims=True)
    output = ops.dot_product_attention(
        *(ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value)),
        bias=bias,
        # A row without a key would be 0/0: it attends to all, and what it gets is thrown away.
        mask=None if mask is None else ops.logical_or(mask, ops.logical_not(some)),
        flash_attention=True,
    )
    output = ops.transpose(output, (0, 2, 1, 3))  # (B, H, T, D)
    return output if some is None else ops.where(some, output, ops.zeros_like(output))


def masked_softmax(logits: Any, mask: Any = None) -> Any:
    """Softmax over the last axis among the allowed entries; zeros where none is allowed.

    Args:
        logits: Float tensor (..., S).
        mask: Boolean, broadcastable to the logits, True = allowed.

    Returns:
        Weights of the logits' shape; masked entries are exactly zero, and so are their gradients.

    Example:
        >>> logits, mask = keras.ops.zeros((2, 2)), keras.ops.array([[True, False], [False, False]])
        >>> keras.ops.convert_to_numpy(masked_softmax(logits, mask))
        array([[1., 0.],
               [0., 0.]], dtype=float32)
    """
    if mask is not None:
        mask = as_mask(mask, "mask")
        logits = ops.where(mask, logits, ops.cast(MASKED_SCORE, logits.dtype))
    # Over one key the softmax is 1 whatever the logit, and Keras warns of it.
    weights = ops.ones_like(logits) if logits.shape[-1] == 1 else ops.softmax(logits, axis=-1)
    return weights if mask is None else ops.where(mask, weights, ops.zeros_like(weights))


def _scores(query: Any, key: Any) -> Any:
    """Q Kᵀ."""
    # Without `optimize` Keras has TensorFlow write Kᵀ out, and for the gradient once more.
    return ops.einsum("bhtd,bhsd->bhts", query, key, optimize="greedy")


def _for_each_head(product: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
    """The product of (B, H, T, ·) and (B, G, S, ·): rows of H/G heads, one after the other, meet the same y."""
    heads, groups = x.shape[1], y.shape[1]
    if groups == heads:
        return product(x, y)
    batch, _, length, width = ops.shape(x)
    rows = ops.reshape(x, (batch, groups, heads // groups * length, width))  # (B, G, H/G·T, ·)
    found = product(rows, y)
    return ops.reshape(found, (batch, heads, length, ops.shape(found)[-1]))
