"""A translation task that a small model learns in minutes, without data."""

from keras_attention.extras import needed_by

with needed_by("keras_attention.demo", "cli", "text"):
    from keras_attention.demo.phrases import make_pairs, split_pairs
    from keras_attention.demo.run import run_demo

__all__ = ["make_pairs", "run_demo", "split_pairs"]
