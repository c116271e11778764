"""What a model carries from step to step, and what a search does with it.

A state is either a nest of tensors with a row for each beam, or an object that knows better: a nest with the
methods `reordered(parents)` and `selected(sentences)`. Where the latter says `equal_at_first`, one row stands for all
beams of a sentence in the first step.
"""

from typing import Any

import tensorflow as tf


def knows_better(state: Any) -> bool:
    """Whether a state looks after its beams itself.

    Args:
        state: From the caller of a search.

    Returns:
        False for a plain nest of tensors.
    """
    return all(hasattr(state, name) for name in ("reordered", "selected"))


def rows_at_first(state: Any, beams: int) -> int:
    """How many rows of each sentence the first step is given.

    Args:
        state: From the caller of a search.
        beams: K.

    Returns:
        1 or K.
    """
    return 1 if getattr(state, "equal_at_first", False) else beams


def reordered(state: Any, parents: tf.Tensor) -> Any:
    """The state where each beam continues another one.

    Args:
        state: Of B·K beams.
        parents: Which of its sentence's (B, K).

    Returns:
        A new state.
    """
    if knows_better(state):
        return state.reordered(parents)
    batch, beams = tf.unstack(tf.shape(parents))
    rows = tf.reshape(tf.range(batch)[:, None] * beams + parents, [-1])  # (B·K,)
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), state)


def selected(state: Any, sentences: tf.Tensor, beams: int) -> Any:
    """The state of some of the sentences.

    Args:
        state: Of B·K beams.
        sentences: Their places (B',).
        beams: K.

    Returns:
        A new state, of B'·K beams.
    """
    if knows_better(state):
        return state.selected(sentences)
    rows = tf.reshape(sentences[:, None] * beams + tf.range(beams), [-1])  # (B'·K,)
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), state)
