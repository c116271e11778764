"""The Transformer of "Attention Is All You Need" as Keras layers.

Layers and models are at the top of the package; they and `training` are imported with it. `text`, `decoding`,
`serving`, `server`, `client`, `conversion`, `pipeline` and `testing` are imported when they are first used, so that
importing the package stays light.
"""

import importlib
import itertools
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# True in the process of the command, which prints `--help` without loading Keras. `keras_attention_command` sets
# `running`; for `python -m keras_attention`, sys.argv[0] is "-m" while Python locates the module.
_LOADS_ON_USE = getattr(sys.modules.get("keras_attention_command"), "running", False) or (
    sys.argv[:1] == ["-m"] and ("-m", "keras_attention") in itertools.pairwise(sys.orig_argv)
)

if TYPE_CHECKING or not _LOADS_ON_USE:
    # Importing them registers their classes, so that `keras.models.load_model` finds every class that a file names.
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

_ROOMS = (
    "client",
    "conversion",
    "decoding",
    "layers",
    "models",
    "ops",
    "pipeline",
    "server",
    "serving",
    "testing",
    "text",
    "training",
)

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
    "client",
    "conversion",
    "decoding",
    "explain_masks",
    "layers",
    "models",
    "ops",
    "pipeline",
    "server",
    "serving",
    "testing",
    "text",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        for room in map(__getattr__, ("layers", "models", "testing")):
            if name in room.__all__:
                return getattr(room, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
