"""Serving: a trained model as a function from text to text, and as a SavedModel."""

import importlib
from typing import TYPE_CHECKING, Any

from keras_attention import _LOADS_ON_USE

if TYPE_CHECKING or not _LOADS_ON_USE:
    from keras_attention.serving.export import export
    from keras_attention.serving.threads import share_cores
    from keras_attention.serving.translator import Translator

__all__ = ["Translator", "export", "share_cores"]


def __getattr__(name: str) -> Any:
    """Lets the command import `serving.client` without TensorFlow."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file = {"Translator": "translator", "share_cores": "threads"}.get(name, name)
    value = getattr(importlib.import_module(f"{__name__}.{file}"), name)
    globals()[name] = value  # a submodule has put itself there where it shares its function's name
    return value
