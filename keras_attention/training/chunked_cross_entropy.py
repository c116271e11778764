"""The cross-entropy of logits x Eᵀ without storing all of them at once.

Shapes: B batch, T target length, N = B·T tokens, P passes, C tokens of a chunk in each, M model width, V vocabulary.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.ops.attention import is_on_gpu
from keras_attention.training.consistency import divergences, pass_weights
from keras_attention.training.data_parallel import num_shards
from keras_attention.training.labels import masked_labels, multiply_no_nan
from keras_attention.training.losses import argmax, gather_labels

# The sizes that train fastest: a GPU needs large products, a CPU logits that stay in its caches.
CPU_CHUNK, GPU_CHUNK = 1024, 8192


class TokenSums(NamedTuple):
    """Sums over the tokens that are not padding.

    Attributes:
        loss: Label-smoothed cross-entropy, and the consistency loss, times the sample weights, which the other sums
            ignore.
        negative_log_likelihood: Cross-entropy without label smoothing.
        correct: Number of tokens whose label has the largest logit.
        count: Number of tokens.

    Example:
        >>> TokenSums(2.0, 1.5, 1.0, 2.0).count
        2.0
    """

    loss: Any
    negative_log_likelihood: Any
    correct: Any
    count: Any


def chunked_cross_entropy(
    x: Any,
    embeddings: Any,
    labels: Any,
    label_smoothing: float = 0.0,
    ignore_id: int | None = 0,
    chunk_size: int | None = None,
    sample_weight: Any = None,
    second_pass: Any = None,
    consistency: str | None = None,
    consistency_weight: float | None = None,
) -> TokenSums:
    """Σ_t −[(1 − ε) z_t(y_t) + ε/V Σ_v z_t(v)] + log Σ_v exp z_t(v), z_t = E x_t, over the tokens that are not padding.

    The gradients are computed together with the loss, from the probabilities p of a chunk: those of log Σ exp z are p E
    and pᵀ x. The terms of the label and of the smoothing need no logits. With a second pass, the loss of a token is the
    one that `ChunkedTrainer` describes for `consistency`.

    Args:
        x: Hidden states (B, T, M).
        embeddings: E, (V, M).
        labels: Token ids (B, T).
        label_smoothing: ε.
        ignore_id: Label of padding; None for no padding.
        chunk_size: C, the most tokens of a chunk, those of both passes counted; 1,024 by default, 8,192 on a GPU. The
            chunks of a batch have equal sizes.
        sample_weight: See `MaskedCrossEntropy`; only for the sum of the loss.
        second_pass: Hidden states (B, T, M) of a second pass over the same tokens.
        consistency: See `ChunkedTrainer`; required with a second pass.
        consistency_weight: See `ChunkedTrainer`.

    Returns:
        The sums, all but the loss those of x only. Gradients of the loss flow to x, `second_pass` and E.

    Raises:
        ValueError: See `ChunkedTrainer`; also if there is a second pass without `consistency`, or the reverse.

    Example:
        >>> x, embeddings = keras.ops.ones((2, 3, 4)), keras.ops.zeros((10, 4))
        >>> float(chunked_cross_entropy(x, embeddings, keras.ops.ones((2, 3), dtype="int32")).count)
        6.0
    """
    if (second_pass is None) != (consistency is None):
        raise ValueError(
            "A consistency loss compares two passes: give both `second_pass` and `consistency`, or neither. "
            f"Received: second_pass={'None' if second_pass is None else 'a tensor'}, consistency={consistency!r}"
        )
    terms = pass_weights(consistency, consistency_weight)
    chunk_size = chunk_size or (GPU_CHUNK if is_on_gpu(x) else CPU_CHUNK)
    width, vocabulary_size = embeddings.shape[1], embeddings.shape[0]
    masked = masked_labels(labels, x, vocabulary_size, ignore_id, sample_weight)
    labels, mask, weights = (ops.reshape(each, (-1,)) for each in masked)  # (N,)
    passes = [x] if second_pass is None else [x, second_pass]  # P of them
    num_passes = len(passes)
    rows = ops.concatenate([ops.reshape(each, (-1, width)) for each in passes])  # (P·N, M)
    is_ignored = ops.concatenate([ops.equal(mask, 0)] * num_passes)
    rows = ops.where(is_ignored[:, None], 0, rows)  # finite where ignored
    embeddings = ops.cast(embeddings, rows.dtype)
    smooth = label_smoothing / vocabulary_size
    dtype = keras.backend.standardize_dtype(rows.dtype)
    # float16 has no probability below 6e-8, and bfloat16 no small difference of two logits.
    logits_dtype = "float32" if dtype == "float16" or consistency else dtype

    def for_each_pass(values: Any) -> Any:
        return ops.concatenate([values] * num_passes)

    def by_share(values: Any) -> Any:
        return ops.concatenate([share * values for share in terms.cross_entropy])

    # All tensors are arguments because JAX cannot differentiate a compiled function that closes over them.
    @ops.custom_gradient
    def sums_of(rows: Any, embeddings: Any, labels: Any, mask: Any, weights: Any) -> Any:
        row_sum = ops.sum(ops.cast(embeddings, "float32"), axis=0)  # (M,)

        def chunk(index: Any, carry: Any) -> Any:
            sums, d_rows, d_embeddings = carry
            labels, mask, weights = (each[index] for each in chunked)  # (C,)
            x, labels = chunked_rows[index], for_each_pass(labels)  # (P·C, M), (P·C,)
            logits = ops.cast(ops.matmul(x, ops.transpose(embeddings)), logits_dtype)  # (P·C, V)
            best = argmax(logits)  # (P·C,)
            largest, correct = ops.cast(gather_labels(logits, best), "float32"), ops.equal(best, labels)
            probabilities = ops.softmax(logits)  # (P·C, V)
            label_logits, label_probabilities = (
                ops.cast(gather_labels(values, labels), "float32") for values in (logits, probabilities)
            )  # (P·C,), z and p of the labels
            # log Σ exp z = z − log p. Where p underflows, the largest z is nearly all of the sum.
            log_sum = ops.maximum(label_logits - ops.log(ops.maximum(label_probabilities, 1e-37)), largest)  # (P·C,)
            divergence, by_logits = ops.zeros_like(weights), probabilities  # (C,), (P·C, V)
            if second_pass is not None:
                divergence, by_divergence = divergences(logits, probabilities, terms)
                by_logits = shares * probabilities + by_divergence
            by_logits = ops.cast(by_logits, x.dtype)
            x = ops.cast(x, "float32")
            label_vectors = ops.cast(ops.take(embeddings, labels, axis=0), "float32")  # (P·C, M)
            losses = log_sum - (1 - label_smoothing) * label_logits - smooth * ops.matmul(x, row_sum[:, None])[:, 0]
            negative_log_likelihoods = log_sum - label_logits
            sums = sums + ops.stack(
                [
                    ops.sum(multiply_no_nan(losses, by_share(weights))) + ops.sum(multiply_no_nan(divergence, weights)),
                    ops.sum(multiply_no_nan(negative_log_likelihoods[:size], mask)),
                    ops.sum(multiply_no_nan(ops.cast(correct[:size], "float32"), mask)),
                    ops.sum(multiply_no_nan(ops.ones_like(mask), mask)),
                ]
            )
            weights = for_each_pass(weights)[:, None]  # (P·C, 1)
            attracted = shares * ((1 - label_smoothing) * label_vectors + smooth * row_sum)  # (P·C, M)
            d_x = (ops.cast(ops.matmul(by_logits, embeddings), "float32") - attracted) * weights
            new = ops.matmul(ops.transpose(by_logits), ops.cast(x * weights, by_logits.dtype))  # (V, M)
            # Not `slice_update`, which TensorFlow recompiles for each shape.
            d_rows = ops.scatter_update(d_rows, ops.reshape(index, (1, 1)), d_x[None])
            return sums, d_rows, d_embeddings + ops.cast(new, "float32")

        count = ops.shape(labels)[0]  # N
        # Where devices have a part of the batch each, a chunk has C tokens of each part, so that none waits for others.
        parts = num_shards() if isinstance(count, int) and count % num_shards() == 0 else 1
        # Equal chunks of at most C tokens, so that the last one is not mostly padding; one chunk of an empty batch.
        last = max(count // parts, 1) - 1 if isinstance(count, int) else ops.maximum(count, 1) - 1
        chunks = 1 + last // max(1, chunk_size // num_passes)
        part_size = 1 + last // chunks
        size = parts * part_size  # of all parts
        chunked_rows = _chunks_of(rows, chunks, part_size, parts * num_passes)
        chunked = [_chunks_of(values, chunks, part_size, parts) for values in (labels, mask, weights)]
        shares = by_share(ops.ones((size, 1), "float32"))  # (P·C, 1)
        sums, d_rows, d_embeddings = ops.fori_loop(
            0,
            chunks,
            chunk,
            (
                ops.zeros((4,), "float32"),
                ops.zeros(ops.shape(chunked_rows), "float32"),
                ops.zeros((vocabulary_size, width), "float32"),
            ),
        )

        weighted_rows = ops.cast(rows, "float32") * by_share(weights)[:, None]  # (P·N, M)
        by_label = ops.segment_sum(weighted_rows, for_each_pass(labels), num_segments=vocabulary_size)  # (V, M)
        d_embeddings = d_embeddings - (1 - label_smoothing) * by_label - smooth * ops.sum(weighted_rows, axis=0)
        d_rows = _rows_of(d_rows, count // parts, chunks, part_size, parts * num_passes)

        def gradient(*args: Any, upstream: Any = None) -> Any:
            upstream = (args[0] if upstream is None else upstream)[0]
            return (
                ops.cast(d_rows * upstream, rows.dtype),
                ops.cast(d_embeddings * upstream, embeddings.dtype),
                *(None, None, None),
            )

        return sums, gradient

    sums = sums_of(rows, embeddings, labels, mask, weights)
    return TokenSums(*(sums[index] for index in range(4)))


def _chunks_of(values: Any, chunks: Any, size: Any, num_passes: int = 1) -> Any:
    """Reshapes (P·N, …) to (chunks, P·C, …), each with the same C tokens of every pass or part, padded with zeros."""
    rest = tuple(values.shape[1:])
    values = ops.reshape(values, (num_passes, -1, *rest))
    padded = ops.pad(values, [[0, 0], [0, chunks * size - ops.shape(values)[1]], *([0, 0] for _ in rest)])
    by_pass = ops.reshape(padded, (num_passes, chunks, size, *rest))
    return ops.reshape(ops.swapaxes(by_pass, 0, 1), (chunks, num_passes * size, *rest))


def _rows_of(values: Any, count: Any, chunks: Any, size: Any, num_passes: int) -> Any:
    """Reshapes (chunks, P·C, M) back to (P·N, M), without the padding."""
    width = values.shape[-1]
    by_pass = ops.swapaxes(ops.reshape(values, (chunks, num_passes, size, width)), 0, 1)
    return ops.reshape(ops.reshape(by_pass, (num_passes, chunks * size, width))[:, :count], (-1, width))
