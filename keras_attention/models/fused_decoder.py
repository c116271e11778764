"""The decoder for one token at a time, with fused weights.

Shapes: B sentences, K beams, S source length, M model width, G heads of keys and values, R query heads that share one
of them, D head width, V vocabulary, N positions of the cache: K for each token written, one for each token of a prompt.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.models.fused_weights import FusedStack, Matrix, MatrixOf
from keras_attention.ops.attention import MASKED_SCORE, cached_attention

# Growing a tensor copies it: at most this many tokens are copied at each step, all others once in as many steps.
NEWER_TOKENS = 8


class DecodingState(NamedTuple):
    """The caches of self- and cross-attention.

    The keys and values of all beams of a sentence are next to each other and stay where they were written: a beam sees
    those that it descends from. So no key is copied when beams are reordered.

    Attributes:
        older: Keys and values of self-attention, for each layer (2, B, G, n, D).
        newer: Keys and values of the last few tokens; older and newer have N positions together.
        visible: The positions that each beam sees in self-attention, boolean (B, N, K).
        memory: Keys and values of cross-attention, for each layer (2, B, G, S, D), zero at padding; empty in a
            language model.
        memory_bias: Bias of the logits of cross-attention, (B, 1, S).
        lengths: Number of tokens so far, (B,), equal for all sentences.
        starts_with_one_row: Whether the first step takes one row for all beams of a sentence.
    """

    starts_with_one_row = True

    older: tuple[Any, ...]
    newer: tuple[Any, ...]
    visible: Any
    memory: tuple[Any, ...]
    memory_bias: Any
    lengths: Any

    def reordered(self, parents: Any) -> "DecodingState":
        """Returns the state in which each beam continues another of its sentence, `parents` (B, K)."""
        return self._replace(visible=ops.take_along_axis(self.visible, parents[:, None, :], axis=2))

    def merged(self, rows: Any) -> "DecodingState":
        """Returns the state whose newer positions, `rows` for each token, are joined to the older if they are many."""

        def join() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            older = tuple(_append_positions(*pairs) for pairs in zip(self.older, self.newer, strict=True))
            return older, tuple(pair[:, :, :, :0] for pair in self.newer)

        many = ops.shape(self.newer[0])[3] >= NEWER_TOKENS * rows
        if isinstance(many, bool):  # on JAX the branches of `cond` may not differ in shape
            older, newer = join() if many else (self.older, self.newer)
        else:
            older, newer = ops.cond(many, join, lambda: (self.older, self.newer))
        return self._replace(older=older, newer=newer)

    def selected(self, sentences: Any) -> "DecodingState":
        """Returns the state of only the sentences at the indices `sentences` (B',)."""
        pairs = (self.older, self.newer, self.memory)
        older, newer, memory = keras.tree.map_structure(lambda x: ops.take(x, sentences, axis=1), pairs)
        visible, memory_bias, lengths = (
            ops.take(x, sentences, axis=0) for x in (self.visible, self.memory_bias, self.lengths)
        )
        return DecodingState(older, newer, visible, memory, memory_bias, lengths)


class FusedWeights(NamedTuple):
    """The weights of a decoder.

    Attributes:
        stack: Its layers.
        logits: Matrix from its output to the logits, M to V.
    """

    stack: FusedStack
    logits: Matrix

    @classmethod
    def of(cls, network: Any, matrix: MatrixOf) -> "FusedWeights":
        """Returns the weights of a network's decoder, with the matrices that `matrix` makes of kernels and biases."""
        stack, embedding = FusedStack(network.decoder, matrix), network.embedding
        return cls(stack, matrix(ops.transpose(embedding.embeddings), None, embedding.path))


class FusedDecoder:
    """Decodes one token of several beams at a time: the numbers of `decode_step`, faster.

    Matrices with the same input are fused, and the keys and values of the source are computed once. A compiled function
    that creates a decoder before its loop does this once in each call.

    Args:
        model: A `Transformer` or a `CausalTransformer`, not quantized.
        attention: Implementation of `cached_attention`.
        memory_dtype: Dtype of the keys and values; that of the model by default.
        weights: Weights that were fused before; those of the model by default.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=100)
        >>> decoder = FusedDecoder(model)
        >>> state = decoder.read(keras.ops.array([[5, 6, 3]]), beams=2)
        >>> logits, state = decoder.step(keras.ops.array([2, 2]), state)
        >>> print(logits.shape, state.visible.shape)
        (2, 100) (1, 2, 2)

    Source: Vaswani et al. 2017, section 3.
    """

    def __init__(
        self,
        model: Any,
        attention: Callable[..., Any] = cached_attention,
        memory_dtype: str | None = None,
        weights: FusedWeights | None = None,
    ):
        self.model = model
        self.attention = attention
        dtype = model.dtype_policy.compute_dtype
        self.memory_dtype = memory_dtype or dtype
        weights = weights or FusedWeights.of(model.network, lambda kernel, bias, _: Matrix.of(kernel, bias, dtype))
        self.stack, self.logits = weights
        self.layers = self.stack.layers
        # In mixed precision, the embedding layer casts its matrix at each step; here only the rows of the tokens are.
        self.embeddings = ops.convert_to_tensor(model.network.embedding.embeddings)  # (V, M)

    def start(self, prompts: Any, beams: int) -> DecodingState:
        """Returns the state of a language model after prompts (B, t) without padding; t may be 0."""
        sentences, length = ops.shape(prompts)
        _, cache = self.model.decode_step(prompts, self.model.init_cache(sentences))
        return self._empty_state(sentences, beams)._replace(
            older=tuple(
                ops.cast(layer.self_attention.pair_of(cached), self.memory_dtype)
                for layer, cached in zip(self.layers, cache.layers, strict=True)
            ),
            visible=ops.ones((sentences, length, beams), "bool"),  # all beams descend from the prompt
            lengths=ops.full((sentences,), length, "int32"),
        )

    def read(self, source: Any, beams: int) -> DecodingState:
        """Returns the state before the first target token, for a source (B, S), 0 for padding."""
        memory, mask = self.model.encode(source)  # (B, S, M), (B, S)
        sentences, length, width = ops.shape(memory)
        rows = ops.reshape(memory, (sentences * length, width))
        pairs = []
        for layer in self.layers:
            matrices = layer.cross_attention
            pair = matrices.memory(rows, self.memory_dtype)  # (B·S, 2·G·D)
            pair = ops.where(ops.reshape(mask, (-1, 1)), pair, ops.zeros_like(pair))
            pairs.append(matrices.heads_of(pair, sentences, length))
        return self._empty_state(sentences, beams)._replace(
            memory=tuple(pairs), memory_bias=ops.where(mask, 0.0, MASKED_SCORE)[:, None]
        )

    def step(self, ids: Any, state: DecodingState) -> tuple[Any, DecodingState]:
        """Decodes one token of each beam.

        Args:
            ids: Last token of each beam (B·K,), or of each sentence (B,) while its beams are equal.
            state: State from `read`, `start` or the step before.

        Returns:
            The logits of the next token (B·K, V) or (B, V), and the new state.
        """
        sentences, _, beams = ops.shape(state.visible)
        rows = 1 if beams == 1 else ops.shape(ids)[0] // sentences  # of a sentence: K, or one for all
        position = ops.max(state.lengths, initial=0)
        network = self.model.network
        x = ops.cast(ops.take(self.embeddings, ids, axis=0), network.embedding.compute_dtype)  # (B·K, M)
        x = network.positions(x[:, None], start_index=position)  # (B·K, 1, M)
        x = ops.cast(x[:, 0], "float32")  # (B·K, M)

        itself = ops.equal(ops.arange(beams) % rows, ops.arange(rows)[:, None])  # (1 or K, K)
        itself = ops.broadcast_to(itself, (sentences, rows, beams))
        visible = ops.concatenate([state.visible, itself], axis=1)  # (B, N, K)
        bias = ops.where(ops.transpose(visible[:, :, :rows], (0, 2, 1)), 0.0, MASKED_SCORE)  # (B, K, N)
        size = self.layers[0].self_attention.group_size
        bias = bias if size == 1 else ops.tile(bias, (1, size, 1))  # (B, R·K, N)

        newer = []
        for number, layer in enumerate(self.layers):
            matrices, norm = layer.self_attention, layer.self_attention_norm
            fused = matrices.inputs(self.stack.pre_norm(norm, x), self.memory_dtype)  # (B·K, (R + 2)·G·D)
            heads = matrices.heads_of(fused, sentences, rows)  # (R + 2, B, G, K, D)
            if matrices.position is not None:
                heads = ops.concatenate([matrices.rotated(heads[:-1], ops.reshape(position, (1,))), heads[-1:]])
            newer.append(_append_positions(state.newer[number], heads[size:]))
            memory = state.older[number], newer[-1]
            context = matrices.attend(self.attention, heads[:size], memory, bias, sentences, rows)
            x = self.stack.add_and_norm(norm, x, context)

            if layer.cross_attention is not None:
                matrices, norm = layer.cross_attention, layer.cross_attention_norm
                queries = matrices.inputs(self.stack.pre_norm(norm, x), self.memory_dtype)  # (B·K, R·G·D)
                queries, memory = matrices.heads_of(queries, sentences, rows), (state.memory[number],)
                context = matrices.attend(self.attention, queries, memory, state.memory_bias, sentences, rows)
                x = self.stack.add_and_norm(norm, x, context)

            norm = layer.feed_forward_norm
            x = self.stack.add_and_norm(norm, x, layer.feed_forward(self.stack.pre_norm(norm, x)))
        state = state._replace(newer=tuple(newer), visible=visible, lengths=state.lengths + 1)
        return self.logits(self.stack.last_norm(x)), state.merged(rows)

    def _empty_state(self, sentences: Any, beams: int) -> DecodingState:
        attention = self.layers[0].self_attention
        empty = ops.zeros((2, sentences, attention.heads, 0, attention.head_dim), self.memory_dtype)
        return DecodingState(
            older=(empty,) * len(self.layers),
            newer=(empty,) * len(self.layers),
            visible=ops.zeros((sentences, 0, beams), "bool"),
            memory=(),
            memory_bias=ops.zeros((sentences, 1, 0), "float32"),
            lengths=ops.zeros((sentences,), "int32"),
        )


def _append_positions(pair: Any, more: Any) -> Any:
    """Appends keys and values of m positions to those of n, (2, B, G, n, D) to (2, B, G, n + m, D)."""
    return ops.concatenate([pair, more], axis=3)
