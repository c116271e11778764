"""Whole jobs on files and folders: what the commands of `keras-attention` call."""

from keras_attention.extras import needed_by

with needed_by("keras_attention.pipeline", "cli", "text"):
    from keras_attention.pipeline.card import record_scores, run_card
    from keras_attention.pipeline.config import RunConfig
    from keras_attention.pipeline.evaluate import Scores, bleu_tokenizer, score
    from keras_attention.pipeline.folder import RunFolder
    from keras_attention.pipeline.lighter import compare_weights
    from keras_attention.pipeline.train import average, train

__all__ = [
    "RunConfig",
    "RunFolder",
    "Scores",
    "average",
    "bleu_tokenizer",
    "compare_weights",
    "record_scores",
    "run_card",
    "score",
    "train",
]
