"""One step of a beam search: what could come next, what of it ends, what of it lives on.

Shapes: B sentences, K beams, V vocabulary, t tokens so far.
"""

import math
from typing import NamedTuple

import tensorflow as tf

NEVER = float("-inf")  # the log probability of what cannot happen, the score of an empty place
WIDEST_BLOCK = 64  # columns


class Live(NamedTuple):
    """Hypotheses still growing; those with log probability -inf are places without one."""

    ids: tf.Tensor  # (B, K, t) int32
    log_probs: tf.Tensor  # (B, K) float32


class Candidates(NamedTuple):
    """The best 2K continuations of the live hypotheses, best first."""

    log_probs: tf.Tensor  # (B, 2K) float32, of the whole hypothesis
    parents: tf.Tensor  # (B, 2K) int32, which beam it continues
    ids: tf.Tensor  # (B, 2K) int32, the token it adds


def expand(
    live: Live,
    logits: tf.Tensor,
    final: tf.Tensor,
    eos_id: int,
    prefix: tf.Tensor | None = None,
    drawn: tf.Tensor | None = None,
) -> tuple[Candidates, tf.Tensor]:
    """Finds the best continuations.

    The best 2K of each row are enough to find the best 2K of a sentence.

    Args:
        live: What is continued.
        logits: Of the next token (B·K, V), or (B, V) where all beams of a sentence are equal.
        final: Sentences that can only end now (B,).
        eos_id: Token that ends a sentence.
        prefix: The token that each sentence takes now at no cost (B,), or -1 for any.
        drawn: With one beam, the token (B,) that stands in place of the best.

    Returns:
        The best 2K, and which sentences (B,) have unusable logits.
    """
    batch, beams = tf.shape(live.log_probs)[0], live.log_probs.shape[1]
    per_row = tf.minimum(2 * beams, tf.shape(logits)[-1])
    rows = tf.shape(logits)[0] // tf.maximum(batch, 1)  # of a sentence
    top, ids, normaliser = _best(logits, per_row)  # (B·K, 2K), (B·K, 2K), (B·K, 1)

    def by_beam(x: tf.Tensor) -> tf.Tensor:  # (B·K, n) -> (B, K, n)
        x = tf.reshape(x, [batch, rows, tf.shape(x)[1]])
        return tf.tile(x, [1, beams // tf.maximum(rows, 1), 1])

    log_probs, ids = by_beam(top - normaliser), by_beam(ids)  # (B, K, 2K)

    def instead(chosen: tf.Tensor, tokens: tf.Tensor, cost: tf.Tensor | None = None) -> None:
        """Leaves the chosen sentences (B,) a token alone."""
        nonlocal log_probs, ids
        if cost is None:
            each = tf.repeat(tf.maximum(tokens, 0), rows)
            cost = by_beam(tf.gather(logits, each, batch_dims=1)[:, None] - normaliser)  # (B, K, 1)
        cost = tf.where(tf.range(per_row) == 0, cost, NEVER)  # (B, K, 2K)
        log_probs = tf.where(chosen[:, None, None], cost, log_probs)
        ids = tf.where(chosen[:, None, None], tokens[:, None, None], ids)

    if drawn is not None:
        instead(tf.ones_like(final), drawn)
    # At its last step a hypothesis can only end; eos is worth what the model gives it.
    instead(final, tf.fill(tf.shape(final), eos_id))
    if prefix is not None:
        instead(prefix >= 0, prefix, tf.zeros([1, 1, 1]))

    exists = live.log_probs[:, :, None] > NEVER  # (B, K, 1)
    usable = tf.math.is_finite(by_beam(normaliser))  # (B, K, 1)
    broken = tf.reduce_any(exists & ~usable, axis=[1, 2])  # (B,)
    log_probs = tf.where(exists & usable, live.log_probs[:, :, None] + log_probs, NEVER)

    best, places = tf.math.top_k(tf.reshape(log_probs, [batch, beams * per_row]), 2 * beams)
    ids = tf.gather(tf.reshape(ids, [batch, beams * per_row]), places, batch_dims=1)
    return Candidates(best, places // per_row, ids), broken


def _best(logits: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the best n logits of each row, their tokens, and the log-sum-exp of the row; in few passes over V.

    The best n lie in the n blocks of columns with the largest maxima. These are found in a pass that compares many
    columns at a time, as `tf.math.top_k` does not.
    """
    columns = tf.shape(logits)[-1]
    width = math.gcd(logits.shape[-1] or 1, WIDEST_BLOCK)
    probabilities = tf.nn.softmax(logits)  # NaN throughout a row that has no distribution
    broken = tf.math.is_nan(probabilities[:, :1])  # (N, 1) with N = B·K; sorting NaN is undefined
    blocks = tf.reshape(logits, [-1, columns // width, width])  # (N, V/w, w)
    maxima = tf.where(broken, 0.0, tf.reduce_max(blocks, axis=-1))  # (N, V/w)
    _, chosen = tf.math.top_k(maxima, tf.minimum(number, columns // width))  # (N, n)
    chosen = tf.sort(chosen, axis=-1)  # so that of equal logits the first is taken
    among = tf.reshape(tf.gather(blocks, chosen, batch_dims=1), [tf.shape(logits)[0], -1])  # (N, n·w)
    top, places = tf.math.top_k(tf.where(broken, 0.0, among), number)  # (N, n)
    ids = tf.gather(chosen, places // width, batch_dims=1) * width + places % width
    # Σ exp z from exp z / Σ exp z of the best, the largest and so the most precise.
    largest = tf.gather(probabilities, ids[:, :1], batch_dims=1)  # (N, 1)
    return top, ids, top[:, :1] - tf.math.log(largest)


def survivors(live: Live, candidates: Candidates, eos_id: int) -> tuple[Live, tf.Tensor]:
    """Finds the best K candidates that do not end.

    Args:
        live: What was continued.
        candidates: Its continuations.
        eos_id: Token that ends a sentence.

    Returns:
        What lives on, and the beams (B, K) that it continues.
    """
    beams = live.log_probs.shape[1]
    log_probs = tf.where(candidates.ids == eos_id, NEVER, candidates.log_probs)
    log_probs, places = tf.math.top_k(log_probs, beams)  # (B, K)
    parents = tf.gather(candidates.parents, places, batch_dims=1)
    ids = tf.gather(candidates.ids, places, batch_dims=1)
    return Live(extended(live.ids, parents, ids), log_probs), parents


def extended(ids: tf.Tensor, parents: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """The tokens of the parents with one more at the end.

    Args:
        ids: (B, K, t).
        parents: (B, K).
        last: (B, K).

    Returns:
        (B, K, t + 1).
    """
    return tf.concat([tf.gather(ids, parents, batch_dims=1), last[:, :, None]], axis=2)
