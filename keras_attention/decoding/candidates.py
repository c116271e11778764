"""One step of a beam search: the best continuations, and which of them stay alive.

Shapes: B sentences, K beams, V vocabulary, t tokens so far.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from keras_attention.decoding.logits_processors import NEG_INF

WIDEST_BLOCK = 64  # columns


class Alive(NamedTuple):
    """Unfinished hypotheses; a slot with log probability -inf is empty."""

    ids: tf.Tensor  # (B, K, t) int32
    log_probs: tf.Tensor  # (B, K) float32


class Candidates(NamedTuple):
    """The best 2K continuations of the hypotheses alive, best first."""

    log_probs: tf.Tensor  # (B, 2K) float32, of the whole hypothesis
    parents: tf.Tensor  # (B, 2K) int32, which beam it continues
    ids: tf.Tensor  # (B, 2K) int32, the token it adds


def grow(
    alive: Alive,
    logits: tf.Tensor,
    final: tf.Tensor,
    eos_id: int,
    forced: tf.Tensor | None = None,
    sampled: tf.Tensor | None = None,
) -> tuple[Candidates, tf.Tensor]:
    """Finds the best continuations.

    The best 2K of each row are enough to find the best 2K of a sentence.

    Args:
        alive: The hypotheses to continue.
        logits: Logits of the next token (B·K, V), or (B, V) where all beams of a sentence are equal.
        final: Sentences that can only end now (B,).
        eos_id: Token that ends a sentence.
        forced: The token (B,) that each sentence must take now at no cost, or -1 for any.
        sampled: With one beam, the token (B,) to take instead of the best.

    Returns:
        The best 2K, and which sentences (B,) have unusable logits.
    """
    batch, beams = tf.shape(alive.log_probs)[0], alive.log_probs.shape[1]
    per_row = tf.minimum(2 * beams, tf.shape(logits)[-1])
    rows = tf.shape(logits)[0] // tf.maximum(batch, 1)  # of a sentence
    top, ids, log_total = _top_logits(logits, per_row)  # (B·K, 2K), (B·K, 2K), (B·K, 1)

    def by_beam(x: tf.Tensor) -> tf.Tensor:  # (B·K, n) -> (B, K, n)
        x = tf.reshape(x, [batch, rows, tf.shape(x)[1]])
        return tf.tile(x, [1, beams // tf.maximum(rows, 1), 1])

    log_probs, ids = by_beam(top - log_total), by_beam(ids)  # (B, K, 2K)

    def restrict(chosen: tf.Tensor, tokens: tf.Tensor, cost: tf.Tensor | None = None) -> None:
        """Leaves the chosen sentences (B,) one token each."""
        nonlocal log_probs, ids
        if cost is None:
            each = tf.repeat(tf.maximum(tokens, 0), rows)
            cost = by_beam(tf.gather(logits, each, batch_dims=1)[:, None] - log_total)  # (B, K, 1)
        cost = tf.where(tf.range(per_row) == 0, cost, NEG_INF)  # (B, K, 2K)
        log_probs = tf.where(chosen[:, None, None], cost, log_probs)
        ids = tf.where(chosen[:, None, None], tokens[:, None, None], ids)

    if sampled is not None:
        restrict(tf.ones_like(final), sampled)
    # At its last step a hypothesis can only end, with the log probability that the model gives eos.
    restrict(final, tf.fill(tf.shape(final), eos_id))
    if forced is not None:
        restrict(forced >= 0, forced, tf.zeros([1, 1, 1]))

    exists = alive.log_probs[:, :, None] > NEG_INF  # (B, K, 1)
    usable = tf.math.is_finite(by_beam(log_total))  # (B, K, 1)
    broken = tf.reduce_any(exists & ~usable, axis=[1, 2])  # (B,)
    log_probs = tf.where(exists & usable, alive.log_probs[:, :, None] + log_probs, NEG_INF)

    best, indices = tf.math.top_k(tf.reshape(log_probs, [batch, beams * per_row]), 2 * beams)
    ids = tf.gather(tf.reshape(ids, [batch, beams * per_row]), indices, batch_dims=1)
    return Candidates(best, indices // per_row, ids), broken


def _top_logits(logits: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The best n logits of each row, their tokens, and the log-sum-exp of the row, in few passes over V.

    The best n are in the n blocks of columns with the largest maxima. These are found in a pass that compares many
    columns at a time, which `tf.math.top_k` does not.
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
    top, indices = tf.math.top_k(tf.where(broken, 0.0, among), number)  # (N, n)
    ids = tf.gather(chosen, indices // width, batch_dims=1) * width + indices % width
    # Σ exp z from exp z / Σ exp z of the best, the largest and so the most precise.
    largest = tf.gather(probabilities, ids[:, :1], batch_dims=1)  # (N, 1)
    return top, ids, top[:, :1] - tf.math.log(largest)


def keep_alive(alive: Alive, candidates: Candidates, eos_id: int) -> tuple[Alive, tf.Tensor]:
    """The best K candidates that do not end, and the beams (B, K) that they continue."""
    beams = alive.log_probs.shape[1]
    log_probs = tf.where(candidates.ids == eos_id, NEG_INF, candidates.log_probs)
    log_probs, indices = tf.math.top_k(log_probs, beams)  # (B, K)
    parents = tf.gather(candidates.parents, indices, batch_dims=1)
    ids = tf.gather(candidates.ids, indices, batch_dims=1)
    return Alive(append_token(alive.ids, parents, ids), log_probs), parents


def append_token(ids: tf.Tensor, parents: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """The tokens (B, K, t) of the parents (B, K), followed by the last ones (B, K)."""
    return tf.concat([tf.gather(ids, parents, batch_dims=1), last[:, :, None]], axis=2)
