"""Scaled dot-product attention as a pure function of tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_attention.ops.masks import as_mask

MASKED_SCORE = -1e30  # finite instead of -inf, so that a fully masked row does not become 0/0


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    bias: Any = None,
    dropout: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any]:
    """Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V, for each head separately.

    The query is scaled before the product, which then stays in the range of float16, and the softmax is computed in
    float32. A row whose keys are all masked has zero weights and a zero output.

    Args:
        query: Q, (B, H, T, D).
        key: K, (B, G, S, D); G divides H, and H/G consecutive query heads share a head of keys and values.
        value: V, (B, G, S, E).
        mask: Boolean, broadcastable to (B, H, T, S), True = attend.
        bias: Added to the scaled scores, broadcastable to (B, H, T, S).
        dropout: Function applied to the weights, such as a dropout layer in training.

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
    )  # a cast of the scalar would round it to float32 first
    logits = _for_each_head(_scores, query, key)  # (B, H, T, S)
    logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
    if bias is not None:
        logits = logits + ops.cast(bias, logits.dtype)
    weights = ops.cast(masked_softmax(logits, mask), value.dtype)  # (B, H, T, S)
    dropped = weights if dropout is None else dropout(weights)
    return _for_each_head(ops.matmul, dropped, value), weights  # (B, H, T, E)


def fused_attention(
    query: Any, key: Any, value: Any, mask: Any = None, bias: Any = None, flash_attention: bool | None = True
) -> Any:
    """The output of `dot_product_attention` from the backend's flash attention kernel, which never stores the weights.

    Args:
        query: Q, (B, H, T, D).
        key: K, (B, G, S, D).
        value: V, (B, G, S, D).
        mask: Boolean, broadcastable to (B, H, T, S), True = attend.
        bias: Added to the scaled scores, broadcastable to (B, H, T, S).
        flash_attention: True for an error where the backend cannot use a flash kernel; None for another kernel of the
            backend there.

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
    heads, groups, pairs = query.shape[1], key.shape[1], (query.shape[2], key.shape[2])
    if groups < heads:
        key, value = (ops.repeat(x, heads // groups, axis=1) for x in (key, value))
    bias = None if bias is None else _for_all_pairs(bias, pairs)
    has_keys = None
    if mask is not None:
        mask = _for_all_pairs(as_mask(mask, "mask"), pairs)
        has_keys = ops.any(mask, axis=-1, keepdims=True)
        # A row without keys would be 0/0: it attends to all, and its output is set to zero below.
        mask = ops.logical_or(mask, ops.logical_not(has_keys))
        if bias is not None:  # torch takes one of them
            bias, mask = ops.where(mask, bias, ops.cast(MASKED_SCORE, bias.dtype)), None
    output = ops.dot_product_attention(
        *(ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value)),
        bias=bias,
        mask=mask,
        flash_attention=flash_attention,
    )
    output = ops.transpose(output, (0, 2, 1, 3))  # (B, H, T, D)
    return output if has_keys is None else ops.where(has_keys, output, ops.zeros_like(output))


def _for_all_pairs(x: Any, pairs: tuple[int, int]) -> Any:
    """Repeats x, broadcastable to (B, H, T, S), for all pairs of T and S, which cuDNN does not do."""
    x = ops.reshape(x, (*(1,) * (4 - len(x.shape)), *x.shape))
    return ops.broadcast_to(x, (*x.shape[:2], *pairs))


def has_flash_kernel(query: Any, key: Any, value: Any) -> bool:
    """Whether the device has a flash kernel for these heads, (B, H, T, D), (B, G, S, D) and (B, G, S, E).

    GPUs have one in half precision, for heads of equal widths, multiples of 8 up to 128; with a mask, for even lengths.
    """
    widths = {x.shape[-1] for x in (query, key, value)}
    width, lengths = widths.pop(), (query.shape[2], key.shape[2])
    return (
        is_on_gpu(query)
        and keras.backend.standardize_dtype(query.dtype) in ("float16", "bfloat16")
        and not widths
        and width % 8 == 0
        and width <= 128
        and all(isinstance(length, int) and length % 2 == 0 for length in lengths)
    )


def is_on_gpu(x: Any) -> bool:
    """Whether JAX or torch computes with a tensor, or with an array that becomes one, on a GPU."""
    if keras.config.backend() == "torch":
        return ops.convert_to_tensor(x).device.type == "cuda"
    if keras.config.backend() == "jax":
        import jax

        return jax.default_backend() == "gpu"
    return False


def cached_attention(query: Any, memory: Sequence[Any], bias: Any) -> Any:
    """softmax(Q Kᵀ + bias) V for new tokens, over cached keys and values in one or two parts, without joining them.

    Shapes: query (B, H, K, D), scaled; each part of the memory (2, B, H, n, D), N positions together; bias
    (B, K or 1, N); the output (B, H, K, D), in the dtype of the query, with a softmax in float32.

    Source: Vaswani et al. 2017, section 3.2.1, equation 1.
    """
    scores = [ops.matmul(query, ops.transpose(pair[0], (0, 1, 3, 2))) for pair in memory]  # (B, H, K, n)
    scores = ops.cast(scores[0] if len(memory) == 1 else ops.concatenate(scores, axis=-1), "float32")
    weights = ops.cast(masked_softmax(scores + bias[:, None]), query.dtype)  # (B, H, K, N)
    if len(memory) == 1:
        return ops.matmul(weights, memory[0][1])
    older, newer = (pair[1] for pair in memory)
    length = ops.shape(older)[2]
    return ops.matmul(weights[..., :length], older) + ops.matmul(weights[..., length:], newer)


def masked_softmax(logits: Any, mask: Any = None) -> Any:
    """Softmax over the allowed entries of the last axis; zeros where none is allowed.

    Args:
        logits: Float tensor (…, S).
        mask: Boolean, broadcastable to the logits, True = allowed.

    Returns:
        Weights (…, S); masked entries are exactly zero, and so are their gradients.

    Example:
        >>> logits, mask = keras.ops.zeros((2, 2)), keras.ops.array([[True, False], [False, False]])
        >>> keras.ops.convert_to_numpy(masked_softmax(logits, mask))
        array([[1., 0.],
               [0., 0.]], dtype=float32)
    """
    if mask is not None:
        mask = as_mask(mask, "mask")
        logits = ops.where(mask, logits, ops.cast(MASKED_SCORE, logits.dtype))
    # The softmax over one key is 1, and Keras warns about it.
    weights = ops.ones_like(logits) if logits.shape[-1] == 1 else ops.softmax(logits, axis=-1)
    return weights if mask is None else ops.where(mask, weights, ops.zeros_like(weights))


def _scores(query: Any, key: Any) -> Any:
    """Q Kᵀ."""
    # Without `optimize`, TensorFlow stores a copy of Kᵀ, and another for the gradient.
    return ops.einsum("bhtd,bhsd->bhts", query, key, optimize="greedy")


def _for_each_head(product: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
    """The product of (B, H, T, ·) and (B, G, S, ·), where H/G consecutive heads share a y."""
    heads, groups = x.shape[1], y.shape[1]
    if groups == heads:
        return product(x, y)
    batch, _, length, width = ops.shape(x)
    rows = ops.reshape(x, (batch, groups, heads // groups * length, width))  # (B, G, H/G·T, ·)
    products = product(rows, y)
    return ops.reshape(products, (batch, heads, length, ops.shape(products)[-1]))
