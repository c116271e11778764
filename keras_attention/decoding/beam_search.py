"""Beam search with a set of finished hypotheses and a length penalty, as loops of a TensorFlow graph.

Shapes: B sentences, K beams, V vocabulary, t tokens so far.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from keras_attention.decoding.hypotheses import (
    Alive,
    Hypotheses,
    finish,
    first_alive,
    grow,
    is_settled,
    keep_alive,
    keep_best,
    none_finished,
)
from keras_attention.decoding.hypotheses import length_penalty as default_penalty
from keras_attention.decoding.logits_processors import forced_tokens
from keras_attention.layers.arguments import renamed_arguments

# From the last tokens and the state to the logits of the next tokens and the new state.
Step = Callable[[tf.Tensor, Any], tuple[tf.Tensor, Any]]


class Search(NamedTuple):
    """The loop variables of the sentences that are still in the batch."""

    alive: Alive
    finished: Hypotheses  # K slots
    done: tf.Tensor  # (B,) bool
    last_ids: tf.Tensor  # (B·K,) int32; (B,) before the first step of a state that starts with one row
    state: Any


@renamed_arguments(begun="prompt", rules="logits_processor", draw="sampler")  # names of version 0.1
def beam_search(
    step: Step,
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
    prompt: tf.Tensor | None = None,
    prefix: tf.Tensor | None = None,
    penalize: Callable[[Any, float], tf.Tensor] = default_penalty,
    logits_processor: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    sampler: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
) -> Hypotheses:
    """Finds the hypotheses with the best scores under a model that computes the logits of the next token.

    The score of a hypothesis of n tokens is `log p / ((5 + n) / 6) ** length_penalty`. Of the 2K best
    continuations in a step, those that end (eos) and are among the best K are finished, and the K best
    others stay alive. A sentence is done when no hypothesis alive can still overtake the `num_return`-th
    finished one, or when K are finished and all score higher than every one alive at its current length.
    At the `max_length` of a sentence, its hypotheses alive take eos. With `beam_size=1` this is greedy
    decoding. The result of a sentence does not depend on the others in the batch.

    Logits of -inf forbid a token. A sentence for which the model gives NaN, +inf or only -inf ends at
    once with scores of NaN and no tokens; the other sentences continue. Sentences that are done leave the
    batch: the inputs of `step` shrink.

    Args:
        step: Takes the last token of each beam (B·K,) int32 and the state; returns the logits of
            the next token (B·K, V) and the new state.
        state: Nest of tensors of B·K rows (beams of a sentence next to each other), reordered with the
            beams. Middle axes, and the second of a matrix, may grow from step to step as caches do.
            Or a nest that does this itself with the methods `reordered(parents)` and
            `selected(sentences)`, see `reorder` and `select`; if its `starts_with_one_row` is true, the
            first step gets one row for each sentence.
        batch_size: Number of sentences B; 0 is allowed.
        beam_size: Number K of hypotheses alive for a sentence, and maximum number of finished ones.
        max_length: Maximum number of tokens, eos counted: one number, or one for each sentence (B,).
        length_penalty: Exponent α of the penalty, 0 or more; 0.6 in the paper.
        num_return: Number n of hypotheses returned for each sentence.
        bos_id: Token before the first.
        eos_id: Token that ends a sentence.
        pad_id: Token that pads shorter rows.
        prompt: Tokens that the hypotheses of each sentence start with, int32 (B, t), without padding; the
            state has read bos and all of them but the last.
        prefix: Tokens that the hypotheses of each sentence start with, int32 (B, P), padded at the end:
            those of `prompt`, then tokens that the search forces. They cost nothing.
        penalize: Takes lengths and the exponent; returns the divisor of the log probabilities.
        logits_processor: Takes the logits (B·K, V), the tokens before them (B·K, t) and the indices (B,) of
            the sentences that are left; returns the logits, with -inf for forbidden tokens. Where the first
            step has one row for each sentence, it gets that.
        sampler: Takes the logits, t and the indices of the sentences; returns a token of each, to take
            instead of the best one. For one beam.

    Returns:
        `Hypotheses` with ids (B, n, L), scores (B, n) and lengths (B, n), best first; L is the
        number of steps that were needed, those of the prompt counted.

    Raises:
        ValueError: If an option is out of its range, or if `state` or what `step` returns has a
            shape other than described.
        tf.errors.InvalidArgumentError: If a `max_length` that is known only when a graph runs is below 1.

    Example:
        >>> logits = tf.constant([[0.0, 0.0, 0.0, 1.0, 4.0], [0.0, 0.0, 0.0, 9.0, 1.0]])
        >>> def step(ids, state):  # token 4 first, then eos (3)
        ...     return tf.gather(logits, tf.cast(ids == 4, tf.int32)), state
        >>> beam_search(step, (), batch_size=1, max_length=5).ids.numpy().tolist()
        [[[4, 3]]]

    Source: Wu et al. 2016, section 7; Vaswani et al. 2017, section 6.1 (beam 4, alpha 0.6).
    """
    _check_options(beam_size, num_return, length_penalty)
    state = tf.nest.map_structure(tf.convert_to_tensor, state)
    if not _manages_beams(state):
        _check_state(state, batch_size, beam_size)
    max_length = _check_max_length(max_length, batch_size)  # (B,)

    def advance(t: tf.Tensor, sentences: tf.Tensor, search: Search) -> Search:
        """Adds token t to the hypotheses; `sentences` (B,) are indices in the full batch."""
        logits, state = step(search.last_ids, search.state)
        check_logits(logits, eos_id)
        # The check of the shape keeps TensorFlow from moving the cast behind each reshaping, to cast several times.
        logits = tf.ensure_shape(tf.cast(logits, tf.float32), logits.shape)
        if logits_processor is not None:
            rows = tf.shape(logits)[0] // tf.maximum(tf.size(sentences), 1)  # of a sentence
            logits = logits_processor(logits, tf.reshape(search.alive.ids[:, :rows], [-1, t]), sentences)
        limit = tf.gather(max_length, sentences)  # (B,)
        final = t + 1 >= limit  # (B,), sentences that must end now
        forced = None if prefix is None else tf.gather(forced_tokens(prefix, t, pad_id), sentences)  # (B,)
        sampled = None if sampler is None else sampler(logits, t, sentences)  # (B,)
        candidates, broken = grow(search.alive, logits, final, eos_id, forced, sampled)
        # Candidates that end are finished; the best others stay alive.
        penalty, last_penalty = penalize(t + 1, length_penalty), penalize(limit, length_penalty)
        ended = finish(search.alive, candidates, eos_id, t + 1, penalty)
        finished = keep_best(search.finished, ended, broken, search.done, pad_id)
        alive, parents = keep_alive(search.alive, candidates, eos_id)
        done = search.done | broken | final | is_settled(alive, finished, penalty, last_penalty, num_return)
        last_ids = tf.where(done[:, None], pad_id, alive.ids[:, :, -1])  # (B, K)
        if beam_size > 1:  # a single beam has no order
            state = reorder(state, parents)
        return Search(alive, finished, done, tf.reshape(last_ids, [-1]), state)

    def run_round(t: tf.Tensor, sentences: tf.Tensor, search: Search, results: Hypotheses) -> tuple:
        """Removes the sentences that are done, then searches until a quarter of the rest is done."""
        unfinished = tf.cast(tf.where(~search.done)[:, 0], tf.int32)
        sentences, search = tf.gather(sentences, unfinished), _select_sentences(search, unfinished)
        t, search = tf.while_loop(
            lambda t, search: _is_mostly_unfinished(search.done),
            lambda t, search: (t + 1, advance(t, sentences, search)),
            (t, search),
            (tf.TensorShape([]), _shapes(search)),
        )
        return t, sentences, search, _store(results, search.finished, sentences, t, pad_id)

    prompt = tf.zeros([batch_size, 0], tf.int32) if prompt is None else prompt  # (B, t)
    results = none_finished(prompt, beam_size, pad_id)
    last_ids = tf.pad(prompt, [[0, 0], [1, 0]], constant_values=bos_id)[:, -1]  # (B,)
    search = Search(
        first_alive(prompt, beam_size),
        results,
        tf.zeros([batch_size], tf.bool),
        tf.repeat(last_ids, _initial_rows(state, beam_size)),
        state,
    )
    start = tf.shape(prompt)[1], tf.range(batch_size), search, results
    results = tf.while_loop(
        lambda t, sentences, search, results: ~tf.reduce_all(search.done),
        run_round,
        start,
        (tf.TensorShape([]), tf.TensorShape([None]), _shapes(search), _shapes(results)),
    )[3]
    return Hypotheses(*(x[:, :num_return] for x in results))


def reorder(state: Any, parents: tf.Tensor) -> Any:
    """Returns the state of B·K beams in which each beam continues another of its sentence, `parents` (B, K)."""
    if _manages_beams(state):
        return state.reordered(parents)
    batch, beams = tf.unstack(tf.shape(parents))
    rows = tf.reshape(tf.range(batch)[:, None] * beams + parents, [-1])  # (B·K,)
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), state)


def select(state: Any, sentences: tf.Tensor, beams: int | tf.Tensor) -> Any:
    """Returns the state of B'·K beams of only the sentences at the indices `sentences` (B',)."""
    if _manages_beams(state):
        return state.selected(sentences)
    rows = tf.reshape(sentences[:, None] * beams + tf.range(beams), [-1])  # (B'·K,)
    return tf.nest.map_structure(lambda x: tf.gather(x, rows), state)


def _manages_beams(state: Any) -> bool:
    """Returns whether a state has methods that reorder and select it; a plain nest of tensors has none."""
    return all(hasattr(state, name) for name in ("reordered", "selected"))


def _initial_rows(state: Any, beams: int) -> int:
    """Returns the number of rows of each sentence in the first step, 1 or K."""
    return 1 if getattr(state, "starts_with_one_row", False) else beams


def _select_sentences(search: Search, indices: tf.Tensor) -> Search:
    """Returns the search of only the sentences at these indices."""
    beams = search.alive.log_probs.shape[1]
    rows = tf.size(search.last_ids) // tf.size(search.done)  # of a sentence

    def take(x: tf.Tensor) -> tf.Tensor:
        return tf.gather(x, indices)

    return Search(
        Alive(*map(take, search.alive)),
        Hypotheses(*map(take, search.finished)),
        take(search.done),
        tf.reshape(take(tf.reshape(search.last_ids, [-1, rows])), [-1]),
        select(search.state, indices, beams),
    )


def _is_mostly_unfinished(done: tf.Tensor) -> tf.Tensor:
    """Returns whether less than a quarter is done, so that computing these sentences costs less than removing them."""
    return 4 * tf.math.count_nonzero(done, dtype=tf.int32) < tf.maximum(tf.size(done), 1)


def _store(
    results: Hypotheses, finished: Hypotheses, sentences: tf.Tensor, length: tf.Tensor, pad_id: int
) -> Hypotheses:
    """Returns the results of all sentences, with those at the indices `sentences` (B,) replaced."""
    more = length - tf.shape(results.ids)[2]
    results = results._replace(ids=tf.pad(results.ids, [[0, 0], [0, 0], [0, more]], constant_values=pad_id))
    indices = sentences[:, None]
    return Hypotheses(
        *(tf.tensor_scatter_nd_update(old, indices, new) for old, new in zip(results, finished, strict=True))
    )


def _shapes(nest: Any) -> Any:
    """Returns the shape invariants of the tensors of a loop variable."""
    if isinstance(nest, Search):
        return Search(*(_shapes(x) for x in nest[:-1]), tf.nest.map_structure(_state_invariant, nest.state))
    return tf.nest.map_structure(_invariant, nest)


def _invariant(x: tf.Tensor) -> tf.TensorShape:
    """Returns the shape invariant of `x`: B may change, and t, the last of three axes."""
    return tf.TensorShape([None, *x.shape[1:2], None][: x.shape.rank])


def _state_invariant(x: tf.Tensor) -> tf.TensorShape:
    """Returns the shape invariant of a tensor of the state: only the last axis is fixed, from rank 3 on."""
    if x.shape.rank == 0:
        return x.shape
    last = x.shape[-1:] if x.shape.rank > 2 else [None]
    return tf.TensorShape([None] * (x.shape.rank - 1)).concatenate(last)


def _check_max_length(max_length: int | tf.Tensor, batch_size: int | tf.Tensor) -> tf.Tensor:
    """Returns `max_length` as one number for each sentence (B,), checked as early as possible."""
    max_length = tf.cast(max_length, tf.int32)
    if max_length.shape.rank not in (0, 1):
        raise ValueError(
            "max_length must be one number or one for each sentence (B,). "
            f"Received: max_length.shape={max_length.shape}"
        )
    static = tf.get_static_value(max_length)
    message = "max_length must be 1 or more (the end of sentence counts). "
    if static is None:
        tf.debugging.assert_positive(max_length, message)
    elif (static < 1).any():
        raise ValueError(f"{message}Received: max_length={static.tolist()}")
    return tf.broadcast_to(max_length, [batch_size])


def _check_options(beam_size: int, num_return: int, alpha: float) -> None:
    """Checks the options that are Python numbers."""
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


def _check_state(state: Any, batch_size: int | tf.Tensor, beam_size: int) -> None:
    """Checks that each tensor has a row for each beam, as far as the shapes are known.

    On a GPU, gathering missing rows gives zeros: a wrong result without an error.
    """
    sentences = tf.get_static_value(batch_size)
    for x in tf.nest.flatten(state):
        rows = x.shape[0] if x.shape.rank != 0 else 0
        if x.shape.rank == 0 or (None not in (sentences, rows) and rows != sentences * beam_size):
            raise ValueError(
                "Each tensor of the state needs one row for each beam, the beams of a sentence "
                "next to each other: repeat rows with tf.repeat(x, beam_size, axis=0). Received: "
                f"shape={x.shape}, batch_size={sentences}, beam_size={beam_size}"
            )


def check_logits(logits: tf.Tensor, eos_id: int) -> None:
    """Checks the shape of the logits that the caller's `step` returned."""
    if logits.shape.rank != 2:
        raise ValueError(
            "step must return the logits of the next token, (batch_size * beam_size, vocabulary). "
            f"Received: logits.shape={logits.shape}"
        )
    if logits.shape[1] is not None and not 0 <= eos_id < logits.shape[1]:
        raise ValueError(f"eos_id must be a token of the vocabulary of {logits.shape[1]}. Received: eos_id={eos_id}")
