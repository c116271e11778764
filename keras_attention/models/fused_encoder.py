"""The encoder with fused weights, for decoding.

Shapes: B sentences, S source length, M model width, G heads of keys and values, R query heads that share one of them,
D head width.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_attention.models.fused_weights import FusedStack
from keras_attention.ops.attention import MASKED_SCORE, cached_attention


def fused_encode(
    stack: FusedStack, x: Any, mask: Any, dtype: str = "float32", attention: Callable[..., Any] = cached_attention
) -> Any:
    """Runs the fused layers of an `Encoder` on embedded sources (B, S, M) with a padding mask (B, S).

    Keys, values and queries have the given dtype. Returns the memory (B, S, M), in float32.

    Source: Vaswani et al. 2017, section 3.1.
    """
    sentences, length, width = ops.shape(x)
    x = ops.cast(ops.reshape(x, (sentences * length, width)), "float32")  # (B·S, M)
    bias = ops.where(mask, 0.0, MASKED_SCORE)[:, None]  # (B, 1, S)
    for layer in stack.layers:
        matrices, norm = layer.self_attention, layer.self_attention_norm
        fused = matrices.inputs(stack.pre_norm(norm, x), dtype)  # (B·S, (R + 2)·G·D)
        heads = matrices.heads_of(fused, sentences, length)  # (R + 2, B, G, S, D)
        if matrices.position is not None:
            positions = ops.arange(length, dtype="int32")
            heads = ops.concatenate([matrices.rotated(heads[:-1], positions), heads[-1:]])
        queries, memory = heads[: matrices.group_size], heads[matrices.group_size :]
        x = stack.add_and_norm(norm, x, matrices.attend(attention, queries, (memory,), bias, sentences, length))
        norm = layer.feed_forward_norm
        x = stack.add_and_norm(norm, x, layer.feed_forward(stack.pre_norm(norm, x)))
    return ops.reshape(stack.last_norm(x), (sentences, length, width))
