"""Beam search with a set of finished hypotheses and the length penalty, in one `tf.while_loop`.

Shapes: B sentences, K beams, V vocabulary, t tokens so far. A hypothesis is *live* until it takes
the end of sentence (eos); then it is *finished*, and its score no longer changes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from keras_attention.decoding.checks import check_logits, check_options, check_state, limits
from keras_attention.decoding.length_penalty import length_penalty as penalty

NEVER = float("-inf")  # the log probability of what cannot happen, the score of an empty place


class Hypotheses(NamedTuple):
    """Finished hypotheses, best first; a place that holds none has length 0 and score -inf."""

    ids: tf.Tensor  # (B, n, L) int32, eos included, then pads
    scores: tf.Tensor  # (B, n) float32
    lengths: tf.Tensor  # (B, n) int32, eos counted


class Live(NamedTuple):
    """Hypotheses still growing; those with log probability -inf are places without one."""

    ids: tf.Tensor  # (B, K, t) int32
    log_probs: tf.Tensor  # (B, K) float32


class Candidates(NamedTuple):
    """The best 2K continuations of the live hypotheses, best first."""

    log_probs: tf.Tensor  # (B, 2K) float32, of the whole hypothesis
    parents: tf.Tensor  # (B, 2K) int32, which beam it continues
    ids: tf.Tensor  # (B, 2K) int32, the token it adds


def beam_search(
    step: Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any]],
    state: Any,
    *,
    batch_size: int | tf.Tensor,
    beam_size: int = 4,
    max_length: int | tf.Tensor,
    length_penalty: float = 0.6,
    num_return: int = 1,
    bos_id: int = 2,
    eos_id: int = 3,
    pad_id: int = 0,
) -> Hypotheses:
    """Finds likely sentences under a model that scores the next token.

    A hypothesis of n tokens is worth `log p / ((5 + n) / 6) ** length_penalty`. At each step, of
    the 2K best continuations, those that end (eos) and rank within the best K are finished, and
    the K best others live on. A sentence is done when no live hypothesis can still overtake the
    `num_return`-th finished one, or when K are finished and all are ahead of every live one at its
    present length; at its own `max_length` all that is live takes eos. With `beam_size=1` this is
    greedy decoding. A sentence's result does not depend on the others in the batch.

    Logits of -inf forbid a token. A sentence for which the model gives NaN, +inf or nothing but
    -inf ends at once with scores of NaN and no tokens; the other sentences go on.

    Args:
        step: Takes the last token of each beam (B·K,) int32 and the state; returns the logits of
            the next token (B·K, V) and the new state.
        state: Nest of tensors of B·K rows (beams of a sentence side by side), reordered with the
            beams. Middle axes, and the second of a matrix, may grow from step to step as caches do.
        batch_size: Number of sentences B; 0 is allowed.
        beam_size: Number of live hypotheses K of a sentence, and the most that it can finish.
        max_length: The most tokens, eos counted: one number, or one for each sentence (B,).
        length_penalty: The penalty's alpha, 0 or more; 0.6 in the paper.
        num_return: How many hypotheses n to return for each sentence.
        bos_id: Token that stands before the first.
        eos_id: Token that ends a sentence.
        pad_id: Token that fills up shorter rows.

    Returns:
        `Hypotheses` with ids (B, n, L), scores (B, n) and lengths (B, n), best first; L is the
        number of steps that were needed.

    Raises:
        ValueError: If an option is out of its range, or if `state` or what `step` returns has a
            shape other than described.
        tf.errors.InvalidArgumentError: If a `max_length` below 1 shows only when a graph runs.

    Example:
        >>> logits = tf.constant([[0.0, 0.0, 0.0, 1.0, 4.0], [0.0, 0.0, 0.0, 9.0, 1.0]])
        >>> def step(ids, state):  # token 4 first, then eos (3)
        ...     return tf.gather(logits, tf.cast(ids == 4, tf.int32)), state
        >>> beam_search(step, (), batch_size=1, max_length=5).ids.numpy().tolist()
        [[[4, 3]]]

    Source: Wu et al. 2016, section 7; Vaswani et al. 2017, section 6.1 (beam 4, alpha 0.6).
    """
    check_options(beam_size, num_return, length_penalty)
    state = tf.nest.map_structure(tf.convert_to_tensor, state)
    check_state(state, batch_size, beam_size)
    max_length = limits(max_length, batch_size)  # (B,)

    def search(t, live, finished, done, last_ids, state):
        logits, state = step(last_ids, state)
        check_logits(logits, eos_id)
        final = t + 1 >= max_length  # (B,)
        candidates, broken = _expand(live, tf.cast(logits, tf.float32), final, eos_id)
        ended = _ended(live, candidates, eos_id, t + 1, length_penalty)
        finished = _keep_best(finished, ended, broken, done, pad_id)
        live, parents = _survivors(live, candidates, eos_id)
        penalties = penalty(t + 1, length_penalty), penalty(max_length, length_penalty)
        done |= broken | final | _is_settled(live, finished, *penalties, num_return)
        last_ids = tf.where(done[:, None], pad_id, live.ids[:, :, -1])  # (B, K)
        if beam_size > 1:  # a single beam stays where it is
            state = _reordered(state, parents)
        return t + 1, live, finished, done, tf.reshape(last_ids, [-1]), state

    start = (
        tf.constant(0),
        Live(
            tf.zeros([batch_size, beam_size, 0], tf.int32),
            # The beams start equal: all but one stand empty, or each hypothesis would come K times.
            tf.tile([[0.0] + [NEVER] * (beam_size - 1)], [batch_size, 1]),
        ),
        Hypotheses(
            tf.zeros([batch_size, beam_size, 0], tf.int32),
            tf.fill([batch_size, beam_size], NEVER),
            tf.zeros([batch_size, beam_size], tf.int32),
        ),
        tf.zeros([batch_size], tf.bool),
        tf.fill([batch_size * beam_size], bos_id),
        state,
    )
    finished = tf.while_loop(
        lambda t, live, finished, done, last_ids, state: ~tf.reduce_all(done),
        search,
        start,
        (*tf.nest.map_structure(_invariant, start[:-1]), tf.nest.map_structure(_growing, state)),
    )[2]
    return Hypotheses(*(x[:, :num_return] for x in finished))


def _expand(live: Live, logits: tf.Tensor, final: tf.Tensor, eos_id: int) -> tuple[Candidates, tf.Tensor]:
    """Returns the best 2K continuations, and which sentences (B,) have unusable logits.

    The best 2K of each row are enough to find the best 2K of a sentence, so only these few are
    normalised: there is no softmax over V.
    """
    beams = live.log_probs.shape[1]
    per_row = tf.minimum(2 * beams, tf.shape(logits)[-1])
    # Sorting NaN is undefined. The sum below still meets it: its sentence is found broken.
    sortable = tf.where(tf.math.is_nan(logits), NEVER, logits)
    top, ids = tf.math.top_k(sortable, per_row)  # (B·K, 2K)
    largest = top[:, :1]  # (B·K, 1)
    total = tf.reduce_sum(tf.exp(logits - largest), axis=-1, keepdims=True)  # (B·K, 1)
    normaliser = largest + tf.math.log(total)  # (B·K, 1), the log-sum-exp of the row

    def by_beam(x):  # (B·K, …) -> (B, K, …)
        return tf.reshape(x, tf.concat([[-1, beams], tf.shape(x)[1:]], 0))

    # At its last step a hypothesis can only end; eos is worth what the model gives it.
    only_eos = tf.where(tf.range(per_row) == 0, logits[:, eos_id, None] - normaliser, NEVER)
    final = final[:, None, None]
    log_probs = tf.where(final, by_beam(only_eos), by_beam(top - normaliser))  # (B, K, 2K)
    ids = tf.where(final, eos_id, by_beam(ids))  # (B, K, 2K)

    exists = live.log_probs[:, :, None] > NEVER  # (B, K, 1)
    usable = tf.math.is_finite(by_beam(normaliser))  # (B, K, 1)
    broken = tf.reduce_any(exists & ~usable, axis=[1, 2])  # (B,)
    log_probs = tf.where(exists & usable, live.log_probs[:, :, None] + log_probs, NEVER)

    batch = tf.shape(live.log_probs)[0]
    best, places = tf.math.top_k(tf.reshape(log_probs, [batch, beams * per_row]), 2 * beams)
    ids = tf.gather(tf.reshape(ids, [batch, beams * per_row]), places, batch_dims=1)
    return Candidates(best, places // per_row, ids), broken


def _ended(live: Live, candidates: Candidates, eos_id: int, length: tf.Tensor, alpha: float) -> Hypotheses:
    """Returns the candidates within the best K that end, scored; the others leave empty places."""
    beams = live.log_probs.shape[1]
    log_probs, parents, ids = (x[:, :beams] for x in candidates)
    ends = (ids == eos_id) & (log_probs > NEVER)  # (B, K)
    return Hypotheses(
        _extended(live.ids, parents, ids),
        tf.where(ends, log_probs / penalty(length, alpha), NEVER),
        tf.where(ends, length, 0),
    )


def _keep_best(finished: Hypotheses, ended: Hypotheses, broken: tf.Tensor, done: tf.Tensor, pad_id: int) -> Hypotheses:
    """Returns the best K of the finished hypotheses and those that just ended."""
    beams = finished.scores.shape[1]
    before = finished._replace(ids=tf.pad(finished.ids, [[0, 0], [0, 0], [0, 1]], constant_values=pad_id))
    ids, scores, lengths = (tf.concat([old, new], axis=1) for old, new in zip(before, ended, strict=True))
    scores, places = tf.math.top_k(tf.where(done[:, None], NEVER, scores), beams)  # (B, K)
    lengths = tf.gather(lengths, places, batch_dims=1)
    ids = tf.where(lengths[:, :, None] > 0, tf.gather(ids, places, batch_dims=1), pad_id)
    after = _where(broken, Hypotheses(pad_id, float("nan"), 0), Hypotheses(ids, scores, lengths))
    return _where(done, before, after)


def _survivors(live: Live, candidates: Candidates, eos_id: int) -> tuple[Live, tf.Tensor]:
    """Returns the best K candidates that do not end, and the beams (B, K) that they continue."""
    beams = live.log_probs.shape[1]
    log_probs = tf.where(candidates.ids == eos_id, NEVER, candidates.log_probs)
    log_probs, places = tf.math.top_k(log_probs, beams)  # (B, K)
    parents = tf.gather(candidates.parents, places, batch_dims=1)
    ids = tf.gather(candidates.ids, places, batch_dims=1)
    return Live(_extended(live.ids, parents, ids), log_probs), parents


def _is_settled(
    live: Live, finished: Hypotheses, penalty_now: tf.Tensor, limit_penalty: tf.Tensor, num_return: int
) -> tf.Tensor:
    """Returns for which sentences (B,) no live hypothesis matters any more.

    Log probabilities only fall, and no penalty is larger than that at the sentence's `max_length`:
    so a live hypothesis will not score above its log probability over that penalty. And where K are
    finished, one that is behind all of them now is not waited for. K alone would not be enough: beside
    a hypothesis that the model is sure of, the next best are ends that come too early.
    """
    best_live = tf.reduce_max(live.log_probs, axis=1)  # (B,)
    out_of_reach = finished.scores[:, num_return - 1] >= best_live / limit_penalty
    behind_all = finished.scores[:, -1] >= best_live / penalty_now
    return out_of_reach | behind_all


def _extended(ids: tf.Tensor, parents: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """Returns the tokens of the parents (B, K) with one more at the end: (B, K, t + 1)."""
    return tf.concat([tf.gather(ids, parents, batch_dims=1), last[:, :, None]], axis=2)


def _reordered(state: Any, parents: tf.Tensor) -> Any:
    """Returns the state with the rows of the beams (B, K) that live on."""
    batch, beams = tf.unstack(tf.shape(parents))
    rows = tf.reshape(tf.range(batch)[:, None] * beams + parents, [-1])  # (B·K,)
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), state)


def _where(sentences: tf.Tensor, chosen: Hypotheses, others: Hypotheses) -> Hypotheses:
    """Returns `chosen` for the sentences (B,) that are true, and `others` for the rest."""

    def where(x, y):
        return tf.where(tf.reshape(sentences, [-1] + [1] * (y.shape.rank - 1)), x, y)

    return Hypotheses(*map(where, chosen, others))


def _invariant(x: tf.Tensor) -> tf.TensorShape:
    """Returns the shape that `x` keeps in the loop: B and t, the last of three, may change."""
    return tf.TensorShape([None, *x.shape[1:2], None][: x.shape.rank])


def _growing(x: tf.Tensor) -> tf.TensorShape:
    """Returns the shape that a tensor of the state keeps: the last axis, from rank 3 on."""
    kept = x.shape[-1:] if x.shape.rank > 2 else [None]
    return tf.TensorShape([None] * (x.shape.rank - 1)).concatenate(kept)
