"""The layers of the Transformer. They compose with any Keras layer, and masks flow through them."""

from keras_attention.layers.additive_attention import AdditiveAttention
from keras_attention.layers.attention import MultiHeadAttention
from keras_attention.layers.cache import FixedKeyValueCache, KeyValueCache
from keras_attention.layers.decoder import Decoder, DecoderLayer
from keras_attention.layers.embedding import TokenEmbedding
from keras_attention.layers.encoder import Encoder, EncoderLayer
from keras_attention.layers.feed_forward import FeedForward
from keras_attention.layers.initializers import ResidualBranchInitializer
from keras_attention.layers.position_bias import AlibiBias, RelativePositionBias, RotaryPosition
from keras_attention.layers.positions import LearnedPositionalEncoding, PositionalEncoding
from keras_attention.layers.self_attention import MultiHeadSelfAttention

__all__ = [
    "AdditiveAttention",
    "AlibiBias",
    "Decoder",
    "DecoderLayer",
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "FixedKeyValueCache",
    "KeyValueCache",
    "LearnedPositionalEncoding",
    "MultiHeadAttention",
    "MultiHeadSelfAttention",
    "PositionalEncoding",
    "RelativePositionBias",
    "ResidualBranchInitializer",
    "RotaryPosition",
    "TokenEmbedding",
]
