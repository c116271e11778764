"""The loop variables of a search, and the state of the model among them.

Shapes: B sentences, K beams.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.decoding.hypotheses import Alive, Hypotheses
from keras_attention.decoding.tensors import known_value, take_rows


class Search(NamedTuple):
    """The loop variables of the sentences that are still in the batch."""

    alive: Alive
    finished: Hypotheses  # K slots
    done: Any  # (B,) bool
    last_ids: Any  # (B·K,) int32; (B,) before the first step of a state that starts with one row
    state: Any


def reorder(state: Any, parents: Any) -> Any:
    """Returns the state of B·K beams in which each beam continues another of its sentence, `parents` (B, K)."""
    if manages_beams(state):
        return state.reordered(parents)
    batch, beams = ops.shape(parents)
    rows = ops.reshape(ops.arange(batch)[:, None] * beams + parents, (-1,))  # (B·K,)
    return _take(state, rows)


def select(state: Any, sentences: Any, beams: Any) -> Any:
    """Returns the state of B'·K beams of only the sentences at the indices `sentences` (B',)."""
    if manages_beams(state):
        return state.selected(sentences)
    rows = ops.reshape(sentences[:, None] * beams + ops.arange(beams), (-1,))  # (B'·K,)
    return _take(state, rows)


def manages_beams(state: Any) -> bool:
    """Returns whether a state has methods that reorder and select it; a plain nest of tensors has none."""
    return all(hasattr(state, name) for name in ("reordered", "selected"))


def initial_rows(state: Any, beams: int) -> int:
    """Returns the number of rows of each sentence in the first step, 1 or K."""
    return 1 if getattr(state, "starts_with_one_row", False) else beams


def check_state(state: Any, batch_size: Any, beam_size: int) -> None:
    """Checks that each tensor has a row for each beam, as far as the shapes are known.

    On a GPU, gathering missing rows gives zeros: a wrong result without an error.
    """
    sentences = known_value(batch_size)
    for x in keras.tree.flatten(state):
        rows = x.shape[0] if len(x.shape) else 0
        if not len(x.shape) or (None not in (sentences, rows) and rows != sentences * beam_size):
            raise ValueError(
                "Each tensor of the state needs one row for each beam, the beams of a sentence "
                "next to each other: repeat rows with keras.ops.repeat(x, beam_size, axis=0). Received: "
                f"shape={tuple(x.shape)}, batch_size={sentences}, beam_size={beam_size}"
            )


def _take(state: Any, rows: Any) -> Any:
    """Gathers rows of each tensor; a scalar, such as the length of a cache, is the same for all of them."""
    return keras.tree.map_structure(lambda x: take_rows(x, rows) if len(x.shape) else x, state)
