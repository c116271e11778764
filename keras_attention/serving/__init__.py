"""Serving: a trained model as a function from text to text, and as a SavedModel."""

from keras_attention.serving.export import export
from keras_attention.serving.threads import share_cores
from keras_attention.serving.translator import Translator

__all__ = ["Translator", "export", "share_cores"]
