"""Conversion of a trained model for other runtimes: CTranslate2, LiteRT, ONNX.

Each conversion compares what it wrote with the model and refuses it where they differ.
"""

from keras_attention.conversion.ctranslate2 import to_ctranslate2
from keras_attention.conversion.litert import to_litert
from keras_attention.conversion.onnx import to_onnx

__all__ = ["to_ctranslate2", "to_litert", "to_onnx"]
