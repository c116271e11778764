"""The decoder one token at a time, with its weights laid out for that.

Shapes: B sentences, K beams, S source length, M model width, H heads, D head width, N places of
the cache, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_attention.models.decoding_state import HIDDEN, DecodingState, extended
from keras_attention.models.joined_matrices import FusedLayer, Matrix, joined_norm


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
        self.final_norm = None if decoder.final_norm is None else joined_norm(decoder.final_norm)
        self.logits = Matrix.of(ops.transpose(model.get_layer("embedding").embeddings), None, dtype)  # M to V

    def start(self, prompts: Any, beams: int) -> DecodingState:
        """The state of a model without a source.

        Args:
            prompts: Token ids (B, t) that stand before the first step's, at once; without padding, (B, 0) for none.
            beams: K.

        Returns:
            A state.
        """
        sentences, length = ops.shape(prompts)
        _, cache = self.model.decode_step(prompts, self.model.init_cache(sentences))
        dtype = self.layers[0].self_attention.inputs.dtype
        return self._unread(sentences, beams)._replace(
            older=tuple((ops.cast(layer.key, dtype), ops.cast(layer.value, dtype)) for layer in cache.layers),
            bias=ops.zeros((sentences, length, beams), "float32"),  # all beams descend from the prompt
            lengths=ops.full((sentences,), length, "int32"),
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
        pairs = []
        for layer in self.layers:
            attention = layer.cross_attention
            both = attention.heads_of(attention.memory, rows, sentences)  # (B, 2H, S, D)
            both = ops.where(mask[:, None, :, None], both, ops.zeros_like(both))
            pairs.append(tuple(ops.split(both, 2, axis=1)))
        return self._unread(sentences, beams)._replace(
            memory=tuple(pairs), memory_bias=ops.where(mask, 0.0, HIDDEN)[:, None, None, :]
        )

    def step(self, ids: Any, state: DecodingState) -> tuple[Any, DecodingState]:
        """Writes one token of each beam.

        Args:
            ids: The last token of each beam (B·K,); or of each sentence (B,), for beams that are equal so far.
            state: From `read` or `start`, or from the step before.

        Returns:
            The logits of the next token (B·K, V) or (B, V), and the new state.
        """
        sentences, _, beams = ops.shape(state.bias)
        rows = ops.shape(ids)[0] // sentences  # of a sentence: K, or one for all
        x = self.model.get_layer("embedding")(ids[:, None])  # (B·K, 1, M)
        x = self.model.get_layer("positions")(x, start_index=ops.max(state.lengths, initial=0))
        x = ops.cast(x[:, 0], "float32")  # (B·K, M)

        own = ops.equal(ops.arange(beams) % rows, ops.arange(rows)[:, None])
        itself = ops.broadcast_to(ops.where(own, 0.0, HIDDEN), (sentences, rows, beams))
        bias = ops.concatenate([state.bias, itself], axis=1)  # (B, N, K)
        hidden = ops.transpose(bias[:, :, :rows], (0, 2, 1))[:, None]  # (B, 1, K, N)

        newer = []
        for number, layer in enumerate(self.layers):
            attention, norm = layer.self_attention, layer.self_attention_norm
            heads = attention.heads_of(attention.inputs, self._enter(norm, x), sentences)  # (B, 3H, K, D)
            query, key, value = ops.split(heads, 3, axis=1)  # (B, H, K, D)
            newer.append(extended(state.newer[number], (key, value)))
            x = self._leave(norm, x, attention.attend(query, (state.older[number], newer[-1]), hidden))

            if layer.cross_attention is not None:
                attention, norm = layer.cross_attention, layer.cross_attention_norm
                query = attention.heads_of(attention.inputs, self._enter(norm, x), sentences)  # (B, H, K, D)
                x = self._leave(norm, x, attention.attend(query, (state.memory[number],), state.memory_bias))

            norm = layer.feed_forward_norm
            x = self._leave(norm, x, layer.feed_forward(self._enter(norm, x)))
        x = x if self.final_norm is None else self.final_norm(x)
        state = state._replace(newer=tuple(newer), bias=bias, lengths=state.lengths + 1)
        return self.logits(x), state.settled(rows)

    def _unread(self, sentences: Any, beams: int) -> DecodingState:
        attention = self.layers[0].self_attention
        empty = ops.zeros((sentences, attention.heads, 0, attention.head_dim), attention.inputs.dtype)
        return DecodingState(
            older=((empty, empty),) * len(self.layers),
            newer=((empty, empty),) * len(self.layers),
            bias=ops.zeros((sentences, 0, beams), "float32"),
            memory=(),
            memory_bias=ops.zeros((sentences, 1, 1, 0), "float32"),
            lengths=ops.zeros((sentences,), "int32"),
        )

    def _enter(self, norm: Callable[[Any], Any], x: Any) -> Any:
        return norm(x) if self.first_norm else x

    def _leave(self, norm: Callable[[Any], Any], x: Any, y: Any) -> Any:
        return x + y if self.first_norm else norm(x + y)
