"""Logits processors: functions of the logits that a model gives to the next token, before it is chosen.

A processor forbids a token by adding -inf to its logit. So the search still finds unusable rows: NaN stays NaN, +inf
becomes NaN where it is forbidden, and a row of only -inf stays one. Forbidding the last allowed token also makes such
a row.

A processor is a few passes over the logits, whatever the number of tokens written, because it runs at every step of a
search in an exported graph.

Shapes: R rows (sentences, or beams of all sentences), V vocabulary, t tokens written so far, P tokens of a prefix.
"""

import math
from typing import Any

from keras import ops

from keras_attention.decoding.tensors import is_tensorflow, smaller, top_k

NEG_INF = float("-inf")  # added to the logit of a forbidden token
HEAD = 256  # number of best tokens that top-p sorts before it sorts a whole row


def forbid_end(logits: Any, length: Any, min_length: Any, eos_id: int) -> Any:
    """Forbids eos where it would end a sentence of fewer than `min_length` tokens.

    The end of sentence counts: taken now, eos would be token number `length + 1`, so it is forbidden while
    `length + 1 < min_length`. A `min_length` of 1 or less allows the empty sentence, which is only eos.

    Args:
        logits: Logits (R, V).
        length: Number of tokens written so far, one number or one for each row (R,).
        min_length: Minimum number of tokens of a sentence, one number or one for each row.
        eos_id: Token that ends a sentence.

    Returns:
        Logits (R, V).

    Example:
        >>> forbid_end(keras.ops.zeros((1, 4)), length=1, min_length=3, eos_id=3).numpy().tolist()
        [[0.0, 0.0, 0.0, -inf]]
    """
    too_short = ops.convert_to_tensor(length) + 1 < min_length  # () or (R,)
    end = ops.full((ops.shape(logits)[0], 1), eos_id, "int32")  # (R, 1)
    return _add_at(logits, end, ops.broadcast_to(ops.where(too_short, NEG_INF, 0.0)[..., None], ops.shape(end)))


def forbid_repeats(logits: Any, ids: Any, length_of_ngram: int, eos_id: int) -> Any:
    """Forbids the tokens that would repeat an n-gram.

    With n = 1, these are all tokens already written. The end of sentence is never forbidden.

    Args:
        logits: Logits (R, V).
        ids: Tokens written so far (R, t).
        length_of_ngram: n.
        eos_id: Token that ends a sentence.

    Returns:
        Logits (R, V).

    Raises:
        ValueError: n is below 1.

    Example:
        >>> ids = keras.ops.array([[1, 4, 2, 1]])
        >>> forbid_repeats(keras.ops.zeros((1, 5)), ids, length_of_ngram=2, eos_id=3).numpy().tolist()
        [[0.0, 0.0, 0.0, 0.0, -inf]]

    Source: Paulus et al. 2017 (arXiv 1705.04304), section 2.5.
    """
    n = length_of_ngram
    if n < 1:
        raise ValueError(
            "length_of_ngram must be 1 or more; to allow repeats, do not call this. "
            f"Received: length_of_ngram={length_of_ngram}"
        )
    t = ops.shape(ids)[1]
    # After padding with -1, which is no token, each of the t tokens ends an n-gram.
    padded = ops.pad(ids, [(0, 0), (n - 1, 0)], constant_values=-1)  # (R, n - 1 + t)
    repeated = ops.not_equal(ids, eos_id)  # (R, t)
    for i in range(n - 1):  # the n - 1 tokens before it against the last n - 1
        repeated &= ops.equal(padded[:, i : i + t], padded[:, t + i, None])
    if not is_tensorflow():  # in a search with fixed shapes, `ids` are padded too
        repeated, ids = repeated & (ids >= 0), ops.maximum(ids, 0)
    return _add_at(logits, ids, ops.where(repeated, NEG_INF, 0.0))


def force_prefix(logits: Any, position: Any, prefix: Any, pad_id: int, model_logits: Any) -> Any:
    """Forbids all but the next token of a prefix, whose logit becomes that of the model.

    Apply it last, so that no other processor forbids that token. The token has probability 1 under the returned logits:
    compute log probabilities from `model_logits`.

    Args:
        logits: Logits (R, V) after the other processors; rows past their prefix are unchanged.
        position: Number of tokens written so far.
        prefix: Tokens that each row starts with, int32 (R, P), padded at the end.
        pad_id: Token that pads shorter rows.
        model_logits: Logits (R, V) before all processors.

    Returns:
        Logits (R, V).

    Example:
        >>> logits = keras.ops.array([[4.0, 5.0, 6.0]])
        >>> force_prefix(logits, 0, keras.ops.array([[1, 0]]), 0, logits).numpy().tolist()
        [[-inf, 5.0, -inf]]
        >>> force_prefix(logits, 1, keras.ops.array([[1, 0]]), 0, logits).numpy().tolist()
        [[4.0, 5.0, 6.0]]
    """

    forced = forced_tokens(prefix, position, pad_id)[:, None]  # (R, 1)

    def force() -> Any:
        others = ops.not_equal(ops.arange(ops.shape(logits)[1]), forced)  # (R, V)
        return ops.where(forced < 0, logits, _forbid(model_logits, others))

    return ops.cond(ops.any(forced >= 0), force, lambda: ops.copy(logits))


def forced_tokens(prefix: Any, position: Any, pad_id: int) -> Any:
    """Returns the token (R,) that each prefix (R, P), padded at the end, has at a position; -1 past its end."""
    padded = ops.pad(prefix, [(0, 0), (0, 1)], constant_values=pad_id)  # (R, P + 1)
    tokens = padded[:, ops.minimum(position, ops.shape(prefix)[1])]  # (R,)
    return ops.where(ops.equal(tokens, pad_id), -1, tokens)


def scale_by_temperature(logits: Any, temperature: float) -> Any:
    """Divides the logits by the temperature: below 1 sharpens the distribution, above 1 flattens it.

    Args:
        logits: Logits (R, V).
        temperature: A number above 0.

    Returns:
        Logits (R, V).

    Raises:
        ValueError: The temperature is not a number above 0.

    Example:
        >>> scale_by_temperature(keras.ops.array([[1.0, 3.0]]), temperature=0.5).numpy().tolist()
        [[2.0, 6.0]]
    """
    if not 0 < temperature < math.inf:
        raise ValueError(
            "temperature must be a number above 0; for the likeliest token, do not sample. "
            f"Received: temperature={temperature}"
        )
    return logits if temperature == 1 else logits / temperature


def keep_top_k(logits: Any, k: int) -> Any:
    """Forbids all but the k best tokens; of equal logits, those with lower ids are better.

    Args:
        logits: Logits (R, V).
        k: Number of tokens to keep; V or more keeps all.

    Returns:
        Logits (R, V).

    Raises:
        ValueError: k is below 1.

    Example:
        >>> keep_top_k(keras.ops.array([[1.0, 3.0, 2.0, 2.0]]), k=2).numpy().tolist()
        [[-inf, 3.0, 2.0, -inf]]

    Source: Fan et al. 2018 (arXiv 1805.04833).
    """
    if k < 1:
        raise ValueError(f"k must be 1 (only the best token) or more. Received: k={k}")
    values, ids = _top_k(logits, k)
    return _keep_at(logits, ids, ops.ones_like(values, "bool"))


def keep_top_p(logits: Any, p: float) -> Any:
    """Forbids all but the smallest set of tokens whose probabilities sum to p or more.

    The set contains at least the best token; of equal logits, those with lower ids are better.

    Args:
        logits: Logits (R, V).
        p: Probability above 0; 1 keeps all tokens.

    Returns:
        Logits (R, V).

    Raises:
        ValueError: p is not in (0, 1].

    Example:
        >>> keep_top_p(keras.ops.log([[0.1, 0.6, 0.3]]), p=0.7).numpy().round(1).tolist()
        [[-inf, -0.5, -1.2000000476837158]]

    Source: Holtzman et al. 2019 (arXiv 1904.09751), section 3.1.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must be above 0 and at most 1, where nothing is forbidden. Received: p={p}")
    if p == 1:
        return logits
    log_total = ops.logsumexp(logits, axis=-1, keepdims=True)  # (R, 1)

    def best(number: Any) -> tuple[Any, Any, Any]:
        values, ids = _top_k(logits, number)
        return ids, *_probability_up_to(values, log_total)

    def keep(number: Any) -> Any:
        ids, before, _ = best(number)
        return _keep_at(logits, ids, before < p)

    # Sorting a row costs as much as a small model, and most rows reach p with few tokens. NaN is not below p.
    ids, before, upto = best(HEAD)
    return ops.cond(
        ops.any(upto[:, -1] < p),
        lambda: keep(ops.shape(logits)[1]),
        lambda: _keep_at(logits, ids, before < p),
    )


def keep_min_p(logits: Any, p: float) -> Any:
    """Forbids the tokens whose probability is below p times that of the best token.

    Args:
        logits: Logits (R, V).
        p: Share between 0, which keeps all tokens, and 1, which keeps only the best.

    Returns:
        Logits (R, V).

    Raises:
        ValueError: p is not in [0, 1].

    Example:
        >>> keep_min_p(keras.ops.log([[0.1, 0.6, 0.3]]), p=0.4).numpy().round(1).tolist()
        [[-inf, -0.5, -1.2000000476837158]]

    Source: Nguyen et al. 2024 (arXiv 2407.01082).
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be between 0, where nothing is forbidden, and 1. Received: p={p}")
    if p == 0:
        return logits
    return _forbid(logits, logits < ops.max(logits, axis=-1, keepdims=True, initial=NEG_INF) + math.log(p))


def _forbid(logits: Any, tokens: Any) -> Any:
    """Adds -inf to the logits where `tokens`, which broadcasts to (R, V), is true."""
    return logits + ops.where(tokens, NEG_INF, 0.0)


def _add_at(logits: Any, ids: Any, values: Any) -> Any:
    """Adds values (R, n) to the logits (R, V) of the tokens (R, n), which may repeat."""
    return ops.scatter_update(logits, _indices(ids), ops.reshape(values, (-1,)), reduction="add")


def _keep_at(logits: Any, ids: Any, kept: Any) -> Any:
    """Forbids all tokens but those of `ids` (R, n) for which `kept` (R, n) is true."""
    forbidden = ops.full(ops.shape(logits), NEG_INF, "float32")
    kept = ops.where(ops.reshape(kept, (-1,)), 0.0, NEG_INF)
    return logits + ops.scatter_update(forbidden, _indices(ids), kept)


def _indices(ids: Any) -> Any:
    """Returns the indices (R·n, 2) of tokens (R, n), each as row and token."""
    rows = ops.broadcast_to(ops.arange(ops.shape(ids)[0])[:, None], ops.shape(ids))
    return ops.reshape(ops.stack([rows, ids], axis=-1), (-1, 2))


def _top_k(logits: Any, number: Any) -> tuple[Any, Any]:
    """Returns the best logits of each row and their tokens, both (R, min(number, V)); NaN counts as -inf."""
    sortable = ops.where(ops.isnan(logits), NEG_INF, logits)
    return top_k(sortable, smaller(number, ops.shape(logits)[1]))


def _probability_up_to(values: Any, log_total: Any) -> tuple[Any, Any]:
    """Returns the sum of the probabilities before each token of a row (R, n), and that up to each token."""
    probabilities = ops.exp(values - log_total)
    upto = ops.cumsum(probabilities, axis=-1)
    return ops.concatenate([ops.zeros_like(upto[:, :1]), upto[:, :-1]], axis=-1), upto
