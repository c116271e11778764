"""Conversion of trained models for other runtimes: CTranslate2, LiteRT, ONNX.

Each conversion runs the converted model and raises an error if its outputs are not those of the model.
"""

from keras_attention.conversion.ctranslate2 import to_ctranslate2
from keras_attention.conversion.litert import to_litert
from keras_attention.conversion.onnx import to_onnx

__all__ = ["to_ctranslate2", "to_litert", "to_onnx"]
