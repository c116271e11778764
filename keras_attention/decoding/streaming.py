"""Streaming: tokens one at a time, from a loop in Python around a step in a graph.

Shapes: B sequences, V vocabulary, t tokens written so far.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_attention.decoding.beam_search import Step, check_logits

# From logits and the tokens written so far to the next tokens and their log probabilities.
Choose = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Streamed(NamedTuple):
    """One token of each sequence.

    Attributes:
        ids: Token ids (B,) int32; padding for sequences that have ended before.
        log_probs: Log probability of each token (B,) float32; 0 for sequences that have ended before.
        done: Whether each sequence has ended (B,), this token counted.
    """

    ids: np.ndarray
    log_probs: np.ndarray
    done: np.ndarray


def stream_tokens(
    step: Step,
    state: Any,
    last_ids: tf.Tensor,
    *,
    max_length: int,
    eos_id: int,
    choose: Choose,
    pad_id: int = 0,
) -> Iterator[Streamed]:
    """Yields one token of each sequence at a time, as soon as it is chosen.

    The stream ends when every sequence has ended; at `max_length`, unfinished sequences take eos, as in `beam_search`.
    A sequence for which the model gives NaN, +inf or only -inf, or whose tokens are all forbidden, ends at once with
    padding whose log probability is NaN; the others continue.

    Args:
        step: Takes the last token of each sequence (B,) int32 and the state; returns the logits of the next token
            (B, V) and the new state. `compiled_step` makes it fast.
        state: Nest of tensors for the first step.
        last_ids: Token before the first (B,): the begin of sentence, or the last token of a prompt of which the state
            has read the others.
        max_length: Maximum number of tokens, eos counted.
        eos_id: Token that ends a sequence.
        choose: Takes logits (B, V) and the tokens written so far (B, t); returns ids (B,) int32 and their log
            probabilities (B,), NaN where no token is allowed, as `greedy` and `sample` do.
        pad_id: Token after the end.

    Returns:
        An iterator over `Streamed`.

    Raises:
        ValueError: If `max_length` is below 1, or the logits that `step` returns have another shape.

    Example:
        >>> from keras_attention.decoding.sampling import greedy
        >>> logits = tf.constant([[0.0, 0.0, 0.0, 1.0, 4.0], [0.0, 0.0, 0.0, 9.0, 1.0]])
        >>> def step(ids, state):  # token 4 first, then eos (3)
        ...     return tf.gather(logits, tf.cast(ids == 4, tf.int32)), state
        >>> tokens = stream_tokens(step, (), [2], max_length=5, eos_id=3, choose=lambda logits, ids: greedy(logits))
        >>> [int(token.ids[0]) for token in tokens]
        [4, 3]
    """
    if max_length < 1:
        raise ValueError(
            f"max_length must be 1 or more (the end of sentence counts). Received: max_length={max_length}"
        )
    last_ids = tf.cast(last_ids, tf.int32)
    if last_ids.shape.rank != 1:
        raise ValueError(
            "last_ids must be one token for each sequence (B,); run the tokens of a prompt before its last one through "
            f"the model first. Received: last_ids.shape={last_ids.shape}"
        )
    return _tokens(step, state, last_ids, max_length, eos_id, choose, pad_id)


def compiled_step(step: Step, state: Any) -> Step:
    """Compiles a step to one graph for any number of sequences and any length of the state.

    Tracing takes seconds for a large model: use one compiled step for all streams. Tensors that differ between streams,
    such as the encoder's output, must be part of the state, or the graph keeps those of the first.

    Args:
        step: See `stream_tokens`.
        state: An example of a state. The first axis of a tensor may have another size later, and so may the last but
            one; of a matrix the last.

    Returns:
        The compiled step.

    Example:
        >>> def count(ids, state):
        ...     return tf.one_hot(ids + 1, 5), tf.concat([state, ids[:, None]], axis=1)
        >>> step = compiled_step(count, tf.zeros([1, 0], tf.int32))
        >>> step(tf.constant([2, 3]), tf.zeros([2, 0], tf.int32))[1].shape
        TensorShape([2, 1])
    """

    def spec(x: Any) -> tf.TensorSpec:
        x = tf.convert_to_tensor(x)
        varying = (0, max(1, x.shape.rank - 2))
        return tf.TensorSpec([None if axis in varying else size for axis, size in enumerate(x.shape)], x.dtype)

    signature = [tf.TensorSpec([None], tf.int32), tf.nest.map_structure(spec, state)]
    return tf.function(step, input_signature=signature, autograph=False)


def _tokens(
    step: Step, state: Any, last_ids: tf.Tensor, max_length: int, eos_id: int, choose: Choose, pad_id: int
) -> Iterator[Streamed]:
    """Yields the tokens of `stream_tokens`, which is no generator, to check its arguments at the call."""
    written = tf.zeros([tf.size(last_ids), 0], tf.int32)  # (B, t)
    done = np.zeros(len(last_ids), bool)
    while not done.all():
        logits, state = step(last_ids, state)
        check_logits(logits, eos_id)
        logits = tf.cast(logits, tf.float32)
        ids, processed_log_probs = choose(logits, written)  # (B,), (B,)
        ids = tf.cast(ids, tf.int32) if written.shape[1] + 1 < max_length else tf.fill(tf.shape(ids), eos_id)
        log_total = tf.reduce_logsumexp(logits, axis=-1)  # (B,)
        broken = ~tf.math.is_finite(log_total) | tf.math.is_nan(processed_log_probs)
        log_probs = tf.where(broken, float("nan"), tf.gather(logits, ids, batch_dims=1) - log_total)
        last_ids = tf.where(done | broken, pad_id, ids)
        written = tf.concat([written, last_ids[:, None]], axis=1)
        log_probs = np.where(done, np.float32(0), log_probs.numpy())
        done = done | broken.numpy() | (last_ids.numpy() == eos_id)
        yield Streamed(last_ids.numpy(), log_probs, done)
