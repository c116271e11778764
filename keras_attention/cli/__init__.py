"""The command `keras-attention`: parses, calls, prints."""

from keras_attention.extras import needed_by

with needed_by("The command keras-attention", "cli", "text"):
    from keras_attention.cli import serving, training, using
    from keras_attention.cli.group import main, run

__all__ = ["main", "run", "serving", "training", "using"]
