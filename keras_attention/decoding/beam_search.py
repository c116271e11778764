"""Beam search with a set of finished hypotheses and a length penalty.

One step is the same on every backend; the loops around it are in `growing_search.py` and `fixed_search.py`.

Shapes: B sentences, K beams, V vocabulary, t tokens so far.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_attention.decoding.fixed_search import fixed_search, written_ids
from keras_attention.decoding.hypotheses import (
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
from keras_attention.decoding.search_state import Search, check_state, initial_rows, manages_beams, reorder
from keras_attention.decoding.tensors import (
    as_float32,
    assert_positive,
    is_tensorflow,
    known_value,
    rows_of_each,
    take_rows,
)
from keras_attention.layers.arguments import renamed_arguments

# From the last tokens and the state to the logits of the next tokens and the new state.
Step = Callable[[Any, Any], tuple[Any, Any]]


@renamed_arguments(begun="prompt", rules="logits_processor", draw="sampler")  # names of version 0.1
def beam_search(
    step: Step,
    state: Any,
    *,
    batch_size: Any,
    beam_size: int = 4,
    max_length: Any,
    length_penalty: float = 0.6,
    num_return: int = 1,
    bos_id: int = 2,
    eos_id: int = 3,
    pad_id: int = 0,
    prompt: Any = None,
    prefix: Any = None,
    penalize: Callable[[Any, float], Any] = default_penalty,
    logits_processor: Callable[[Any, Any, Any], Any] | None = None,
    sampler: Callable[[Any, Any, Any], Any] | None = None,
    prompt_length: Any = None,
    capacity: int | None = None,
) -> Hypotheses:
    """Finds the hypotheses with the best scores under a model that computes the logits of the next token.

    The score of a hypothesis of n tokens is `log p / ((5 + n) / 6) ** length_penalty`. Of the 2K best
    continuations in a step, those that end (eos) and are among the best K are finished, and the K best
    others stay alive. A sentence is done when no hypothesis alive can still overtake the `num_return`-th
    finished one, or when K are finished and all score higher than every one alive at its current length.
    At the `max_length` of a sentence, its hypotheses alive take eos. With `beam_size=1` this is greedy
    decoding. The result of a sentence does not depend on the others in the batch.

    Logits of -inf forbid a token. A sentence for which the model gives NaN, +inf or only -inf ends at
    once with scores of NaN and no tokens; the other sentences continue. On TensorFlow, sentences that are
    done leave the batch, and the inputs of `step` shrink; on JAX and torch all shapes are fixed.

    Args:
        step: Takes the last token of each beam (B·K,) int32 and the state; returns the logits of
            the next token (B·K, V) and the new state.
        state: Nest of tensors of B·K rows (beams of a sentence next to each other), reordered with the
            beams. On TensorFlow, middle axes, and the second of a matrix, may grow from step to step as
            caches do.
            Or a nest that does this itself with the methods `reordered(parents)` and
            `selected(sentences)`, see `search_state.py`; if its `starts_with_one_row` is true, the
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
            step has one row for each sentence, it gets that. JAX, whose shapes are fixed, gives (B·K, L)
            with the tokens at the end and -1 before them.
        sampler: Takes the logits, t and the indices of the sentences; returns a token of each, to take
            instead of the best one. For one beam.
        prompt_length: Number of tokens of `prompt`, where a fixed shape has more columns.
        capacity: Number of tokens L for which a search with fixed shapes has room; by default the largest
            `max_length`, which a function compiled by JAX may not know.

    Returns:
        `Hypotheses` with ids (B, n, L), scores (B, n) and lengths (B, n), best first; L is the
        number of steps that were needed, those of the prompt counted.

    Raises:
        ValueError: If an option is out of its range, or if `state` or what `step` returns has a
            shape other than described.
        tf.errors.InvalidArgumentError: If a `max_length` that is known only when a graph runs is below 1.

    Example:
        >>> logits = keras.ops.array([[0.0, 0.0, 0.0, 1.0, 4.0], [0.0, 0.0, 0.0, 9.0, 1.0]])
        >>> def step(ids, state):  # token 4 first, then eos (3)
        ...     return keras.ops.take(logits, keras.ops.cast(ids == 4, "int32"), axis=0), state
        >>> keras.ops.convert_to_numpy(beam_search(step, (), batch_size=1, max_length=5).ids).tolist()
        [[[4, 3]]]

    Source: Wu et al. 2016, section 7; Vaswani et al. 2017, section 6.1 (beam 4, alpha 0.6).
    """
    _check_options(beam_size, num_return, length_penalty)
    state = keras.tree.map_structure(ops.convert_to_tensor, state)
    if not manages_beams(state):
        check_state(state, batch_size, beam_size)
    fixed = not is_tensorflow()
    capacity = _check_capacity(capacity, max_length) if fixed else 0
    max_length = _check_max_length(max_length, batch_size)  # (B,)

    def advance(t: Any, sentences: Any, search: Search) -> Search:
        """Adds token t to the hypotheses; `sentences` (B,) are indices in the full batch."""
        logits, state = step(search.last_ids, search.state)
        check_logits(logits, eos_id)
        logits = as_float32(logits)
        if logits_processor is not None:
            rows = rows_of_each(ops.shape(logits)[0], ops.shape(sentences)[0])
            logits = logits_processor(logits, written_ids(search.alive.ids[:, :rows], t), sentences)
        limit = take_rows(max_length, sentences)  # (B,)
        final = t + 1 >= limit  # (B,), sentences that must end now
        forced = None if prefix is None else take_rows(forced_tokens(prefix, t, pad_id), sentences)  # (B,)
        sampled = None if sampler is None else sampler(logits, t, sentences)  # (B,)
        candidates, broken = grow(search.alive, logits, final, eos_id, forced, sampled)
        # Candidates that end are finished; the best others stay alive.
        index = t if fixed else None
        penalty, last_penalty = penalize(t + 1, length_penalty), penalize(limit, length_penalty)
        ended = finish(search.alive, candidates, eos_id, t + 1, penalty, index)
        finished = keep_best(search.finished, ended, broken, search.done, pad_id, index)
        alive, parents = keep_alive(search.alive, candidates, eos_id, index)
        done = search.done | broken | final | is_settled(alive, finished, penalty, last_penalty, num_return)
        last_ids = alive.ids[:, :, -1] if index is None else ops.take(alive.ids, index, axis=2)
        last_ids = ops.where(done[:, None], pad_id, last_ids)  # (B, K)
        if beam_size > 1:  # a single beam has no order
            state = reorder(state, parents)
        return Search(alive, finished, done, ops.reshape(last_ids, (-1,)), state)

    prompt = ops.zeros((batch_size, 0), "int32") if prompt is None else ops.convert_to_tensor(prompt, "int32")  # (B, t)
    width = ops.shape(prompt)[1]
    more = capacity - width if fixed else 0
    t = width if prompt_length is None else prompt_length
    last_ids = ops.pad(prompt, [(0, 0), (1, 0)], constant_values=bos_id)  # (B, 1 + t)
    last_ids = last_ids[:, -1] if prompt_length is None else ops.take(last_ids, t, axis=1)  # (B,)
    search = Search(
        first_alive(prompt, beam_size, more, pad_id),
        none_finished(prompt, beam_size, pad_id, more),
        ops.zeros((batch_size,), "bool"),
        ops.repeat(last_ids, initial_rows(state, beam_size), axis=0),
        state,
    )
    if fixed:
        results = fixed_search(advance, search, t, batch_size)
    else:
        from keras_attention.decoding.growing_search import growing_search  # imports TensorFlow

        results = growing_search(advance, search, t, batch_size, pad_id)
    return Hypotheses(*(x[:, :num_return] for x in results))


def _check_max_length(max_length: Any, batch_size: Any) -> Any:
    """Returns `max_length` as one number for each sentence (B,), checked as early as possible."""
    max_length = ops.cast(max_length, "int32")
    if len(max_length.shape) > 1:
        raise ValueError(
            "max_length must be one number or one for each sentence (B,). "
            f"Received: max_length.shape={tuple(max_length.shape)}"
        )
    known = known_value(max_length)
    message = "max_length must be 1 or more (the end of sentence counts). "
    if known is None:
        assert_positive(max_length, message)
    elif (known < 1).any():
        raise ValueError(f"{message}Received: max_length={known.tolist()}")
    return ops.broadcast_to(max_length, (batch_size,))


def _check_capacity(capacity: int | None, max_length: Any) -> int:
    """Returns the number of tokens for which the hypotheses of a search with fixed shapes have room."""
    known = known_value(max_length)
    if capacity is None and known is None:
        raise ValueError(
            "A compiled function does not know the largest `max_length`: give the `capacity` of the hypotheses. "
            "Received: capacity=None"
        )
    return int(known.max(initial=1)) if capacity is None else capacity


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


def check_logits(logits: Any, eos_id: int) -> None:
    """Checks the shape of the logits that the caller's `step` returned."""
    if len(logits.shape) != 2:
        raise ValueError(
            "step must return the logits of the next token, (batch_size * beam_size, vocabulary). "
            f"Received: logits.shape={tuple(logits.shape)}"
        )
    if logits.shape[1] is not None and not 0 <= eos_id < logits.shape[1]:
        raise ValueError(f"eos_id must be a token of the vocabulary of {logits.shape[1]}. Received: eos_id={eos_id}")
