"""The weights of encoder and decoder layers for decoding: matrices with the same input are fused.

Shapes: B sentences, K beams, M model width, G heads of keys and values, R query heads that share one of them, D head
width, N keys.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.layers.feed_forward import FeedForward
from keras_attention.layers.normalization import LayerNorm
from keras_attention.ops.normalization import layer_norm


class Matrix(NamedTuple):
    """y = x W + b.

    Attributes:
        kernel: W; in bfloat16 Wᵀ, which is faster to multiply by.
        bias: b, or None.
    """

    kernel: Any
    bias: Any = None

    @classmethod
    def of(cls, kernel: Any, bias: Any, dtype: str) -> "Matrix":
        """Returns the matrix of a kernel W and a bias or None, for products in a dtype."""
        kernel = ops.cast(kernel, dtype)
        return cls(ops.transpose(kernel) if dtype == "bfloat16" else kernel, bias)

    @property
    def dtype(self) -> str:
        """The dtype of the product."""
        return keras.backend.standardize_dtype(self.kernel.dtype)

    def __call__(self, x: Any, dtype: str = "float32") -> Any:
        kernel = ops.transpose(self.kernel) if self.dtype == "bfloat16" else self.kernel
        product = ops.cast(ops.matmul(ops.cast(x, self.dtype), kernel), dtype)
        return product if self.bias is None else product + ops.cast(self.bias, dtype)


# Makes a matrix of a kernel W, a bias or None, and a name: the path of the trained kernels in it.
MatrixOf = Callable[[Any, Any, str], Matrix]


class FusedAttention(NamedTuple):
    """The matrices of an attention layer; those with the same input are fused.

    Attributes:
        inputs: Projection to queries, keys and values, or only to queries in cross-attention.
        memory: Projection to keys and values in cross-attention.
        output: Projection back to the width of the model.
        heads: Number of heads of keys and values (G).
        group_size: Number of query heads for each of them (R).
        head_dim: Width of a head (D). Keys and values share a tensor, so the narrower of them are padded with zeros.
        key_dim: Width of the queries and keys without padding.
        position: Positions that rotate queries and keys, or None.
    """

    inputs: Matrix
    memory: Matrix | None
    output: Matrix
    heads: int
    group_size: int
    head_dim: int
    key_dim: int
    position: Any

    @classmethod
    def of(cls, layer: Any, matrix: MatrixOf, memory: bool) -> "FusedAttention":
        """Returns the matrices of a built `MultiHeadAttention`, that of the queries scaled by 1/√d_k.

        With `memory`, keys and values come from the encoder.
        """
        key_dim, value_dim = (projection.kernel.shape[-1] for projection in (layer.key_dense, layer.value_dense))
        head_dim = max(key_dim, value_dim)
        query, key, value = (
            _flatten(projection, head_dim, scale)
            for projection, scale in (
                (layer.query_dense, key_dim**-0.5),
                (layer.key_dense, 1.0),
                (layer.value_dense, 1.0),
            )
        )
        groups, size = layer.num_kv_heads, layer.num_heads // layer.num_kv_heads
        kernel, bias = query  # (M, G·R·D), (G·R·D,)
        query = _swap(kernel, 1, groups, size), None if bias is None else _swap(bias, 0, groups, size)
        kernel, bias = _flatten(layer.output_dense, head_dim)  # (G·R·D, M), (M,)
        fused = [query] if memory else [query, key, value]
        return cls(
            _fuse(fused, matrix, f"{layer.path}/{'query' if memory else 'query+key+value'}"),
            _fuse([key, value], matrix, f"{layer.path}/key+value") if memory else None,
            _fuse([(_swap(kernel, 0, groups, size), bias)], matrix, layer.output_dense.path),
            groups,
            size,
            head_dim,
            key_dim,
            layer.position,
        )

    def rotated(self, heads: Any, positions: Any) -> Any:
        """Rotates queries and keys (c, B, G, n, D) at positions (n,), or (1,) for all of them."""
        x = self.position.rotate(heads[..., : self.key_dim], positions)
        return x if self.key_dim == self.head_dim else ops.concatenate([x, heads[..., self.key_dim :]], axis=-1)

    def heads_of(self, rows: Any, sentences: Any, length: Any) -> Any:
        """Splits fused rows (B·n, c·G·D), such as R queries, keys and values, into (c, B, G, n, D)."""
        fused = rows.shape[-1] // (self.heads * self.head_dim)
        vectors = ops.reshape(rows, (-1, self.head_dim))  # (B·n·c·G, D)
        vectors = _permute(vectors, (sentences, length, fused, self.heads), (2, 0, 3, 1))
        return ops.reshape(vectors, (fused, sentences, self.heads, length, self.head_dim))

    def pair_of(self, cache: Any) -> Any:
        """Joins the keys and values of a cache, (2, B, G, n, D)."""
        return ops.stack([_pad(x, 3, self.head_dim) for x in (cache.key, cache.value)])

    def attend(
        self, attention: Callable[..., Any], queries: Any, memory: Sequence[Any], bias: Any, sentences: Any, beams: Any
    ) -> Any:
        """Projects the output of `cached_attention`, softmax(Q Kᵀ + bias) V, to (B·K, M), for queries (R, B, G, K, D).

        The R queries of a head are rows of one matrix, so that it reads the keys once.
        """
        size, _, heads, _, head_dim = queries.shape
        vectors = _permute(ops.reshape(queries, (-1, head_dim)), (size, sentences, heads, beams), (1, 2, 0, 3))
        queries = ops.reshape(vectors, (sentences, heads, size * beams, head_dim))
        context = attention(queries, memory, bias)  # (B, G, R·K, D)
        vectors = ops.reshape(context, (-1, head_dim))  # (B·G·R·K, D)
        vectors = _permute(vectors, (sentences, heads, size, beams), (0, 3, 2, 1))  # (B·K·R·G, D)
        return self.output(ops.reshape(vectors, (-1, size * heads * head_dim)))


class FusedLayer:
    """The attention matrices, norms and feed-forward network of a built `EncoderLayer` or `DecoderLayer`."""

    def __init__(self, layer: Any, matrix: MatrixOf):
        self.self_attention = FusedAttention.of(layer.self_attention, matrix, memory=False)
        self.self_attention_norm = norm_function(layer.self_attention_norm)
        self.cross_attention = None
        if getattr(layer, "cross_attention", None) is not None:
            self.cross_attention = FusedAttention.of(layer.cross_attention, matrix, memory=True)
            self.cross_attention_norm = norm_function(layer.cross_attention_norm)
        self.feed_forward = _feed_forward(layer.feed_forward, matrix)
        self.feed_forward_norm = norm_function(layer.feed_forward_norm)


class FusedStack:
    """The fused layers of a built `Encoder` or `Decoder`, and its last norm."""

    def __init__(self, stack: Any, matrix: MatrixOf):
        self.layers = [FusedLayer(layer, matrix) for layer in stack.layers]
        self.first_norm = stack.normalize_first
        self.final_norm = None if stack.final_norm is None else norm_function(stack.final_norm)

    def pre_norm(self, norm: Callable[[Any], Any], x: Any) -> Any:
        """Normalizes the input of a sub-layer, where the norms come first."""
        return norm(x) if self.first_norm else x

    def add_and_norm(self, norm: Callable[[Any], Any], x: Any, y: Any) -> Any:
        """Adds the output y of a sub-layer to its input x, and normalizes the sum, where the norms come last."""
        return x + y if self.first_norm else norm(x + y)

    def last_norm(self, x: Any) -> Any:
        """Normalizes the output of the last layer, if the stack does."""
        return x if self.final_norm is None else self.final_norm(x)


def _permute(vectors: Any, shape: tuple[Any, ...], order: tuple[int, ...]) -> Any:
    """Transposes the leading axes, of this shape, of vectors (N, D).

    On a CPU, for few vectors, a gather is faster than TensorFlow's transpose.
    """
    longer = [axis for axis in order if not (isinstance(shape[axis], int) and shape[axis] == 1)]
    if longer == sorted(longer):  # no axis moves
        return vectors
    rows = ops.arange(math.prod(shape), dtype="int32")
    return ops.take(vectors, ops.reshape(ops.transpose(ops.reshape(rows, shape), order), (-1,)), axis=0)


def _flatten(projection: Any, head_dim: int, scale: float = 1.0) -> tuple[Any, Any]:
    """Returns the kernel of a projection as a matrix, and its bias as a vector, for heads padded to a width."""
    kernel, bias = projection.kernel, projection.bias  # (M, H, D) and (H, D), or (H, D, M) and (M,)
    if projection.input_axes == 1:
        kernel, bias = _pad(kernel, 2, head_dim), None if bias is None else _pad(bias, 1, head_dim)
        inputs = kernel.shape[0]
    else:
        kernel = _pad(kernel, 1, head_dim)
        inputs = kernel.shape[0] * head_dim
    kernel = ops.reshape(kernel, (inputs, -1)) * scale
    return kernel, None if bias is None else ops.reshape(bias, (-1,)) * scale


def _swap(x: Any, axis: int, groups: int, size: int) -> Any:
    """Reorders the heads of an axis (…, G·R·D, …) to (…, R·G·D, …)."""
    if size == 1:
        return x
    shape = x.shape
    x = ops.reshape(x, (*shape[:axis], groups, size, -1, *shape[axis + 1 :]))
    return ops.reshape(ops.swapaxes(x, axis, axis + 1), shape)


def _pad(x: Any, axis: int, size: int) -> Any:
    """Appends zeros to an axis up to a size."""
    missing = size - x.shape[axis]
    return ops.pad(x, [(0, missing if each == axis else 0) for each in range(len(x.shape))]) if missing else x


def _fuse(matrices: list[tuple[Any, Any]], matrix: MatrixOf, name: str) -> Matrix:
    """Returns one matrix for several kernels and biases with the same input."""
    kernels, biases = zip(*matrices, strict=True)
    bias = None if biases[0] is None else ops.concatenate(biases)
    return matrix(ops.concatenate(kernels, axis=1), bias, name)


def norm_function(layer: Any) -> Callable[[Any], Any]:
    """Returns a built normalization as a function of vectors (…, M), in float32."""

    # Read at each call: to carry a tensor through a loop takes TensorFlow three operations, to read a variable one.
    def normalize(x: Any) -> Any:
        if not isinstance(layer, LayerNorm):
            return ops.rms_normalization(x, ops.cast(layer.scale, "float32"), axis=-1, epsilon=layer.epsilon)
        return layer_norm(x, ops.cast(layer.gamma, "float32"), ops.cast(layer.beta, "float32"), layer.epsilon)

    return normalize


def _feed_forward(layer: FeedForward, matrix: MatrixOf) -> Callable[[Any], Any]:
    """Returns a built `FeedForward` as a function of vectors (…, M)."""
    inner, gate, output = (
        dense and matrix(ops.convert_to_tensor(dense.kernel), dense.bias, dense.path)
        for dense in (layer.intermediate_dense, layer.gate_dense, layer.output_dense)
    )
    activation = layer.intermediate_dense.activation

    def feed_forward(x: Any) -> Any:
        hidden = activation(inner(x))
        return output(hidden if gate is None else hidden * gate(x))

    return feed_forward
