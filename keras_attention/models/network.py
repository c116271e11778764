"""The layers of figure 1 of the paper and how they are connected.

Shapes: B batch, T target length, S source length, M model width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_attention.layers import Decoder, Encoder, TokenEmbedding
from keras_attention.layers.dropout import Dropout
from keras_attention.layers.positions import AddedPositions


@dataclass(frozen=True, kw_only=True)
class Network:
    """The layers of a Transformer; a language model has no `source_dropout` and no `encoder`."""

    embedding: TokenEmbedding  # of source and target; its transpose computes the logits
    positions: AddedPositions
    source_dropout: Dropout | None = None
    encoder: Encoder | None = None
    target_dropout: Dropout
    decoder: Decoder

    def embed(self, ids: Any, start_index: Any = 0, segments: Any = None) -> Any:
        """Embeds token ids (B, T) and adds their positions, (B, T, M)."""
        return self.positions(self.embedding(ids), start_index=start_index, segment_ids=segments)

    def encode(self, source: Any, segments: Any = None, training: bool | None = None, **kwargs: Any) -> Any:
        """Runs the encoder on source ids (B, S) and returns the memory (B, S, M)."""
        x = self.source_dropout(self.embed(source, segments=segments), training=training)
        return self.encoder(x, segment_ids=segments, training=training, **kwargs)

    def decode(
        self,
        target: Any,
        memory: Any = None,
        start_index: Any = 0,
        segments: Any = None,
        training: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the decoder on target ids (B, T) and returns its output (B, T, M)."""
        x = self.target_dropout(self.embed(target, start_index, segments), training=training)
        return self.decoder(x, memory, decoder_segment_ids=segments, training=training, **kwargs)

    def decoder_output(self, source: Any, target: Any, source_segments: Any = None, target_segments: Any = None) -> Any:
        """Runs the encoder on source ids (B, S), the decoder on target ids (B, T), and returns its output (B, T, M)."""
        # Segments also separate tokens from padding, and nothing uses the output at padding.
        source_mask = padding_mask(source) if source_segments is None else None  # (B, S)
        memory = self.encode(source, source_segments, padding_mask=source_mask)  # (B, S, M)
        # A target needs no padding mask: its padding is at the end, where the causal mask hides it from the tokens.
        return self.decode(
            target,
            memory,
            segments=target_segments,
            encoder_padding_mask=source_mask,
            encoder_segment_ids=source_segments,
        )

    def logits(self, x: Any) -> Any:
        """Multiplies the decoder's output (B, T, M) by the transposed embeddings, (B, T, V) in float32."""
        return ops.cast(self.embedding(x, reverse=True), "float32")

    def alternate_signs(self) -> None:
        """Starts the scales of the last normalization as 1, −1, 1, …, so that no token predicts itself.

        Small residual branches return x̂, close to the embedding e of the input token, whose logit x̂ · e is about √M;
        with the signs s it is (s ⊙ x̂) · e, about 0.
        """
        norm = self.decoder.final_norm or self.decoder.layers[-1].feed_forward_norm
        scale = norm.weights[0]  # (M,)
        scale.assign(np.where(np.arange(scale.shape[0]) % 2, -1.0, 1.0))


def padding_mask(ids: Any) -> Any:
    """Returns the padding mask of token ids (B, S), where 0 is padding."""
    return ops.not_equal(ids, 0)
