"""What beam search checks about its arguments; each message says how to mend them."""

from typing import Any

import tensorflow as tf


def limits(max_length: int | tf.Tensor, batch_size: int | tf.Tensor) -> tf.Tensor:
    """Returns `max_length` as one number for each sentence (B,), checked as early as possible."""
    max_length = tf.cast(max_length, tf.int32)
    if max_length.shape.rank not in (0, 1):
        raise ValueError(
            "max_length must be one number or one for each sentence (B,). "
            f"Received: a tensor of shape {max_length.shape}"
        )
    known = tf.get_static_value(max_length)
    message = "max_length must be 1 or more (the end of sentence counts). "
    if known is None:
        tf.debugging.assert_positive(max_length, message)
    elif (known < 1).any():
        raise ValueError(f"{message}Received: max_length={known.tolist()}")
    return tf.broadcast_to(max_length, [batch_size])


def check_options(beam_size: int, num_return: int, alpha: float) -> None:
    """Checks the numbers that are given in Python."""
    if beam_size < 1:
        raise ValueError(f"beam_size must be 1 (greedy decoding) or more. Received: beam_size={beam_size}")
    if not 1 <= num_return <= beam_size:
        raise ValueError(
            "num_return must be between 1 and beam_size: ask for fewer hypotheses or search with "
            f"more beams. Received: num_return={num_return}, beam_size={beam_size}"
        )
    if not alpha >= 0:
        raise ValueError(
            f"length_penalty must be 0 (none) or more; the paper uses 0.6. Received: length_penalty={alpha}"
        )


def check_state(state: Any, batch_size: int | tf.Tensor, beam_size: int) -> None:
    """Checks that each tensor has a row for each beam, as far as the shapes are known.

    Gathering rows that are not there gives zeros on a GPU: a wrong result without an error.
    """
    sentences = tf.get_static_value(batch_size)
    for x in tf.nest.flatten(state):
        rows = x.shape[0] if x.shape.rank != 0 else 0
        if x.shape.rank == 0 or (None not in (sentences, rows) and rows != sentences * beam_size):
            raise ValueError(
                "Each tensor of the state needs one row for each beam, the beams of a sentence "
                "side by side: repeat rows with tf.repeat(x, beam_size, axis=0). Received: a "
                f"tensor of shape {x.shape}, batch_size={sentences}, beam_size={beam_size}"
            )


def check_logits(logits: tf.Tensor, eos_id: int) -> None:
    """Checks the shape of what the caller's `step` returned."""
    if logits.shape.rank != 2:
        raise ValueError(
            "step must return the logits of the next token, (batch_size * beam_size, vocabulary). "
            f"Received: shape {logits.shape}"
        )
    if logits.shape[1] is not None and not 0 <= eos_id < logits.shape[1]:
        raise ValueError(f"eos_id must be a token of the vocabulary of {logits.shape[1]}. Received: eos_id={eos_id}")
