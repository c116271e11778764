"""The cross-entropy of logits x Eᵀ without storing all of them at once.

Shapes: B batch, T target length, N = B·T tokens, C chunk size, M model width, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.layers.arguments import fraction, integer_or_none, positive_integer
from keras_attention.training.labels import masked_labels, multiply_no_nan, scale_loss_for_distribution
from keras_attention.training.losses import argmax, gather_labels
from keras_attention.training.metrics import MaskedAccuracy, Perplexity


class TokenSums(NamedTuple):
    """Sums over the tokens that are not padding.

    Attributes:
        loss: Label-smoothed cross-entropy times the sample weights, which the other sums ignore.
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


class ChunkedTrainer(keras.Model):
    """Model for `fit` that trains the weights of another model and computes the logits x Eᵀ only C tokens at a time.

    The logits, (N, V), are the largest tensor of a Transformer's training step, and several of their size are alive at
    once. Here their size is (C, V). The loss and the metrics have the values and names of `MaskedCrossEntropy`,
    `MaskedAccuracy` and `Perplexity` in the `loss` and `metrics` of the model's `compile`: sample weights change the
    loss only. Save, evaluate and translate with the model whose weights it trains.

    Args:
        model: A `Transformer` or a `CausalTransformer`.
        label_smoothing: ε.
        inputs: Inputs instead of the model's own: those of `Transformer.packed()`.
        ignore_id: Label of padding; None for no padding.
        chunk_size: C, the most tokens of a chunk. The chunks of a batch have equal sizes.
        **kwargs: See `keras.Model`, such as `name`.

    Raises:
        ValueError: If ε is outside [0, 1), `chunk_size` is not a positive integer, or `ignore_id` is not an integer.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=100)
        >>> trainer = ChunkedTrainer(model, label_smoothing=0.1)
        >>> trainer.compile(ka.training.paper_optimizer(model.config))
        >>> ids = keras.ops.ones((2, 5), dtype="int32")
        >>> history = trainer.fit({"source": ids, "target": ids}, ids, verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'loss', 'perplexity']

    Source: Vaswani et al. 2017, sections 3.4 and 5.4.
    """

    def __init__(
        self,
        model: keras.Model,
        label_smoothing: float = 0.0,
        inputs: Any = None,
        ignore_id: int | None = 0,
        chunk_size: int = 1024,
        **kwargs: Any,
    ):
        if inputs is None:
            inputs, outputs = model.input, model.get_layer("decoder").output  # of the model's own graph
        else:
            outputs = model.decoder_output(**(inputs if isinstance(inputs, Mapping) else {inputs.name: inputs}))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.dtype_policy = model.dtype_policy
        self.embedding = model.get_layer("embedding")
        self.label_smoothing = fraction(label_smoothing, "label_smoothing")
        self.ignore_id = integer_or_none(ignore_id, "ignore_id")
        self.chunk_size = positive_integer(chunk_size, "chunk_size")
        self.accuracy, self.perplexity = MaskedAccuracy(), Perplexity()

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: None = None,
        loss_weights: None = None,
        metrics: None = None,
        weighted_metrics: None = None,
        **settings: Any,
    ) -> None:
        """Configures the model for `fit`.

        Args:
            optimizer: See `keras.Model.compile`. Pass the optimizer of the model to resume with its state.
            loss: None, like the next three, since the trainer has its own loss and metrics.
            loss_weights: None.
            metrics: None.
            weighted_metrics: None.
            **settings: See `keras.Model.compile`.

        Raises:
            ValueError: If there is a loss or a metric, or the model's embedding is quantized.
        """
        not_taken = {
            "loss": loss, "loss_weights": loss_weights, "metrics": metrics, "weighted_metrics": weighted_metrics
        }  # fmt: skip
        for name, value in not_taken.items():
            if value is not None:
                raise ValueError(
                    f"A ChunkedTrainer takes no `{name}`: it computes the masked cross-entropy, the accuracy and the "
                    "perplexity, with the `label_smoothing` and `ignore_id` of its constructor. For another loss or "
                    f"metric, call `compile` and `fit` of the model itself. Received: {name}={value!r}"
                )
        self._check_embedding()
        super().compile(optimizer, **settings)
        # Created in the first step, as Keras does, the optimizer's variables make TensorFlow trace that step twice.
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Computes the mean loss over the tokens that are not padding, and updates the metrics.

        Args:
            x: Unused.
            y: Labels (B, T).
            y_pred: Hidden states (B, T, M), from which the logits are computed.
            sample_weight: See `MaskedCrossEntropy`.
            training: Unused.

        Returns:
            A scalar.

        Raises:
            ValueError: If there are no labels, or the model's embedding is quantized.
        """
        if y is None:
            raise ValueError("A ChunkedTrainer takes inputs and labels: `fit(inputs, labels)`. Received: y=None")
        self._check_embedding()
        sums = chunked_cross_entropy(
            y_pred,
            self.embedding.embeddings,
            y,
            self.label_smoothing,
            self.ignore_id,
            self.chunk_size,
            sample_weight,
        )
        self.accuracy.add(sums.correct, sums.count)
        self.perplexity.add(sums.negative_log_likelihood, sums.count)
        return scale_loss_for_distribution(sum(self.losses, ops.divide_no_nan(sums.loss, sums.count)))

    def fit(self, *args: Any, class_weight: None = None, **kwargs: Any) -> Any:
        """Trains the model: see `keras.Model.fit`.

        Args:
            *args: See `keras.Model.fit`.
            class_weight: None.
            **kwargs: See `keras.Model.fit`.

        Returns:
            The history.

        Raises:
            ValueError: If there is a `class_weight`.
        """
        _refuse_class_weight(class_weight)
        return super().fit(*args, **kwargs)

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: None = None, **kwargs: Any
    ) -> Any:
        """Trains the model on one batch: see `keras.Model.train_on_batch`.

        Args:
            x: Inputs.
            y: Labels (B, T).
            sample_weight: See `MaskedCrossEntropy`.
            class_weight: None.
            **kwargs: See `keras.Model.train_on_batch`.

        Returns:
            The loss and the metrics.

        Raises:
            ValueError: If there is a `class_weight`.
        """
        _refuse_class_weight(class_weight)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def _check_embedding(self) -> None:
        mode = self.embedding.quantization_mode
        if mode is not None:
            raise ValueError(
                "A ChunkedTrainer computes the logits from the embedding, which a quantized `model` stores as integers "
                "with scales. Train first, then call `model.quantize`; for the loss of a quantized model, call its own "
                f"`evaluate`. Received: a model whose embedding has quantization_mode={mode!r}"
            )

    def get_config(self) -> dict[str, Any]:
        raise TypeError(
            "A ChunkedTrainer is for `fit` only, since a copy of it would train other weights. Save the model whose "
            "weights it trains, compiled with the same optimizer."
        )


def chunked_cross_entropy(
    x: Any,
    embeddings: Any,
    labels: Any,
    label_smoothing: float = 0.0,
    ignore_id: int | None = 0,
    chunk_size: int = 1024,
    sample_weight: Any = None,
) -> TokenSums:
    """Σ_t −[(1 − ε) z_t(y_t) + ε/V Σ_v z_t(v)] + log Σ_v exp z_t(v), z_t = E x_t, over the tokens that are not padding.

    The gradients are computed together with the loss, from the probabilities p of a chunk: those of log Σ exp z are p E
    and pᵀ x. The terms of the label and of the smoothing need no logits.

    Args:
        x: Hidden states (B, T, M).
        embeddings: E, (V, M).
        labels: Token ids (B, T).
        label_smoothing: ε.
        ignore_id: Label of padding; None for no padding.
        chunk_size: C, the most tokens of a chunk. The chunks of a batch have equal sizes.
        sample_weight: See `MaskedCrossEntropy`; only for the sum of the loss.

    Returns:
        The sums. Gradients of the loss flow to x and E.

    Example:
        >>> x, embeddings = keras.ops.ones((2, 3, 4)), keras.ops.zeros((10, 4))
        >>> float(chunked_cross_entropy(x, embeddings, keras.ops.ones((2, 3), dtype="int32")).count)
        6.0
    """
    width, vocabulary_size = embeddings.shape[1], embeddings.shape[0]
    masked = masked_labels(labels, x, vocabulary_size, ignore_id, sample_weight)
    labels, mask, weights = (ops.reshape(each, (-1,)) for each in masked)  # (N,)
    rows = ops.where(ops.equal(mask, 0)[:, None], 0, ops.reshape(x, (-1, width)))  # (N, M), finite where ignored
    embeddings = ops.cast(embeddings, rows.dtype)
    smooth = label_smoothing / vocabulary_size
    dtype = keras.backend.standardize_dtype(rows.dtype)
    logits_dtype = "float32" if dtype == "float16" else dtype  # float16 has no probability below 6e-8

    # All tensors are arguments because JAX cannot differentiate a compiled function that closes over them.
    @ops.custom_gradient
    def sums_of(rows: Any, embeddings: Any, labels: Any, mask: Any, weights: Any) -> Any:
        row_sum = ops.sum(ops.cast(embeddings, "float32"), axis=0)  # (M,)

        def chunk(index: Any, carry: Any) -> Any:
            sums, d_rows, d_embeddings = carry
            x, labels, mask, weights = (each[index] for each in chunked)  # (C, M), (C,), (C,), (C,)
            logits = ops.cast(ops.matmul(x, ops.transpose(embeddings)), logits_dtype)  # (C, V)
            best = argmax(logits)  # (C,)
            largest, correct = ops.cast(gather_labels(logits, best), "float32"), ops.equal(best, labels)
            probabilities = ops.softmax(logits)  # (C, V)
            label_logits, label_probabilities = (
                ops.cast(gather_labels(values, labels), "float32") for values in (logits, probabilities)
            )  # (C,), z and p of the labels
            # log Σ exp z = z − log p. Where p underflows, the largest z is nearly all of the sum.
            log_sum = ops.maximum(label_logits - ops.log(ops.maximum(label_probabilities, 1e-37)), largest)  # (C,)
            probabilities = ops.cast(probabilities, x.dtype)
            x = ops.cast(x, "float32")
            label_vectors = ops.cast(ops.take(embeddings, labels, axis=0), "float32")  # (C, M)
            losses = log_sum - (1 - label_smoothing) * label_logits - smooth * ops.matmul(x, row_sum[:, None])[:, 0]
            negative_log_likelihoods = log_sum - label_logits
            sums = sums + ops.stack(
                [
                    ops.sum(multiply_no_nan(losses, weights)),
                    ops.sum(multiply_no_nan(negative_log_likelihoods, mask)),
                    ops.sum(multiply_no_nan(ops.cast(correct, "float32"), mask)),
                    ops.sum(multiply_no_nan(ops.ones_like(mask), mask)),
                ]
            )
            weights = weights[:, None]  # (C, 1)
            attracted = (1 - label_smoothing) * label_vectors + smooth * row_sum  # (C, M)
            d_x = (ops.cast(ops.matmul(probabilities, embeddings), "float32") - attracted) * weights
            new = ops.matmul(ops.transpose(probabilities), ops.cast(x * weights, probabilities.dtype))  # (V, M)
            # Not `slice_update`, which TensorFlow recompiles for each shape.
            d_rows = ops.scatter_update(d_rows, ops.reshape(index, (1, 1)), d_x[None])
            return sums, d_rows, d_embeddings + ops.cast(new, "float32")

        chunks = 1 + ops.shape(rows)[0] // chunk_size
        size = 1 + ops.shape(rows)[0] // chunks  # at most C, so that the last chunk is not mostly padding
        chunked = [_chunks_of(values, chunks, size) for values in (rows, labels, mask, weights)]
        sums, d_rows, d_embeddings = ops.fori_loop(
            0,
            chunks,
            chunk,
            (
                ops.zeros((4,), "float32"),
                ops.zeros(ops.shape(chunked[0]), "float32"),
                ops.zeros((vocabulary_size, width), "float32"),
            ),
        )

        weighted_rows = ops.cast(rows, "float32") * weights[:, None]  # (N, M)
        by_label = ops.segment_sum(weighted_rows, labels, num_segments=vocabulary_size)  # (V, M)
        d_embeddings = d_embeddings - (1 - label_smoothing) * by_label - smooth * ops.sum(weighted_rows, axis=0)
        d_rows = ops.reshape(d_rows, (-1, width))[: ops.shape(rows)[0]]

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


def _refuse_class_weight(class_weight: Any) -> None:
    if class_weight is not None:
        raise ValueError(
            "`class_weight` weighs whole samples, but here each token has a class. Pass the weight of each token: "
            f"`fit(inputs, labels, sample_weight=weights)`. Received: class_weight={class_weight!r}"
        )


def _chunks_of(values: Any, chunks: Any, size: Any) -> Any:
    """Reshapes (N, …) to (chunks, C, …), padded with zeros."""
    rest = tuple(values.shape[1:])
    padded = ops.pad(values, [[0, chunks * size - ops.shape(values)[0]], *([0, 0] for _ in rest)])
    return ops.reshape(padded, (chunks, size, *rest))
