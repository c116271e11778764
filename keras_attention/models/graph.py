"""How the layers of a Transformer are joined.

Shapes: B batch, T target length, S source length, M model width, V vocabulary.
"""

from typing import Any

import keras
from keras import ops

Layers = dict[str, keras.layers.Layer]


def decoder_output(
    layers: Layers,
    source: Any,
    target: Any,
    source_segments: Any = None,
    target_segments: Any = None,
) -> Any:
    """From token ids to what the logits are made of.

    Args:
        layers: By name, those of `Transformer`.
        source: Token ids (B, S), 0 for padding.
        target: Token ids (B, T).
        source_segments: Integers (B, S), one number for each of the sequences packed into a row, 0 for padding.
        target_segments: The same for the target (B, T).

    Returns:
        (B, T, M).
    """

    def embed(ids: Any, segments: Any, side: str) -> Any:
        x = layers["positions"](layers["embedding"](ids), segment_ids=segments)
        return layers[f"{side}_dropout"](x)

    # Segments keep padding apart as they do the pairs; what becomes of padding is nobody's.
    source_mask = ops.not_equal(source, 0) if source_segments is None else None  # (B, S)
    x = embed(source, source_segments, "source")  # (B, S, M)
    memory = layers["encoder"](x, padding_mask=source_mask, segment_ids=source_segments)  # (B, S, M)
    # Padding stands at the end of a target, where the causal mask hides it from every real token.
    return layers["decoder"](
        embed(target, target_segments, "target"),
        memory,
        encoder_padding_mask=source_mask,
        decoder_segment_ids=target_segments,
        encoder_segment_ids=source_segments,
    )  # (B, T, M)


def logits(layers: Layers, x: Any) -> Any:
    """The scores of each piece of the vocabulary.

    Args:
        layers: By name, those of `Transformer`.
        x: The decoder's output (B, T, M).

    Returns:
        (B, T, V), float32.
    """
    return ops.cast(layers["embedding"](x, reverse=True), "float32")
