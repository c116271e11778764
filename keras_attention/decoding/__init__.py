"""Decoding: from a model, or a function that returns the logits of the next token, to whole sentences."""

from keras_attention.decoding.beam_search import beam_search
from keras_attention.decoding.generate import generate, stream
from keras_attention.decoding.hypotheses import Hypotheses, average_length, length_penalty
from keras_attention.decoding.options import DecodingOptions
from keras_attention.decoding.score import ScoringResult, score
from keras_attention.decoding.streaming import Streamed

Scored = ScoringResult  # alias: the name in version 0.1

__all__ = [
    "DecodingOptions",
    "Hypotheses",
    "ScoringResult",
    "Streamed",
    "average_length",
    "beam_search",
    "generate",
    "length_penalty",
    "score",
    "stream",
]
