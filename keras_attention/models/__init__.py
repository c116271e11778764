"""Models assembled from the layers."""

from keras_attention.models.causal_transformer import CausalTransformer
from keras_attention.models.config import PRESETS, TABLE_3, TransformerConfig
from keras_attention.models.inspected_transformer import AttentionWeights, InspectedTransformer
from keras_attention.models.transformer import DecoderCache, Transformer

__all__ = [
    "PRESETS",
    "TABLE_3",
    "AttentionWeights",
    "CausalTransformer",
    "DecoderCache",
    "InspectedTransformer",
    "Transformer",
    "TransformerConfig",
]
