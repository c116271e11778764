"""The decoder one token at a time, with its weights laid out for that.

Shapes: B sentences, K beams, S source length, M model width, H heads of queries, G of keys and values, D head width, t
positions written, N = t·K places of the cache.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.layers.feed_forward import FeedForward
from keras_attention.ops.attention import masked_softmax
from keras_attention.ops.normalization import layer_norm

HIDDEN = -1e30  # added to scores that no query may see; finite, so that a softmax of nothing else is no 0/0


class DecodingState(NamedTuple):
    """What the decoder has written and read so far.

    The keys and values of all beams of a sentence lie side by side and stay where they were written: a beam sees those
    that it descends from. So beams change places without a copy of any key.

    Attributes:
        keys: Of self-attention, for each layer (B, G, N, D).
        values: The same.
        bias: Added to the scores of self-attention, (B, N, K): 0 where a beam sees, else `HIDDEN`.
        memory_keys: Of cross-attention, for each layer (B, G, S, D); none in a language model.
        memory_values: The same, zero at padding.
        memory_bias: Added to the scores of cross-attention, (B, 1, 1, S).
    """

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    bias: Any
    memory_keys: tuple[Any, ...]
    memory_values: tuple[Any, ...]
    memory_bias: Any

    def reordered(self, parents: Any) -> "DecodingState":
        """The state where each beam continues another.

        Args:
            parents: Which (B, K).

        Returns:
            A new state.
        """
        return self._replace(bias=ops.take_along_axis(self.bias, parents[:, None, :], axis=2))

    def selected(self, sentences: Any) -> "DecodingState":
        """The state of some of the sentences.

        Args:
            sentences: Their places (B',).

        Returns:
            A new state.
        """
        return DecodingState(*keras.tree.map_structure(lambda x: ops.take(x, sentences, axis=0), tuple(self)))


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
        groups: G.
        head_dim: D.
    """

    inputs: Matrix
    memory: Matrix | None
    output: Matrix
    heads: int
    groups: int
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
            layer.num_kv_heads,
            head_dim,
        )

    def heads_of(self, matrix: Matrix, x: Any, sentences: Any) -> Any:
        """What a matrix makes of vectors, as heads, in the dtype of the matrices.

        Args:
            matrix: `inputs` or `memory`.
            x: (B·n, M).
            sentences: B.

        Returns:
            (B, heads, n, D).
        """
        rows = matrix(x, matrix.dtype)  # (B·n, heads·D)
        heads = ops.reshape(rows, (sentences, -1, rows.shape[-1] // self.head_dim, self.head_dim))  # (B, n, heads, D)
        return ops.transpose(heads, (0, 2, 1, 3))

    def parted(self, heads: Any) -> tuple[Any, Any, Any]:
        """The heads of queries, keys and values.

        Args:
            heads: Of all three (B, H + 2G, K, D).

        Returns:
            (B, H, K, D), (B, G, K, D) and (B, G, K, D).
        """
        keys, values = self.heads, self.heads + self.groups
        return heads[:, :keys], heads[:, keys:values], heads[:, values:]

    def attend(self, query: Any, keys: Any, values: Any, bias: Any) -> Any:
        """softmax(Q Kᵀ + bias) V, and back to the model's width.

        Args:
            query: (B, H, K, D), scaled.
            keys: (B, G, N, D).
            values: (B, G, N, D).
            bias: (B, 1, K or 1, N).

        Returns:
            (B·K, M).
        """
        sentences, _, beams, head_dim = ops.shape(query)
        if self.groups < self.heads:  # the queries that share a head of keys, one after the other
            query = ops.reshape(query, (sentences, self.groups, self.heads // self.groups * beams, head_dim))
            bias = ops.tile(bias, (1, 1, self.heads // self.groups if bias.shape[2] > 1 else 1, 1))
        scores = ops.cast(ops.matmul(query, ops.transpose(keys, (0, 1, 3, 2))), "float32")  # (B, H, K, N)
        weights = ops.cast(masked_softmax(scores + bias), values.dtype)
        context = ops.matmul(weights, values)  # (B, H, K, D)
        context = ops.reshape(context, (sentences, self.heads, beams, head_dim))
        context = ops.transpose(context, (0, 2, 1, 3))  # (B, K, H, D)
        return self.output(ops.reshape(context, (sentences * beams, self.heads * head_dim)))


class FusedDecoder:
    """The same numbers as `decode_step`, for one token at a time of several beams.

    The matrices that meet the same input are joined, and what depends on the source alone is computed once. Made inside
    a compiled function before its loop, this happens once for each call of the function.

    Args:
        model: A `Transformer` or a `CausalTransformer`, not quantized.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=100)
        >>> decoder = FusedDecoder(model)
        >>> state = decoder.read(keras.ops.array([[5, 6, 3]]), beams=2)
        >>> logits, state = decoder.step(keras.ops.array([2, 2]), state)
        >>> print(logits.shape, state.bias.shape)
        (2, 100) (1, 2, 2)

    Source: Vaswani et al. 2017, section 3.
    """

    def __init__(self, model: Any):
        self.model = model
        decoder = model.get_layer("decoder")
        dtype = model.dtype_policy.compute_dtype
        self.first_norm = decoder.normalize_first
        self.layers = [FusedLayer(layer, dtype) for layer in decoder.layers]
        self.final_norm = None if decoder.final_norm is None else _norm(decoder.final_norm)
        self.logits = Matrix.of(ops.transpose(model.get_layer("embedding").embeddings), None, dtype)  # M to V

    def start(self, sentences: Any, beams: int) -> DecodingState:
        """The state before the first token of a model without a source.

        Args:
            sentences: B.
            beams: K.

        Returns:
            A state.
        """
        attention = self.layers[0].self_attention
        empty = ops.zeros((sentences, attention.groups, 0, attention.head_dim), attention.inputs.dtype)
        return DecodingState(
            keys=(empty,) * len(self.layers),
            values=(empty,) * len(self.layers),
            bias=ops.zeros((sentences, 0, beams), "float32"),
            memory_keys=(),
            memory_values=(),
            memory_bias=ops.zeros((sentences, 1, 1, 0), "float32"),
        )

    def read(self, source: Any, beams: int) -> DecodingState:
        """The state before the first token of a translation.

        Args:
            source: Token ids (B, S), 0 for padding.
            beams: K.

        Returns:
            A state.
        """
        memory, mask = self.model.encode(source)  # (B, S, M), (B, S)
        sentences, length, width = ops.shape(memory)
        rows = ops.reshape(memory, (sentences * length, width))
        keys, values = [], []
        for layer in self.layers:
            attention = layer.cross_attention
            both = attention.heads_of(attention.memory, rows, sentences)  # (B, 2G, S, D)
            both = ops.where(mask[:, None, :, None], both, ops.zeros_like(both))
            keys.append(both[:, : attention.groups])
            values.append(both[:, attention.groups :])
        return self.start(sentences, beams)._replace(
            memory_keys=tuple(keys),
            memory_values=tuple(values),
            memory_bias=ops.where(mask, 0.0, HIDDEN)[:, None, None, :],
        )

    def step(self, ids: Any, state: DecodingState) -> tuple[Any, DecodingState]:
        """Writes one token of each beam.

        Args:
            ids: The last token of each beam (B·K,).
            state: From `read` or `start`, or from the step before.

        Returns:
            The logits of the next token (B·K, V), and the new state.
        """
        sentences, places, beams = ops.shape(state.bias)
        x = self.model.get_layer("embedding")(ids[:, None])  # (B·K, 1, M)
        x = self.model.get_layer("positions")(x, start_index=places // beams)
        x = ops.cast(x[:, 0], "float32")  # (B·K, M)

        itself = ops.broadcast_to(HIDDEN * (1.0 - ops.eye(beams)), (sentences, beams, beams))
        bias = ops.concatenate([state.bias, itself], axis=1)  # (B, N, K)
        hidden = ops.transpose(bias, (0, 2, 1))[:, None]  # (B, 1, K, N)

        keys, values = [], []
        for number, layer in enumerate(self.layers):
            attention, norm = layer.self_attention, layer.self_attention_norm
            heads = attention.heads_of(attention.inputs, self._enter(norm, x), sentences)  # (B, H + 2G, K, D)
            query, key, value = attention.parted(heads)
            keys.append(ops.concatenate([state.keys[number], key], axis=2))  # (B, G, N, D)
            values.append(ops.concatenate([state.values[number], value], axis=2))
            x = self._leave(norm, x, attention.attend(query, keys[-1], values[-1], hidden))

            if layer.cross_attention is not None:
                attention, norm = layer.cross_attention, layer.cross_attention_norm
                query = attention.heads_of(attention.inputs, self._enter(norm, x), sentences)  # (B, H, K, D)
                memory = state.memory_keys[number], state.memory_values[number], state.memory_bias
                x = self._leave(norm, x, attention.attend(query, *memory))

            norm = layer.feed_forward_norm
            x = self._leave(norm, x, layer.feed_forward(self._enter(norm, x)))
        x = x if self.final_norm is None else self.final_norm(x)
        written = {"keys": tuple(keys), "values": tuple(values), "bias": bias}
        return self.logits(x), state._replace(**written)

    def _enter(self, norm: Callable[[Any], Any], x: Any) -> Any:
        return norm(x) if self.first_norm else x

    def _leave(self, norm: Callable[[Any], Any], x: Any, y: Any) -> Any:
        return x + y if self.first_norm else norm(x + y)


class FusedLayer:
    """One decoder layer: its attention matrices, its norms, its feed-forward network.

    Args:
        layer: A built `DecoderLayer`.
        dtype: Of the matrices.
    """

    def __init__(self, layer: Any, dtype: str):
        self.self_attention = FusedAttention.of(layer.self_attention, dtype, memory=False)
        self.self_attention_norm = _norm(layer.self_attention_norm)
        self.cross_attention = None
        if layer.cross_attention is not None:
            self.cross_attention = FusedAttention.of(layer.cross_attention, dtype, memory=True)
            self.cross_attention_norm = _norm(layer.cross_attention_norm)
        self.feed_forward = _feed_forward(layer.feed_forward, dtype)
        self.feed_forward_norm = _norm(layer.feed_forward_norm)


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


def _norm(layer: Any) -> Callable[[Any], Any]:
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
