"""The Transformer of "Attention Is All You Need" as Keras layers.

Layers, models and `training` are imported with the package, so that `keras.models.load_model` knows every class that a
file may name. `text`, `decoding`, `serving`, `pipeline` and `testing` are rooms that are loaded when they are first
used, so that importing the package stays light.
"""

import importlib
from typing import Any

from keras_attention import layers, models, ops, training
from keras_attention.layers import (
    AdditiveAttention,
    AlibiBias,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    FeedForward,
    FixedKeyValueCache,
    KeyValueCache,
    LearnedPositionalEncoding,
    MultiHeadAttention,
    MultiHeadSelfAttention,
    PositionalEncoding,
    RelativePositionBias,
    RotaryPosition,
    TokenEmbedding,
)
from keras_attention.models import CausalTransformer, Transformer, TransformerConfig

__version__ = "0.1.0"

_ROOMS = ("conversion", "decoding", "pipeline", "serving", "testing", "text")

__all__ = [
    "AdditiveAttention",
    "AlibiBias",
    "CausalTransformer",
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
    "RotaryPosition",
    "TokenEmbedding",
    "Transformer",
    "TransformerConfig",
    "conversion",
    "decoding",
    "explain_masks",
    "layers",
    "models",
    "ops",
    "pipeline",
    "serving",
    "testing",
    "text",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"keras_attention.{name}")
    if name == "explain_masks":
        return importlib.import_module("keras_attention.testing").explain_masks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS, "explain_masks"])
