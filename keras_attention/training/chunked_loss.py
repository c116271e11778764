"""The former module of the trainer and of the cross-entropy in chunks."""

from keras_attention.training.chunked_cross_entropy import TokenSums, chunked_cross_entropy
from keras_attention.training.chunked_trainer import ChunkedTrainer

__all__ = ["ChunkedTrainer", "TokenSums", "chunked_cross_entropy"]
