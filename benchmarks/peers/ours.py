"""Ours: the calls that `keras-attention train` makes, without clipping."""

from typing import TYPE_CHECKING

import keras
import numpy as np

from benchmarks.peers.keras_fit import fit
from benchmarks.peers.side import LABEL_SMOOTHING, Measured, Task, main
from benchmarks.tools.sentences import Sentences
from keras_attention import Transformer, TransformerConfig
from keras_attention.training import (
    ChunkedTrainer,
    MaskedAccuracy,
    MaskedCrossEntropy,
    Perplexity,
    keep_freed_memory,
    paper_optimizer,
)

if TYPE_CHECKING:
    from keras_attention.text import TokenBatches


def build(task: Task) -> Transformer:
    """The model of a task, compiled."""
    sizes = ("vocabulary_size", "num_layers", "hidden_dim", "intermediate_dim", "num_heads", "dropout")
    config = TransformerConfig(**{name: getattr(task, name) for name in sizes}, **task.options)
    return compiled(Transformer(config, dtype=task.dtype), task)


def compiled(model: keras.Model, task: Task) -> keras.Model:
    """The model, compiled as a run compiles it, but that no side clips its gradients."""
    model.compile(
        paper_optimizer(task, task.warmup_steps, task.learning_rate_scale, global_clipnorm=None),
        loss=MaskedCrossEntropy(label_smoothing=LABEL_SMOOTHING),
        metrics=[MaskedAccuracy(), Perplexity()],
    )
    return model


def run(task: Task) -> Measured:
    """Trains on the clock."""
    keras.utils.set_random_seed(1)
    sentences = Sentences.load(task.sentences)
    batches = token_batches(sentences, task.tokens_per_batch)
    planned = first_batches(batches, task.warmup + task.steps)
    if not all(np.array_equal(*pair) for pair in zip(planned, sentences.batches, strict=True)):
        raise ValueError("The task's batches are not those of TokenBatches: make them with `first_batches`")
    keep_freed_memory()
    model = build(task)
    trainer = ChunkedTrainer(model, LABEL_SMOOTHING)
    trainer.compile(model.optimizer)
    return fit(task, sentences, model, batches.dataset().repeat(), trainer)


def token_batches(sentences: Sentences, tokens_per_batch: int) -> "TokenBatches":
    """All pairs in batches by tokens."""
    from keras_attention.text import TokenBatches  # which needs TensorFlow, as `build` does not

    return TokenBatches(*sentences.rows(), tokens_per_batch=tokens_per_batch, seed=1)


def first_batches(batches: "TokenBatches", count: int) -> list[np.ndarray]:
    """The pairs of the first steps of training."""
    epochs = range(-(-count // len(batches)))
    return [index for epoch in epochs for index in batches.plan(epoch)][:count]


if __name__ == "__main__":
    main(run)
