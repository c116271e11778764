"""A Transformer whose attention one changes to see what it is for: heads off, a window, another scale.

Shapes: B batch, T target length, S source length, M model width, N layers, H heads, G heads of keys and values, D and E
widths of a head, V vocabulary, K beams.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_attention.layers import KeyValueCache
from keras_attention.models.network import padding_mask
from keras_attention.models.transformer import Transformer
from keras_attention.ops.attention import dot_product_attention
from keras_attention.ops.masks import as_mask, causal_mask, combine_masks, window_mask

NO_WINDOW = 2**31 - 1
MAX_SCALE = 100.0


class AttentionWeights(NamedTuple):
    """The attention weights of every layer and head, zero for queries that are padding; each other row sums to 1.

    Query t of the decoder writes target token t. Its self-attention has the tokens before as keys: key 0 is the begin
    of sentence, key t is target token t - 1.

    Attributes:
        encoder: Self-attention of the encoder, (B, N, H, S, S).
        decoder: Self-attention of the decoder, (B, N, H, T, T).
        cross: Attention of the decoder to the encoder's output, (B, N, H, T, S).

    Example:
        >>> AttentionWeights(encoder=ops.ones((1, 2, 4, 3, 3)), decoder=None, cross=None).encoder.shape[1]
        2
    """

    encoder: Any
    decoder: Any
    cross: Any


class AttentionChanges(NamedTuple):
    """Masks of heads (N, H), a window and a factor of the scale, for all sentences or, with an axis B, for each."""

    encoder_heads: Any
    decoder_heads: Any
    cross_heads: Any
    window: Any
    scale: Any


class InspectedCache(NamedTuple):
    """Self-attention caches of B·K rows; keys and values of the memory, and the changes, of B rows."""

    layers: tuple[KeyValueCache, ...]
    cross: tuple[tuple[KeyValueCache, ...], AttentionChanges]


class InspectedTransformer:
    """A view of a `Transformer` with changed attention: softmax(scale · Q Kᵀ / √d_k) V, some heads off, in a window.

    It has the weights of the model, and its methods `encode`, `init_cache` and `decode_step`. So `decoding.generate`,
    `decoding.stream`, `decoding.score` and `serving.Translator` take it instead of the model. Without changes it
    computes what the model does, in inference and more slowly.

    Each change is one for all sentences, or has a leading axis B with one for each.

    Args:
        model: The model.
        encoder_head_mask: Boolean (N, H), False for the heads of the encoder that are off: their output is zero before
            the output projection. All heads are on by default.
        decoder_head_mask: Boolean (N, H), that of the decoder's self-attention.
        cross_head_mask: Boolean (N, H), that of the decoder's attention to the encoder's output.
        window: Self-attention sees only positions at a distance below this number; None for all positions.
        scale: Factor of the scaled scores, from 0, with which all weights are equal, to 100.

    Raises:
        TypeError: If `model` is not a `Transformer`.
        ValueError: A mask of another shape, or a window or scale out of its range.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=20)
        >>> heads = np.array([[True] * 4, [True, False, True, True]])  # head 2 of layer 2 is off
        >>> inspected = InspectedTransformer(model, cross_head_mask=heads, window=3, scale=0.5)
        >>> hypotheses = ka.decoding.generate(inspected, [[5, 6, 3]], ka.decoding.DecodingOptions(max_length=2))
        >>> print(inspected.attention_weights([[5, 6, 3]], [[7, 8, 9, 3]]).cross.shape)
        (1, 2, 4, 4, 3)

    Source: Vaswani et al. 2017, section 3.2; Michel et al. 2019 (arXiv 1905.10650) switch heads off.
    """

    def __init__(
        self,
        model: Transformer,
        encoder_head_mask: Any = None,
        decoder_head_mask: Any = None,
        cross_head_mask: Any = None,
        window: Any = None,
        scale: Any = 1.0,
    ):
        if not isinstance(model, Transformer):
            raise TypeError(f"`model` is a Transformer, with an encoder and a decoder. Received: model={model!r:.200}")
        self.model = model
        config = model.config
        encoder, decoder = ((layers, config.num_heads) for layers in (config.num_layers, config.decoder_depth))
        self._changes = AttentionChanges(
            _head_mask(encoder_head_mask, "encoder_head_mask", encoder),
            _head_mask(decoder_head_mask, "decoder_head_mask", decoder),
            _head_mask(cross_head_mask, "cross_head_mask", decoder),
            _window(window),
            _scale(scale),
        )

    @property
    def config(self) -> Any:
        """The config of the model."""
        return self.model.config

    def encode(self, source: Any, return_attention_scores: bool = False) -> Any:
        """Runs the encoder, see `Transformer.encode`.

        Args:
            source: Token ids (B, S), 0 for padding.
            return_attention_scores: Whether to return the attention weights of each layer, too.

        Returns:
            The memory (B, S, M) and its padding mask (B, S); then, on request, the weights, a tuple of (B, H, S, S).
        """
        source = ops.convert_to_tensor(source)
        batch, length = ops.shape(source)
        changes, source_mask = self._changes_of(batch), padding_mask(source)
        mask = combine_masks(source_mask[:, None, None, :], _window_mask(changes.window, length, length, 0))
        encoder, weights = self.model.network.encoder, []
        x = self.model.network.embed(source)
        for index, layer in enumerate(encoder.layers):
            attention, y = layer.self_attention, _pre_norm(layer, layer.self_attention_norm, x)
            memory = attention.project(y, padding_mask=source_mask)
            y, of_layer = _attend(attention, y, memory, 0, mask, changes.encoder_heads[:, index], changes.scale)
            x = _feed_forward(layer, _add_and_norm(layer, layer.self_attention_norm, x, y))
            weights.append(of_layer)
        x = x if encoder.final_norm is None else encoder.final_norm(x)
        return (x, source_mask, tuple(weights)) if return_attention_scores else (x, source_mask)

    def init_cache(self, memory: Any, batch_size: Any) -> InspectedCache:
        """Projects the memory for cross-attention and creates empty self-attention caches.

        Args:
            memory: Output of the encoder (B, S, M).
            batch_size: Number of target sequences, B·K with K beams.

        Returns:
            The cache before the first step.
        """
        decoder = self.model.network.decoder
        memories = tuple(layer.project_memory(memory) for layer in decoder.layers)
        return InspectedCache(decoder.init_cache(batch_size), (memories, self._changes_of(ops.shape(memory)[0])))

    def decode_step(
        self, ids: Any, cache: InspectedCache, source_mask: Any, return_attention_scores: bool = False
    ) -> Any:
        """Runs the decoder on the next tokens, see `Transformer.decode_step`.

        Args:
            ids: Next T tokens of each target (B·K, T); their positions continue those of the cache.
            cache: Cache from `init_cache` or the step before.
            source_mask: Padding mask (B, S) from `encode`.
            return_attention_scores: Whether to return the cross-attention weights of each layer, too.

        Returns:
            Logits (B·K, T, V) and the cache with the tokens appended; then, on request, the weights, a tuple of
            (B·K, H, T, S).
        """
        x, cache, _, weights = self._decode(ids, cache, source_mask)
        logits = self.model.network.logits(x)
        return (logits, cache, tuple(weights)) if return_attention_scores else (logits, cache)

    def attention_weights(self, source: Any, target: Any, bos_id: int = 2) -> AttentionWeights:
        """Computes the attention weights of existing translations.

        Args:
            source: Token ids (B, S), the end of sentence last, then 0 for padding.
            target: Token ids (B, T) of a translation of each, the end of sentence last, then 0 for padding.
            bos_id: Token before the first.

        Returns:
            `AttentionWeights`, in float32.
        """
        target = ops.convert_to_tensor(target)
        batch = ops.shape(target)[0]
        memory, source_mask, of_encoder = self.encode(source, return_attention_scores=True)
        first = ops.full((batch, 1), bos_id, target.dtype)
        shifted = ops.concatenate([first, target], axis=1)[:, :-1]  # (B, T); cut after joining, so that T may be 0
        _, _, of_decoder, of_cross = self._decode(shifted, self.init_cache(memory, batch), source_mask)
        target_mask = padding_mask(target)
        return AttentionWeights(
            _stack(of_encoder, source_mask), _stack(of_decoder, target_mask), _stack(of_cross, target_mask)
        )

    def _decode(self, ids: Any, cache: InspectedCache, source_mask: Any) -> tuple[Any, InspectedCache, list, list]:
        """Returns the decoder's output (B·K, T, M), the cache, and the weights of self- and cross-attention."""
        ids = ops.convert_to_tensor(ids)
        memories, changes, source_mask = keras.tree.map_structure(
            lambda x: _repeat(x, ops.shape(ids)[0]), (*cache.cross, source_mask)
        )  # B·K rows
        offset, length = cache.layers[0].length, ops.shape(ids)[1]
        positions = offset + ops.arange(length, dtype="int32")
        visible = combine_masks(
            causal_mask(length, offset + length, offset),
            _window_mask(changes.window, length, offset + length, offset),
        )  # (B·K, 1, T, offset + T)
        decoder, caches, self_weights, cross_weights = self.model.network.decoder, [], [], []
        x = self.model.network.embed(ids, start_index=offset)
        for index, layer in enumerate(decoder.layers):
            attention, y = layer.self_attention, _pre_norm(layer, layer.self_attention_norm, x)
            caches.append(cache.layers[index].update(*attention.project(y, positions=positions)))
            heads = changes.decoder_heads[:, index]
            y, of_layer = _attend(attention, y, caches[index], offset, visible, heads, changes.scale)
            x = _add_and_norm(layer, layer.self_attention_norm, x, y)
            self_weights.append(of_layer)

            attention, y = layer.cross_attention, _pre_norm(layer, layer.cross_attention_norm, x)
            mask, heads = source_mask[:, None, None, :], changes.cross_heads[:, index]
            y, of_layer = _attend(attention, y, memories[index], offset, mask, heads, changes.scale)
            x = _feed_forward(layer, _add_and_norm(layer, layer.cross_attention_norm, x, y))
            cross_weights.append(of_layer)
        x = x if decoder.final_norm is None else decoder.final_norm(x)
        return x, cache._replace(layers=tuple(caches)), self_weights, cross_weights

    def _changes_of(self, batch: Any) -> AttentionChanges:
        """The changes of a batch of B sentences, each with the leading axis B."""
        ranks = AttentionChanges(3, 3, 3, 1, 1)
        return AttentionChanges(
            *(
                ops.broadcast_to(x, (batch, *x.shape[len(x.shape) - rank + 1 :]))
                for x, rank in zip(self._changes, ranks, strict=True)
            )
        )


def _attend(
    attention: Any, x: Any, memory: KeyValueCache, offset: Any, mask: Any, heads: Any, scale: Any
) -> tuple[Any, Any]:
    """Attention from x (B, T, M), whose first position is `offset`: the output (B, T, M), the weights (B, H, T, S)."""
    queries, bias = ops.transpose(attention.query_dense(x), (0, 2, 1, 3)), None  # (B, H, T, D)
    if attention.position is not None:
        positions = offset + ops.arange(ops.shape(x)[1], dtype="int32")
        queries = attention.position.rotate(queries, positions)
        bias = attention.position.bias(positions, ops.arange(memory.length, dtype="int32"))
    # In float32, as a large scale leaves the range of float16.
    queries, keys = (ops.cast(each, "float32") for each in (queries, memory.key))
    queries = queries * scale[:, None, None, None]
    output, weights = dot_product_attention(queries, keys, memory.value, mask, bias)  # (B, H, T, E), (B, H, T, S)
    output = ops.where(heads[:, :, None, None], output, ops.zeros_like(output))
    return attention.output_dense(ops.transpose(output, (0, 2, 1, 3))), weights


def _feed_forward(layer: Any, x: Any) -> Any:
    """The position-wise network of an encoder or decoder layer, its skip connection and norm."""
    norm = layer.feed_forward_norm
    return _add_and_norm(layer, norm, x, layer.feed_forward(_pre_norm(layer, norm, x), training=False))


def _pre_norm(layer: Any, norm: Any, x: Any) -> Any:
    """The input of a sub-layer: x, or LayerNorm(x) with pre-norm."""
    return norm(x) if layer.normalize_first else x


def _add_and_norm(layer: Any, norm: Any, x: Any, y: Any) -> Any:
    """LayerNorm(x + y), or x + y with pre-norm."""
    return x + y if layer.normalize_first else norm(x + y)


def _window_mask(window: Any, query_length: Any, key_length: Any, offset: Any) -> Any:
    """The mask (B, 1, T, S) of windows (B,)."""
    return window_mask(query_length, key_length, window[:, None, None, None], offset)


def _repeat(x: Any, rows: Any) -> Any:
    """Repeats each of B rows for its K beams, B·K rows."""
    sentences = ops.shape(x)[0]
    if isinstance(rows, int) and rows == sentences:
        return x
    # At least 1, for an empty batch. A Python integer is kept: `ops.maximum` would make it a traced value in JAX.
    beams = rows // (max(sentences, 1) if isinstance(sentences, int) else ops.maximum(sentences, 1))
    return ops.repeat(x, beams, axis=0)


def _stack(weights: Any, query_mask: Any) -> Any:
    """Stacks the weights (B, H, T, S) of N layers, (B, N, H, T, S), zero where the query is padding."""
    stacked = ops.cast(ops.stack(weights, axis=1), "float32")
    return ops.where(query_mask[:, None, None, :, None], stacked, ops.zeros_like(stacked))


def _head_mask(mask: Any, name: str, shape: tuple[int, int]) -> Any:
    """Checks a mask of heads (N, H) or (B, N, H); None switches none off."""
    mask = ops.ones(shape, "bool") if mask is None else as_mask(mask, name)
    if len(mask.shape) not in (2, 3) or tuple(mask.shape[-2:]) != shape:
        raise ValueError(
            f"`{name}` has shape (layers, heads), {shape} here, or (batch, layers, heads), True for a head that is on. "
            f"Received: {name}.shape={tuple(mask.shape)}"
        )
    return mask


def _window(window: Any) -> Any:
    """Checks a window, one or several (B,); None is no window."""
    window = ops.convert_to_tensor(NO_WINDOW if window is None else window)
    values = _values(window)
    if len(window.shape) > 1 or "int" not in keras.backend.standardize_dtype(window.dtype) or np.any(values < 1):
        raise ValueError(
            f"`window` is an integer, 1 (only the own position) or more, or None. Received: window={values}"
        )
    return ops.cast(window, "int32")


def _scale(scale: Any) -> Any:
    """Checks a factor of the scale, one or several (B,)."""
    scale = ops.cast(ops.convert_to_tensor(scale), "float32")
    values = _values(scale)
    if len(scale.shape) > 1 or not np.all((values >= 0) & (values <= MAX_SCALE)):
        raise ValueError(f"`scale` is a number from 0 to {MAX_SCALE:g}; 1 changes nothing. Received: scale={values}")
    return scale


def _values(tensor: Any) -> np.ndarray:
    """The values of a tensor; 1 while a function is traced."""
    try:
        return ops.convert_to_numpy(tensor)
    except (NotImplementedError, TypeError):
        return np.ones(())
