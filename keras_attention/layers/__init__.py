"""The layers of the Transformer. They compose with any Keras layer, and masks flow through them."""

from keras_attention.layers.attention import MultiHeadAttention
from keras_attention.layers.cache import KeyValueCache
from keras_attention.layers.decoder_layer import DecoderLayer
from keras_attention.layers.embedding import TokenEmbedding
from keras_attention.layers.encoder_layer import EncoderLayer
from keras_attention.layers.feed_forward import FeedForward
from keras_attention.layers.positions import PositionalEncoding
from keras_attention.layers.self_attention import MultiHeadSelfAttention
from keras_attention.layers.stacks import Decoder, Encoder

__all__ = [
    "Decoder",
    "DecoderLayer",
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "KeyValueCache",
    "MultiHeadAttention",
    "MultiHeadSelfAttention",
    "PositionalEncoding",
    "TokenEmbedding",
]
