"""The weights of a decoder layer, laid out for one token at a time: matrices that meet the same input are one.

Shapes: B sentences, K beams, M model width, H heads, D head width, N keys.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.layers.feed_forward import FeedForward
from keras_attention.ops.normalization import layer_norm


class Matrix(NamedTuple):
    """y = x W + b.

    Attributes:
        kernel: W; in bfloat16 Wᵀ, which is the faster way round there.
        bias: b, or None.
    """

    kernel: Any
    bias: Any = None

    @classmethod
    def of(cls, kernel: Any, bias: Any, dtype: str) -> "Matrix":
        """The matrix in a dtype.

        Args:
            kernel: W.
            bias: b, or None.
            dtype: Of the product.

        Returns:
            The matrix.
        """
        kernel = ops.cast(kernel, dtype)
        return cls(ops.transpose(kernel) if dtype == "bfloat16" else kernel, bias)

    @property
    def dtype(self) -> str:
        """Of the product."""
        return keras.backend.standardize_dtype(self.kernel.dtype)

    def __call__(self, x: Any, dtype: str = "float32") -> Any:
        kernel = ops.transpose(self.kernel) if self.dtype == "bfloat16" else self.kernel
        product = ops.cast(ops.matmul(ops.cast(x, self.dtype), kernel), dtype)
        return product if self.bias is None else product + ops.cast(self.bias, dtype)


class FusedAttention(NamedTuple):
    """The matrices of an attention layer: those that meet the same input are one.

    Attributes:
        inputs: Of queries, keys and values together, or of queries alone.
        memory: Of keys and values together, where they come from elsewhere.
        output: Back to the model's width.
        heads: H.
        head_dim: D.
    """

    inputs: Matrix
    memory: Matrix | None
    output: Matrix
    heads: int
    head_dim: int

    @classmethod
    def of(cls, layer: Any, dtype: str, memory: bool) -> "FusedAttention":
        """The matrices of a layer.

        Args:
            layer: A built `MultiHeadAttention`.
            dtype: Of the matrices.
            memory: Whether its keys and values come from elsewhere.

        Returns:
            The same function, with the scale 1/√D inside the queries' matrix.
        """
        head_dim = layer.query_dense.kernel.shape[-1]
        query, key, value = (
            _flat(projection, scale)
            for projection, scale in (
                (layer.query_dense, head_dim**-0.5),
                (layer.key_dense, 1.0),
                (layer.value_dense, 1.0),
            )
        )
        together = [query] if memory else [query, key, value]
        return cls(
            _joined(together, dtype),
            _joined([key, value], dtype) if memory else None,
            _joined([_flat(layer.output_dense)], dtype),
            layer.num_heads,
            head_dim,
        )

    def heads_of(self, rows: Any, sentences: Any, length: Any) -> Any:
        """Vectors with axes for what was joined and for their heads.

        Args:
            rows: Queries, keys and values side by side, or some of them, (B·n, c·H·D).
            sentences: B.
            length: n.

        Returns:
            (c, B, H, n, D).
        """
        joined = rows.shape[-1] // (self.heads * self.head_dim)
        vectors = ops.reshape(rows, (-1, self.head_dim))  # (B·n·c·H, D)
        vectors = _turned(vectors, (sentences, length, joined, self.heads), (2, 0, 3, 1))
        return ops.reshape(vectors, (joined, sentences, self.heads, length, self.head_dim))

    def attend(self, attention: Callable[..., Any], queries: Any, memory: Sequence[Any], bias: Any) -> Any:
        """softmax(Q Kᵀ + bias) V, and back to the model's width.

        Args:
            attention: What computes `cached_attention`.
            queries: (B, H, K, D), scaled.
            memory: Keys and values (2, B, H, n, D), in one part or in two of N places together.
            bias: (B, K or 1, N).

        Returns:
            (B·K, M).
        """
        context = attention(queries, memory, bias)  # (B, H, K, D)
        vectors = ops.reshape(context, (-1, self.head_dim))  # (B·H·K, D)
        vectors = _turned(vectors, ops.shape(queries)[:3], (0, 2, 1))  # (B·K·H, D)
        return self.output(ops.reshape(vectors, (-1, self.heads * self.head_dim)))


class FusedLayer:
    """One decoder layer: its attention matrices, its norms, its feed-forward network.

    Args:
        layer: A built `DecoderLayer`.
        dtype: Of the matrices.
    """

    def __init__(self, layer: Any, dtype: str):
        self.self_attention = FusedAttention.of(layer.self_attention, dtype, memory=False)
        self.self_attention_norm = joined_norm(layer.self_attention_norm)
        self.cross_attention = None
        if layer.cross_attention is not None:
            self.cross_attention = FusedAttention.of(layer.cross_attention, dtype, memory=True)
            self.cross_attention_norm = joined_norm(layer.cross_attention_norm)
        self.feed_forward = _feed_forward(layer.feed_forward, dtype)
        self.feed_forward_norm = joined_norm(layer.feed_forward_norm)


def _turned(vectors: Any, shape: tuple[Any, ...], order: tuple[int, ...]) -> Any:
    """Vectors (…, D) with their leading axes, of this shape, in another order; as many rows as before.

    Each is copied as a whole, for which TensorFlow takes less time on a CPU than to transpose as few as these.
    """
    longer = [axis for axis in order if not (isinstance(shape[axis], int) and shape[axis] == 1)]
    if longer == sorted(longer):  # nothing moves
        return vectors
    places = ops.arange(math.prod(shape), dtype="int32")
    return ops.take(vectors, ops.reshape(ops.transpose(ops.reshape(places, shape), order), (-1,)), axis=0)


def _flat(projection: Any, scale: float = 1.0) -> tuple[Any, Any]:
    """The kernel of a projection with one axis for what comes in and one for what goes out, and its bias."""
    inputs = math.prod(projection.kernel.shape[: projection.input_axes])
    kernel = ops.reshape(projection.kernel, (inputs, -1)) * scale
    return kernel, None if projection.bias is None else ops.reshape(projection.bias, (-1,)) * scale


def _joined(flat: list[tuple[Any, Any]], dtype: str) -> Matrix:
    """One matrix for several that meet the same input."""
    kernels, biases = zip(*flat, strict=True)
    bias = None if biases[0] is None else ops.concatenate(biases)
    return Matrix.of(ops.concatenate(kernels, axis=1), bias, dtype)


def joined_norm(layer: Any) -> Callable[[Any], Any]:
    """A layer normalisation as a function.

    Args:
        layer: A built `LayerNorm`.

    Returns:
        A function of vectors (…, M), in float32.
    """
    gamma, beta = (ops.cast(value, "float32") for value in (layer.gamma, layer.beta))
    return lambda x: layer_norm(x, gamma, beta, layer.epsilon)


def _feed_forward(layer: FeedForward, dtype: str) -> Callable[[Any], Any]:
    inner, gate, output = (
        dense and Matrix.of(ops.convert_to_tensor(dense.kernel), dense.bias, dtype)
        for dense in (layer.intermediate_dense, layer.gate_dense, layer.output_dense)
    )
    activation = layer.intermediate_dense.activation

    def feed_forward(x: Any) -> Any:
        hidden = activation(inner(x))
        return output(hidden if gate is None else hidden * gate(x))

    return feed_forward
