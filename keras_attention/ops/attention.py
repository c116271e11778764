"""Scaled dot-product attention as a pure function of tensors."""

from collections.abc import Callable
from typing import Any

from keras import ops


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any]:
    """Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V, for each head on its own.

    The query is scaled before the product, which therefore stays in the range of float16, and the
    softmax is taken in float32. A row whose keys are all masked has zero weights and a zero output.

    Args:
        query: Q, (B, H, T, D).
        key: K, (B, H, S, D).
        value: V, (B, H, S, E).
        mask: Boolean, broadcastable to (B, H, T, S), True = attend.
        dropout: Applied to the weights, as in training.

    Returns:
        The output (B, H, T, E) and the weights (B, H, T, S) before dropout.

    Example:
        >>> q, k, v = keras.ops.ones((2, 3, 5, 7)), keras.ops.ones((2, 3, 11, 7)), keras.ops.ones((2, 3, 11, 13))
        >>> output, weights = dot_product_attention(q, k, v)
        >>> print(output.shape, weights.shape)
        (2, 3, 5, 13) (2, 3, 5, 11)

    Source: Vaswani et al. 2017, section 3.2.1, equation 1.
    """
    query = query * ops.cast(key.shape[-1] ** -0.5, query.dtype)
    logits = ops.einsum("bhtd,bhsd->bhts", query, key)  # (B, H, T, S)
    weights = masked_softmax(ops.cast(logits, "float32"), mask)  # (B, H, T, S)
    weights = ops.cast(weights, value.dtype)
    dropped = weights if dropout is None else dropout(weights)
    return ops.einsum("bhts,bhsd->bhtd", dropped, value), weights  # (B, H, T, E)


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
        # A finite stand-in for -inf: a fully masked row must not become 0/0.
        logits = ops.where(mask, logits, ops.cast(-1e30, logits.dtype))
    # Over one key the softmax is 1 whatever the logit, and Keras warns of it.
    weights = ops.ones_like(logits) if logits.shape[-1] == 1 else ops.softmax(logits, axis=-1)
    return weights if mask is None else ops.where(mask, weights, ops.zeros_like(weights))
