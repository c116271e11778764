"""The state that a model carries from step to step, and how a search reorders and selects it.

A state is either a nest of tensors with a row for each beam, or a nest that manages its beams with the methods
`reordered(parents)` and `selected(sentences)`. If such a nest sets `starts_with_one_row`, the first step gets one
row for all beams of a sentence.
"""

from typing import Any

import tensorflow as tf


def manages_beams(state: Any) -> bool:
    """Whether a state has methods of its own for beams; False for a plain nest of tensors."""
    return all(hasattr(state, name) for name in ("reordered", "selected"))


def initial_rows(state: Any, beams: int) -> int:
    """Rows of each sentence in the first step: 1 or K."""
    return 1 if getattr(state, "starts_with_one_row", False) else beams


def reorder(state: Any, parents: tf.Tensor) -> Any:
    """The state of B·K beams in which each beam continues another of its sentence, `parents` (B, K)."""
    if manages_beams(state):
        return state.reordered(parents)
    batch, beams = tf.unstack(tf.shape(parents))
    rows = tf.reshape(tf.range(batch)[:, None] * beams + parents, [-1])  # (B·K,)
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), state)


def select(state: Any, sentences: tf.Tensor, beams: int) -> Any:
    """The state of B'·K beams of only the sentences at the indices `sentences` (B',)."""
    if manages_beams(state):
        return state.selected(sentences)
    rows = tf.reshape(sentences[:, None] * beams + tf.range(beams), [-1])  # (B'·K,)
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), state)
