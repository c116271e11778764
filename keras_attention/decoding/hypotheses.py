"""The hypotheses of a beam search: their scores, how they grow by a token, which are kept.

A hypothesis is *alive* until it takes the end of sentence (eos); then it is *finished*, and its score no longer
changes. These are the rules of every search. Token ids grow with each step, or have a fixed length L, of which the
first t are written: then the functions take the index at which the next token is written.

Shapes: B sentences, K beams, V vocabulary, t tokens so far.
"""

import math
from typing import Any, NamedTuple

from keras import ops

from keras_attention.decoding.logits_processors import NEG_INF
from keras_attention.decoding.tensors import append_token, gather, rows_of_each, smaller, top_k

MAX_BLOCK_WIDTH = 64  # columns


class Alive(NamedTuple):
    """Unfinished hypotheses; an empty slot has log probability -inf."""

    ids: Any  # (B, K, t) int32
    log_probs: Any  # (B, K) float32


class Candidates(NamedTuple):
    """The best 2K continuations of the hypotheses alive, best first."""

    log_probs: Any  # (B, 2K) float32, of the whole hypothesis
    parents: Any  # (B, 2K) int32, the beam that it continues
    ids: Any  # (B, 2K) int32, the token that it adds


class Hypotheses(NamedTuple):
    """Finished hypotheses, best first; an empty slot has length 0 and score -inf."""

    ids: Any  # (B, n, L) int32, eos included, then pads
    scores: Any  # (B, n) float32
    lengths: Any  # (B, n) int32, eos counted


def length_penalty(length: Any, alpha: float) -> Any:
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
    return ((5.0 + ops.cast(length, "float32")) / 6.0) ** alpha


def average_length(length: Any, alpha: float) -> Any:
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
    return ops.cast(length, "float32") ** alpha


def first_alive(prompt: Any, beam_size: int, more: int = 0, pad_id: int = 0) -> Alive:
    """Returns the hypotheses before the first step: the prompt (B, t), with room for `more` tokens."""
    # The beams start equal: all but one are empty, or the search would follow each hypothesis K times.
    log_probs = ops.broadcast_to([[0.0] + [NEG_INF] * (beam_size - 1)], (ops.shape(prompt)[0], beam_size))
    return Alive(_repeat_for_beams(_append_padding(prompt, more, pad_id), beam_size), log_probs)


def none_finished(prompt: Any, beam_size: int, pad_id: int, more: int = 0) -> Hypotheses:
    """Returns K empty slots for each sentence, as long as the prompt (B, t) and `more` tokens."""
    slots = (ops.shape(prompt)[0], beam_size)
    ids = _append_padding(ops.full_like(prompt, pad_id), more, pad_id)
    return Hypotheses(_repeat_for_beams(ids, beam_size), ops.full(slots, NEG_INF, "float32"), ops.zeros(slots, "int32"))


def _append_padding(ids: Any, more: int, pad_id: int) -> Any:
    """Appends padding to ids (…, t)."""
    return ops.pad(ids, [(0, 0)] * (len(ids.shape) - 1) + [(0, more)], constant_values=pad_id) if more else ids


def _repeat_for_beams(ids: Any, beam_size: int) -> Any:
    """Repeats ids (B, t) for each beam, (B, K, t)."""
    batch, length = ops.shape(ids)
    return ops.broadcast_to(ids[:, None], (batch, beam_size, length))


def grow(
    alive: Alive,
    logits: Any,
    final: Any,
    eos_id: int,
    forced: Any | None = None,
    sampled: Any | None = None,
) -> tuple[Candidates, Any]:
    """Returns the best 2K continuations of the hypotheses alive, and which sentences (B,) have unusable logits.

    `logits` are (B·K, V), or (B, V) where all beams of a sentence are equal. Sentences that are `final` (B,) can only
    end. `forced` (B,) are tokens to take at no cost, or -1 for any; with one beam, `sampled` (B,) are those to take
    instead of the best.
    """
    batch, beams = ops.shape(alive.log_probs)[0], alive.log_probs.shape[1]
    rows = rows_of_each(ops.shape(logits)[0], batch)  # of a sentence: K, or one for all
    per_row = smaller(2 * beams, ops.shape(logits)[-1])  # enough to find the best 2K of a sentence
    top, ids, log_total = _top_logits(logits, per_row)  # (B·K, 2K), (B·K, 2K), (B·K, 1)

    def by_beam(x: Any) -> Any:  # (B·K, n) -> (B, K, n), or (B, n) -> (B, 1, n)
        return ops.reshape(x, (batch, rows, ops.shape(x)[1]))

    def log_probs_of(tokens: Any) -> Any:  # (B,) -> (B, K, 1)
        tokens = ops.reshape(ops.broadcast_to(tokens[:, None], (batch, rows)), (-1, 1))
        return by_beam(gather(logits, tokens) - log_total)

    def restrict(best: tuple[Any, Any], sentences: Any, tokens: Any, log_probs: Any) -> tuple[Any, Any]:
        """Leaves the sentences (B,) that are true one token each."""
        log_probs = ops.where(ops.equal(ops.arange(per_row), 0), log_probs, NEG_INF)  # (B, K, 2K)
        replaced = sentences[:, None, None]
        return ops.where(replaced, log_probs, best[0]), ops.where(replaced, tokens[:, None, None], best[1])

    best = by_beam(top - log_total), by_beam(ids)  # (B, K, 2K), (B, K, 2K)
    if sampled is not None:
        best = restrict(best, ops.ones_like(final), sampled, log_probs_of(sampled))
    # At its last step a hypothesis can only end, with the log probability that the model gives eos.
    ends = ops.full((batch,), eos_id, "int32")
    best = restrict(best, final, ends, log_probs_of(ends))
    if forced is not None:
        best = restrict(best, forced >= 0, forced, ops.zeros((1, 1, 1)))
    log_probs, ids = best

    exists = alive.log_probs[:, :, None] > NEG_INF  # (B, K, 1)
    usable = ops.isfinite(by_beam(log_total))  # (B, K, 1)
    broken = ops.any(exists & ~usable, axis=(1, 2))  # (B,)
    log_probs = ops.where(exists & usable, alive.log_probs[:, :, None] + log_probs, NEG_INF)  # (B, K, 2K)

    flat = (batch, beams * per_row)
    log_probs, indices = top_k(ops.reshape(log_probs, flat), 2 * beams)
    ids = gather(ops.reshape(ops.broadcast_to(ids, (batch, beams, per_row)), flat), indices)
    return Candidates(log_probs, indices // per_row, ids), broken


def _top_logits(logits: Any, number: Any) -> tuple[Any, Any, Any]:
    """Returns the best n logits of each row, their tokens, and the log-sum-exp of the row, in few passes over V.

    The best n are in the n blocks of columns with the largest maxima. These are found in a pass that compares many
    columns at a time, which `top_k` does not.
    """
    columns = ops.shape(logits)[-1]
    width = math.gcd(logits.shape[-1] or 1, MAX_BLOCK_WIDTH)
    probabilities = ops.softmax(logits)  # NaN throughout a row that has no distribution
    broken = ops.isnan(probabilities[:, :1])  # (N, 1) with N = B·K; sorting NaN is undefined
    blocks = ops.reshape(logits, (-1, columns // width, width))  # (N, V/w, w)
    maxima = ops.where(broken, 0.0, ops.max(blocks, axis=-1))  # (N, V/w)
    _, best_blocks = top_k(maxima, smaller(number, columns // width))  # (N, n)
    best_blocks = ops.sort(best_blocks, axis=-1)  # so that of equal logits the first is taken
    values = ops.reshape(gather(blocks, best_blocks), (ops.shape(logits)[0], -1))  # (N, n·w)
    top, indices = top_k(ops.where(broken, 0.0, values), number)  # (N, n)
    ids = gather(best_blocks, indices // width) * width + indices % width
    # Σ exp z from exp z / Σ exp z of the best, the largest and so the most precise.
    largest = gather(probabilities, ids[:, :1])  # (N, 1)
    return top, ids, top[:, :1] - ops.log(largest)


def keep_alive(alive: Alive, candidates: Candidates, eos_id: int, index: Any = None) -> tuple[Alive, Any]:
    """Returns the best K candidates that do not end, and the beams (B, K) that they continue."""
    beams = alive.log_probs.shape[1]
    log_probs = ops.where(ops.equal(candidates.ids, eos_id), NEG_INF, candidates.log_probs)
    log_probs, best = top_k(log_probs, beams)  # (B, K)
    parents = gather(candidates.parents, best)
    ids = gather(candidates.ids, best)
    return Alive(append_token(gather(alive.ids, parents), ids, index), log_probs), parents


def finish(
    alive: Alive, candidates: Candidates, eos_id: int, length: Any, penalty: Any, index: Any = None
) -> Hypotheses:
    """Returns the candidates within the best K that end, with their scores; the others leave empty slots."""
    beams = alive.log_probs.shape[1]
    log_probs, parents, ids = (x[:, :beams] for x in candidates)
    ends = ops.equal(ids, eos_id) & (log_probs > NEG_INF)  # (B, K)
    return Hypotheses(
        append_token(gather(alive.ids, parents), ids, index),
        ops.where(ends, log_probs / penalty, NEG_INF),
        ops.where(ends, length, 0),
    )


def keep_best(
    finished: Hypotheses, ended: Hypotheses, broken: Any, done: Any, pad_id: int, index: Any = None
) -> Hypotheses:
    """Returns the best K of the finished hypotheses and those that just ended.

    Sentences that are `done` (B,) keep theirs; `broken` ones (B,) have scores of NaN and no tokens.
    """
    beams = finished.scores.shape[1]
    before = finished._replace(ids=_append_padding(finished.ids, 1, pad_id)) if index is None else finished
    ids, scores, lengths = (ops.concatenate([old, new], axis=1) for old, new in zip(before, ended, strict=True))
    scores, best = top_k(ops.where(done[:, None], NEG_INF, scores), beams)  # (B, K)
    lengths = gather(lengths, best)
    ids = ops.where(lengths[:, :, None] > 0, gather(ids, best), pad_id)
    after = _where(broken, Hypotheses(pad_id, float("nan"), 0), Hypotheses(ids, scores, lengths))
    return _where(done, before, after)


def _where(sentences: Any, x: Hypotheses, y: Hypotheses) -> Hypotheses:
    """Returns the hypotheses of `x` for the sentences (B,) that are true, of `y` for the others."""

    def where(x: Any, y: Any) -> Any:
        return ops.where(ops.reshape(sentences, (-1,) + (1,) * (len(y.shape) - 1)), x, y)

    return Hypotheses(*map(where, x, y))


def is_settled(alive: Alive, finished: Hypotheses, penalty: Any, last_penalty: Any, num_return: int) -> Any:
    """Returns the sentences (B,) whose result no hypothesis alive can change, from the penalties now and at the limit.

    Log probabilities only fall, and no penalty is larger than that at the sentence's `max_length`, so no
    hypothesis alive can score above its log probability over that penalty. Where K are finished, the search does not
    wait for one that scores below all of them now. That K are finished is not enough: next to a hypothesis that the
    model is sure of, the next best are ends that come too early.
    """
    best_alive = ops.max(alive.log_probs, axis=1)  # (B,)
    out_of_reach = finished.scores[:, num_return - 1] >= best_alive / last_penalty
    below_all = finished.scores[:, -1] >= best_alive / penalty
    return out_of_reach | below_all
