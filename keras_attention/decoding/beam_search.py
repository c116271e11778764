"""Beam search with a set of finished hypotheses and the length penalty, in one `tf.while_loop`.

Shapes: B sentences, K beams, V vocabulary, t tokens so far. A hypothesis is *live* until it takes
the end of sentence (eos); then it is *finished*, and its score no longer changes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from keras_attention.decoding.candidates import NEVER, Candidates, Live, expand, extended, survivors
from keras_attention.decoding.checks import check_logits, check_options, check_state, limits
from keras_attention.decoding.length_penalty import length_penalty as penalty
from keras_attention.decoding.state import knows_better, reordered, rows_at_first, selected


class Hypotheses(NamedTuple):
    """Finished hypotheses, best first; a place that holds none has length 0 and score -inf."""

    ids: tf.Tensor  # (B, n, L) int32, eos included, then pads
    scores: tf.Tensor  # (B, n) float32
    lengths: tf.Tensor  # (B, n) int32, eos counted


class Search(NamedTuple):
    """What changes from step to step; B counts the sentences that are still in the batch."""

    live: Live
    finished: Hypotheses  # K places
    done: tf.Tensor  # (B,) bool
    last_ids: tf.Tensor  # (B·K,) int32, (B,) before the first step of a state that takes one for all beams
    state: Any


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
    begun: tf.Tensor | None = None,
    prefix: tf.Tensor | None = None,
    penalize: Callable[[Any, float], tf.Tensor] = penalty,
    rules: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    draw: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
) -> Hypotheses:
    """Finds likely sentences under a model that scores the next token.

    A hypothesis of n tokens is worth `log p / ((5 + n) / 6) ** length_penalty`. At each step, of
    the 2K best continuations, those that end (eos) and rank within the best K are finished, and
    the K best others live on. A sentence is done when no live hypothesis can still overtake the
    `num_return`-th finished one, or when K are finished and all are ahead of every live one at its
    present length; at its own `max_length` all that is live takes eos. With `beam_size=1` this is
    greedy decoding. A sentence's result does not depend on the others in the batch.

    Logits of -inf forbid a token. A sentence for which the model gives NaN, +inf or nothing but
    -inf ends at once with scores of NaN and no tokens; the other sentences go on. Sentences that are
    done leave the batch: what `step` is given shrinks.

    Args:
        step: Takes the last token of each beam (B·K,) int32 and the state; returns the logits of
            the next token (B·K, V) and the new state.
        state: Nest of tensors of B·K rows (beams of a sentence side by side), reordered with the
            beams. Middle axes, and the second of a matrix, may grow from step to step as caches do.
            Or a nest with the methods `reordered` and `selected`, which does this itself; where it says
            `equal_at_first`, one row of each sentence is all that the first step is given.
        batch_size: Number of sentences B; 0 is allowed.
        beam_size: Number of live hypotheses K of a sentence, and the most that it can finish.
        max_length: The most tokens, eos counted: one number, or one for each sentence (B,).
        length_penalty: The penalty's alpha, 0 or more; 0.6 in the paper.
        num_return: How many hypotheses n to return for each sentence.
        bos_id: Token that stands before the first.
        eos_id: Token that ends a sentence.
        pad_id: Token that fills up shorter rows.
        begun: Tokens that are written already, int32 (B, t), without pads; all but the last of them,
            and bos, are in the state.
        prefix: Tokens that the hypotheses of each sentence start with, int32 (B, P), those of `begun`
            first, pads at the end; they cost nothing.
        penalize: Takes lengths and the exponent; returns what log probabilities are divided by.
        rules: Takes the logits (B·K, V), the tokens before them (B·K, t) and the numbers (B,) of the
            sentences that are left; returns the logits, with -inf for what is not to come. Where one row of a
            sentence is given to the first step, it is so here.
        draw: Takes logits, t and the numbers of the sentences, and returns a token of each; with one
            beam, in place of the best token.

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
    if not knows_better(state):
        check_state(state, batch_size, beam_size)
    max_length = limits(max_length, batch_size)  # (B,)

    def advance(t: tf.Tensor, sentences: tf.Tensor, now: Search) -> Search:
        logits, state = step(now.last_ids, now.state)
        check_logits(logits, eos_id)
        # Without the check TensorFlow moves the cast behind each reshaping, and so casts all of it several times.
        logits = tf.ensure_shape(tf.cast(logits, tf.float32), logits.shape)
        if rules is not None:
            rows = tf.shape(logits)[0] // tf.maximum(tf.size(sentences), 1)
            logits = rules(logits, tf.reshape(now.live.ids[:, :rows], [-1, t]), sentences)
        limit = tf.gather(max_length, sentences)  # (B,)
        final = t + 1 >= limit  # (B,)
        only = None if prefix is None else _forced(prefix, sentences, t, pad_id)  # (B,)
        drawn = None if draw is None else draw(logits, t, sentences)
        candidates, broken = expand(now.live, logits, final, eos_id, only, drawn)
        penalty_now = penalize(t + 1, length_penalty)
        ended = _ended(now.live, candidates, eos_id, t + 1, penalty_now)
        finished = _keep_best(now.finished, ended, broken, now.done, pad_id)
        live, parents = survivors(now.live, candidates, eos_id)
        settled = _is_settled(live, finished, penalty_now, penalize(limit, length_penalty), num_return)
        done = now.done | broken | final | settled
        last_ids = tf.where(done[:, None], pad_id, live.ids[:, :, -1])  # (B, K)
        if beam_size > 1:  # a single beam stays where it is
            state = reordered(state, parents)
        return Search(live, finished, done, tf.reshape(last_ids, [-1]), state)

    def run_round(t: tf.Tensor, sentences: tf.Tensor, now: Search, found: Hypotheses) -> tuple:
        going = tf.cast(tf.where(~now.done)[:, 0], tf.int32)
        sentences = tf.gather(sentences, going)  # (B,), places in the batch that was given
        now = _of_sentences(now, going)
        t, now = tf.while_loop(
            lambda t, now: _is_worth_going_on(now.done),
            lambda t, now: (t + 1, advance(t, sentences, now)),
            (t, now),
            (tf.TensorShape([]), _shapes(now)),
        )
        return t, sentences, now, _stored(found, now.finished, sentences, t, pad_id)

    begun = tf.zeros([batch_size, 0], tf.int32) if begun is None else begun  # (B, t)
    found = _nothing(begun, beam_size, pad_id)
    start = (tf.shape(begun)[1], tf.range(batch_size), _start(begun, beam_size, bos_id, found, state))
    shapes = tf.TensorShape([]), tf.TensorShape([None]), _shapes(start[2]), _shapes(found)
    found = tf.while_loop(
        lambda t, sentences, now, found: ~tf.reduce_all(now.done), run_round, (*start, found), shapes
    )[3]
    return Hypotheses(*(x[:, :num_return] for x in found))


def _start(begun: tf.Tensor, beam_size: int, bos_id: int, finished: Hypotheses, state: Any) -> Search:
    batch_size = tf.shape(begun)[0]
    # The beams start equal: all but one stand empty, or each hypothesis would come K times.
    log_probs = tf.tile([[0.0] + [NEVER] * (beam_size - 1)], [batch_size, 1])
    return Search(
        Live(_for_each_beam(begun, beam_size), log_probs),
        finished,
        tf.zeros([batch_size], tf.bool),
        tf.repeat(tf.pad(begun, [[0, 0], [1, 0]], constant_values=bos_id)[:, -1], rows_at_first(state, beam_size)),
        state,
    )


def _for_each_beam(ids: tf.Tensor, beam_size: int) -> tf.Tensor:
    """Returns ids (B, t) as those of equal beams, (B, K, t)."""
    return tf.tile(ids[:, None], [1, beam_size, 1])


def _nothing(begun: tf.Tensor, beam_size: int, pad_id: int) -> Hypotheses:
    """Returns K empty places for each sentence."""
    places = [tf.shape(begun)[0], beam_size]
    ids = tf.fill(tf.shape(begun), pad_id)
    return Hypotheses(_for_each_beam(ids, beam_size), tf.fill(places, NEVER), tf.zeros(places, tf.int32))


def _of_sentences(now: Search, going: tf.Tensor) -> Search:
    """Returns what belongs to the sentences at these places."""
    beams = now.live.log_probs.shape[1]
    rows = tf.size(now.last_ids) // tf.size(now.done)

    def chosen(x: tf.Tensor) -> tf.Tensor:
        return tf.gather(x, going)

    return Search(
        Live(*map(chosen, now.live)),
        Hypotheses(*map(chosen, now.finished)),
        chosen(now.done),
        tf.reshape(chosen(tf.reshape(now.last_ids, [-1, rows])), [-1]),
        selected(now.state, going, beams),
    )


def _is_worth_going_on(done: tf.Tensor) -> tf.Tensor:
    """Whether no more than a quarter of the batch is done: the work for these is less than that of leaving them out."""
    return 4 * tf.math.count_nonzero(done, dtype=tf.int32) < tf.maximum(tf.size(done), 1)


def _forced(prefix: tf.Tensor, sentences: tf.Tensor, t: tf.Tensor, pad_id: int) -> tf.Tensor:
    """Returns the token (B,) that each sentence has to take now, -1 where it has a choice."""
    tokens = tf.pad(prefix, [[0, 0], [0, 1]], constant_values=pad_id)[:, tf.minimum(t, tf.shape(prefix)[1])]
    tokens = tf.gather(tokens, sentences)
    return tf.where(tokens == pad_id, -1, tokens)


def _stored(
    found: Hypotheses, finished: Hypotheses, sentences: tf.Tensor, length: tf.Tensor, pad_id: int
) -> Hypotheses:
    """Returns the hypotheses of all sentences, with those of some (B,) put in their places."""
    more = length - tf.shape(found.ids)[2]
    found = found._replace(ids=tf.pad(found.ids, [[0, 0], [0, 0], [0, more]], constant_values=pad_id))
    places = sentences[:, None]
    return Hypotheses(
        *(tf.tensor_scatter_nd_update(old, places, new) for old, new in zip(found, finished, strict=True))
    )


def _ended(live: Live, candidates: Candidates, eos_id: int, length: tf.Tensor, penalty_now: tf.Tensor) -> Hypotheses:
    """Returns the candidates within the best K that end, scored; the others leave empty places."""
    beams = live.log_probs.shape[1]
    log_probs, parents, ids = (x[:, :beams] for x in candidates)
    ends = (ids == eos_id) & (log_probs > NEVER)  # (B, K)
    return Hypotheses(
        extended(live.ids, parents, ids),
        tf.where(ends, log_probs / penalty_now, NEVER),
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


def _where(sentences: tf.Tensor, chosen: Hypotheses, others: Hypotheses) -> Hypotheses:
    """Returns `chosen` for the sentences (B,) that are true, and `others` for the rest."""

    def where(x, y):
        return tf.where(tf.reshape(sentences, [-1] + [1] * (y.shape.rank - 1)), x, y)

    return Hypotheses(*map(where, chosen, others))


def _shapes(nest: Any) -> Any:
    """Returns the shapes that a nest keeps in a loop: of a state the last axis from rank 3 on, else the second of K."""
    if isinstance(nest, Search):
        return Search(*(_shapes(x) for x in nest[:-1]), tf.nest.map_structure(_growing, nest.state))
    return tf.nest.map_structure(_invariant, nest)


def _invariant(x: tf.Tensor) -> tf.TensorShape:
    """Returns the shape that `x` keeps in the loop: B and t, the last of three, may change."""
    return tf.TensorShape([None, *x.shape[1:2], None][: x.shape.rank])


def _growing(x: tf.Tensor) -> tf.TensorShape:
    """Returns the shape that a tensor of the state keeps: the last axis, from rank 3 on."""
    if x.shape.rank == 0:
        return x.shape
    kept = x.shape[-1:] if x.shape.rank > 2 else [None]
    return tf.TensorShape([None] * (x.shape.rank - 1)).concatenate(kept)
