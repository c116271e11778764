"""The hypotheses of a beam search: their scores, how they grow by a token, which are kept.

A hypothesis is *alive* until it takes the end of sentence (eos); then it is *finished*, and its score no longer
changes.

Shapes: B sentences, K beams, V vocabulary, t tokens so far.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from keras_attention.decoding.logits_processors import NEG_INF

MAX_BLOCK_WIDTH = 64  # columns


class Alive(NamedTuple):
    """Unfinished hypotheses; an empty slot has log probability -inf."""

    ids: tf.Tensor  # (B, K, t) int32
    log_probs: tf.Tensor  # (B, K) float32


class Candidates(NamedTuple):
    """The best 2K continuations of the hypotheses alive, best first."""

    log_probs: tf.Tensor  # (B, 2K) float32, of the whole hypothesis
    parents: tf.Tensor  # (B, 2K) int32, the beam that it continues
    ids: tf.Tensor  # (B, 2K) int32, the token that it adds


class Hypotheses(NamedTuple):
    """Finished hypotheses, best first; an empty slot has length 0 and score -inf."""

    ids: tf.Tensor  # (B, n, L) int32, eos included, then pads
    scores: tf.Tensor  # (B, n) float32
    lengths: tf.Tensor  # (B, n) int32, eos counted


def length_penalty(length: tf.Tensor | int, alpha: float) -> tf.Tensor:
    """Returns the divisor of a hypothesis' log probability that gives its score: `((5 + n) / 6) ** alpha`.

    It makes hypotheses of different lengths comparable. A sum of log probabilities falls with each token, so without
    a penalty (`alpha=0`) short ones win; `alpha=1` is close to a mean.

    Args:
        length: Number of tokens n, the end of sentence counted.
        alpha: Strength of the penalty; the Transformer paper uses 0.6.

    Returns:
        The penalty, in float32, of the shape of `length`.

    Example:
        >>> float(length_penalty(1, 0.6))
        1.0
        >>> float(length_penalty(7, 1.0))
        2.0

    Source: Wu et al. 2016, "Google's Neural Machine Translation System", equation 14.
    """
    return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** alpha


def average_length(length: tf.Tensor | int, alpha: float) -> tf.Tensor:
    """Returns `n ** alpha`, with which a score at `alpha=1` is the mean log probability of a token.

    Args:
        length: Number of tokens n, the end of sentence counted.
        alpha: Strength of the penalty.

    Returns:
        The penalty, in float32, of the shape of `length`.

    Example:
        >>> float(average_length(9, 0.5))
        3.0
    """
    return tf.cast(length, tf.float32) ** alpha


def first_alive(prompt: tf.Tensor, beam_size: int) -> Alive:
    """Returns the hypotheses before the first step, which consist of the prompt (B, t)."""
    # The beams start equal: all but one are empty, or the search would follow each hypothesis K times.
    log_probs = tf.tile([[0.0] + [NEG_INF] * (beam_size - 1)], [tf.shape(prompt)[0], 1])
    return Alive(_tile_beams(prompt, beam_size), log_probs)


def none_finished(prompt: tf.Tensor, beam_size: int, pad_id: int) -> Hypotheses:
    """Returns K empty slots for each sentence, as long as the prompt (B, t)."""
    slots = [tf.shape(prompt)[0], beam_size]
    ids = tf.fill(tf.shape(prompt), pad_id)
    return Hypotheses(_tile_beams(ids, beam_size), tf.fill(slots, NEG_INF), tf.zeros(slots, tf.int32))


def _tile_beams(ids: tf.Tensor, beam_size: int) -> tf.Tensor:
    """Repeats ids (B, t) for each beam, (B, K, t)."""
    return tf.tile(ids[:, None], [1, beam_size, 1])


def grow(
    alive: Alive,
    logits: tf.Tensor,
    final: tf.Tensor,
    eos_id: int,
    forced: tf.Tensor | None = None,
    sampled: tf.Tensor | None = None,
) -> tuple[Candidates, tf.Tensor]:
    """Returns the best 2K continuations of the hypotheses alive, and which sentences (B,) have unusable logits.

    `logits` are (B·K, V), or (B, V) where all beams of a sentence are equal. Sentences that are `final` (B,) can only
    end. `forced` (B,) are tokens to take at no cost, or -1 for any; with one beam, `sampled` (B,) are those to take
    instead of the best.
    """
    batch, beams = tf.shape(alive.log_probs)[0], alive.log_probs.shape[1]
    rows = tf.shape(logits)[0] // tf.maximum(batch, 1)  # of a sentence: K, or one for all
    per_row = tf.minimum(2 * beams, tf.shape(logits)[-1])  # enough to find the best 2K of a sentence
    top, ids, log_total = _top_logits(logits, per_row)  # (B·K, 2K), (B·K, 2K), (B·K, 1)

    def by_beam(x: tf.Tensor) -> tf.Tensor:  # (B·K, n) -> (B, K, n)
        x = tf.reshape(x, [batch, rows, tf.shape(x)[1]])
        return tf.tile(x, [1, beams // tf.maximum(rows, 1), 1])

    def log_probs_of(tokens: tf.Tensor) -> tf.Tensor:  # (B,) -> (B, K, 1)
        return by_beam(tf.gather(logits, tf.repeat(tokens, rows), batch_dims=1)[:, None] - log_total)

    def restrict(
        best: tuple[tf.Tensor, tf.Tensor], sentences: tf.Tensor, tokens: tf.Tensor, log_probs: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Leaves the sentences (B,) that are true one token each."""
        log_probs = tf.where(tf.range(per_row) == 0, log_probs, NEG_INF)  # (B, K, 2K)
        replaced = sentences[:, None, None]
        return tf.where(replaced, log_probs, best[0]), tf.where(replaced, tokens[:, None, None], best[1])

    best = by_beam(top - log_total), by_beam(ids)  # (B, K, 2K), (B, K, 2K)
    if sampled is not None:
        best = restrict(best, tf.ones_like(final), sampled, log_probs_of(sampled))
    # At its last step a hypothesis can only end, with the log probability that the model gives eos.
    ends = tf.fill(tf.shape(final), eos_id)
    best = restrict(best, final, ends, log_probs_of(ends))
    if forced is not None:
        best = restrict(best, forced >= 0, forced, tf.zeros([1, 1, 1]))
    log_probs, ids = best

    exists = alive.log_probs[:, :, None] > NEG_INF  # (B, K, 1)
    usable = tf.math.is_finite(by_beam(log_total))  # (B, K, 1)
    broken = tf.reduce_any(exists & ~usable, axis=[1, 2])  # (B,)
    log_probs = tf.where(exists & usable, alive.log_probs[:, :, None] + log_probs, NEG_INF)

    log_probs, indices = tf.math.top_k(tf.reshape(log_probs, [batch, beams * per_row]), 2 * beams)
    ids = tf.gather(tf.reshape(ids, [batch, beams * per_row]), indices, batch_dims=1)
    return Candidates(log_probs, indices // per_row, ids), broken


def _top_logits(logits: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the best n logits of each row, their tokens, and the log-sum-exp of the row, in few passes over V.

    The best n are in the n blocks of columns with the largest maxima. These are found in a pass that compares many
    columns at a time, which `tf.math.top_k` does not.
    """
    columns = tf.shape(logits)[-1]
    width = math.gcd(logits.shape[-1] or 1, MAX_BLOCK_WIDTH)
    probabilities = tf.nn.softmax(logits)  # NaN throughout a row that has no distribution
    broken = tf.math.is_nan(probabilities[:, :1])  # (N, 1) with N = B·K; sorting NaN is undefined
    blocks = tf.reshape(logits, [-1, columns // width, width])  # (N, V/w, w)
    maxima = tf.where(broken, 0.0, tf.reduce_max(blocks, axis=-1))  # (N, V/w)
    _, best_blocks = tf.math.top_k(maxima, tf.minimum(number, columns // width))  # (N, n)
    best_blocks = tf.sort(best_blocks, axis=-1)  # so that of equal logits the first is taken
    values = tf.reshape(tf.gather(blocks, best_blocks, batch_dims=1), [tf.shape(logits)[0], -1])  # (N, n·w)
    top, indices = tf.math.top_k(tf.where(broken, 0.0, values), number)  # (N, n)
    ids = tf.gather(best_blocks, indices // width, batch_dims=1) * width + indices % width
    # Σ exp z from exp z / Σ exp z of the best, the largest and so the most precise.
    largest = tf.gather(probabilities, ids[:, :1], batch_dims=1)  # (N, 1)
    return top, ids, top[:, :1] - tf.math.log(largest)


def keep_alive(alive: Alive, candidates: Candidates, eos_id: int) -> tuple[Alive, tf.Tensor]:
    """Returns the best K candidates that do not end, and the beams (B, K) that they continue."""
    beams = alive.log_probs.shape[1]
    log_probs = tf.where(candidates.ids == eos_id, NEG_INF, candidates.log_probs)
    log_probs, indices = tf.math.top_k(log_probs, beams)  # (B, K)
    parents = tf.gather(candidates.parents, indices, batch_dims=1)
    ids = tf.gather(candidates.ids, indices, batch_dims=1)
    return Alive(_append_token(alive.ids, parents, ids), log_probs), parents


def finish(alive: Alive, candidates: Candidates, eos_id: int, length: tf.Tensor, penalty: tf.Tensor) -> Hypotheses:
    """Returns the candidates within the best K that end, with their scores; the others leave empty slots."""
    beams = alive.log_probs.shape[1]
    log_probs, parents, ids = (x[:, :beams] for x in candidates)
    ends = (ids == eos_id) & (log_probs > NEG_INF)  # (B, K)
    return Hypotheses(
        _append_token(alive.ids, parents, ids),
        tf.where(ends, log_probs / penalty, NEG_INF),
        tf.where(ends, length, 0),
    )


def _append_token(ids: tf.Tensor, parents: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """Appends the last tokens (B, K) to the tokens (B, K, t) of their parents (B, K)."""
    return tf.concat([tf.gather(ids, parents, batch_dims=1), last[:, :, None]], axis=2)


def keep_best(finished: Hypotheses, ended: Hypotheses, broken: tf.Tensor, done: tf.Tensor, pad_id: int) -> Hypotheses:
    """Returns the best K of the finished hypotheses and those that just ended.

    Sentences that are `done` (B,) keep theirs; `broken` ones (B,) have scores of NaN and no tokens.
    """
    beams = finished.scores.shape[1]
    before = finished._replace(ids=tf.pad(finished.ids, [[0, 0], [0, 0], [0, 1]], constant_values=pad_id))
    ids, scores, lengths = (tf.concat([old, new], axis=1) for old, new in zip(before, ended, strict=True))
    scores, indices = tf.math.top_k(tf.where(done[:, None], NEG_INF, scores), beams)  # (B, K)
    lengths = tf.gather(lengths, indices, batch_dims=1)
    ids = tf.where(lengths[:, :, None] > 0, tf.gather(ids, indices, batch_dims=1), pad_id)
    after = _where(broken, Hypotheses(pad_id, float("nan"), 0), Hypotheses(ids, scores, lengths))
    return _where(done, before, after)


def _where(sentences: tf.Tensor, x: Hypotheses, y: Hypotheses) -> Hypotheses:
    """Returns the hypotheses of `x` for the sentences (B,) that are true, of `y` for the others."""

    def where(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reshape(sentences, [-1] + [1] * (y.shape.rank - 1)), x, y)

    return Hypotheses(*map(where, x, y))


def is_settled(
    alive: Alive, finished: Hypotheses, penalty: tf.Tensor, last_penalty: tf.Tensor, num_return: int
) -> tf.Tensor:
    """Returns the sentences (B,) whose result no hypothesis alive can change, from the penalties now and at the limit.

    Log probabilities only fall, and no penalty is larger than that at the sentence's `max_length`, so no
    hypothesis alive can score above its log probability over that penalty. Where K are finished, the search does not
    wait for one that scores below all of them now. That K are finished is not enough: next to a hypothesis that the
    model is sure of, the next best are ends that come too early.
    """
    best_alive = tf.reduce_max(alive.log_probs, axis=1)  # (B,)
    out_of_reach = finished.scores[:, num_return - 1] >= best_alive / last_penalty
    below_all = finished.scores[:, -1] >= best_alive / penalty
    return out_of_reach | below_all
