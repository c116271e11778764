"""The command `keras-attention`: parses, calls, prints."""

from keras_attention.cli import serving, training, using
from keras_attention.cli.group import main

__all__ = ["main", "serving", "training", "using"]
