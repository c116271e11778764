"""Streaming: tokens one at a time, from a loop in Python around a compiled step.

Shapes: B sequences, V vocabulary, t tokens written so far.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_attention.decoding.beam_search import Step, check_logits
from keras_attention.decoding.tensors import gather, is_tensorflow

# From logits and the tokens written so far to the next tokens and their log probabilities.
Choose = Callable[[Any, Any], tuple[Any, Any]]


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
    last_ids: Any,
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
        >>> logits = keras.ops.array([[0.0, 0.0, 0.0, 1.0, 4.0], [0.0, 0.0, 0.0, 9.0, 1.0]])
        >>> def step(ids, state):  # token 4 first, then eos (3)
        ...     return keras.ops.take(logits, keras.ops.cast(ids == 4, "int32"), axis=0), state
        >>> tokens = stream_tokens(step, (), [2], max_length=5, eos_id=3, choose=lambda logits, ids: greedy(logits))
        >>> [int(token.ids[0]) for token in tokens]
        [4, 3]
    """
    if max_length < 1:
        raise ValueError(
            f"max_length must be 1 or more (the end of sentence counts). Received: max_length={max_length}"
        )
    last_ids = ops.cast(last_ids, "int32")
    if len(last_ids.shape) != 1:
        raise ValueError(
            "last_ids must be one token for each sequence (B,); run the tokens of a prompt before its last one through "
            f"the model first. Received: last_ids.shape={tuple(last_ids.shape)}"
        )
    return _tokens(step, state, last_ids, max_length, eos_id, choose, pad_id)


def compiled_step(step: Step, state: Any) -> Step:
    """Compiles a step to one graph for any number of sequences and any length of the state; on JAX one for each shape.

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
        ...     return keras.ops.one_hot(ids + 1, 5), keras.ops.concatenate([state, ids[:, None]], axis=1)
        >>> step = compiled_step(count, keras.ops.zeros((1, 0), "int32"))
        >>> tuple(step(keras.ops.array([2, 3], "int32"), keras.ops.zeros((2, 0), "int32"))[1].shape)
        (2, 1)
    """

    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(step)
    if not is_tensorflow():
        return step
    import tensorflow as tf

    def spec(x: Any) -> tf.TensorSpec:
        x = tf.convert_to_tensor(x)
        varying = (0, max(1, x.shape.rank - 2))
        return tf.TensorSpec([None if axis in varying else size for axis, size in enumerate(x.shape)], x.dtype)

    signature = [tf.TensorSpec([None], tf.int32), tf.nest.map_structure(spec, state)]
    return tf.function(step, input_signature=signature, autograph=False)


def _tokens(
    step: Step, state: Any, last_ids: Any, max_length: int, eos_id: int, choose: Choose, pad_id: int
) -> Iterator[Streamed]:
    """Yields the tokens of `stream_tokens`, which is no generator, to check its arguments at the call."""
    written = np.zeros((len(last_ids), 0), "int32")  # (B, t)
    done = np.zeros(len(last_ids), bool)
    while not done.all():
        logits, state = step(last_ids, state)
        check_logits(logits, eos_id)
        logits = ops.cast(logits, "float32")
        ids, processed_log_probs = choose(logits, ops.convert_to_tensor(written))  # (B,), (B,)
        ids = ops.cast(ids, "int32") if written.shape[1] + 1 < max_length else ops.full(ids.shape, eos_id, "int32")
        log_total = ops.logsumexp(logits, axis=-1)  # (B,)
        broken = ~ops.isfinite(log_total) | ops.isnan(processed_log_probs)
        log_probs = ops.where(broken, float("nan"), gather(logits, ids[:, None])[:, 0] - log_total)
        broken, log_probs = ops.convert_to_numpy(broken), ops.convert_to_numpy(log_probs)
        ids = np.where(done | broken, np.int32(pad_id), ops.convert_to_numpy(ids))
        written = np.concatenate([written, ids[:, None]], axis=1)
        log_probs = np.where(done, np.float32(0), log_probs)
        done = done | broken | (ids == eos_id)
        last_ids = ops.convert_to_tensor(ids)
        yield Streamed(ids, log_probs, done)
