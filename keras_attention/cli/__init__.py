"""The command `keras-attention`: parses arguments, calls the library, prints the results."""

from keras_attention.extras import needed_by

with needed_by("The command keras-attention", "cli", "text"):
    from keras_attention.cli import export, serving, training, translation, watching
    from keras_attention.cli.group import main, run

__all__ = ["export", "main", "run", "serving", "training", "translation", "watching"]
