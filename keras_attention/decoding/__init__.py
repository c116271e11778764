"""Decoding: from a function that scores the next token to whole sentences."""

from keras_attention.decoding.beam_search import Hypotheses, beam_search
from keras_attention.decoding.length_penalty import length_penalty

__all__ = ["Hypotheses", "beam_search", "length_penalty"]
