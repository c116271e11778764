"""The loop of a beam search on TensorFlow, in a graph: its tensors grow, and sentences that are done leave the batch.

Shapes: B sentences, K beams, t tokens so far.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_attention.decoding.hypotheses import Alive, Hypotheses
from keras_attention.decoding.search_state import Search, select


def growing_search(
    advance: Callable[[tf.Tensor, tf.Tensor, Search], Search], search: Search, t: Any, batch_size: Any, pad_id: int
) -> Hypotheses:
    """Runs the step `advance(t, sentences, search)` from t on until every sentence is done."""

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

    results = search.finished
    return tf.while_loop(
        lambda t, sentences, search, results: ~tf.reduce_all(search.done),
        run_round,
        (t, tf.range(batch_size), search, results),
        (tf.TensorShape([]), tf.TensorShape([None]), _shapes(search), _shapes(results)),
    )[3]


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
