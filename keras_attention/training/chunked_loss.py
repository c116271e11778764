"""The cross-entropy of logits x Eᵀ that are never all there at once.

Shapes: B batch, T target length, N = B·T tokens, C tokens of a chunk, M model width, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_attention.layers.arguments import fraction, integer_or_none, positive_integer
from keras_attention.training.losses import first_largest, gather_labels
from keras_attention.training.metrics import MaskedAccuracy, Perplexity
from keras_attention.training.tokens import share_of_replica, tokens_of, weighted


class TokenSums(NamedTuple):
    """Sums over the tokens that are not padding.

    Attributes:
        loss: Of the label-smoothed cross-entropy, times the sample weights. The others count each token once.
        negative_log_likelihood: Of the cross-entropy without smoothing.
        correct: The tokens whose label has the largest logit.
        count: The tokens.

    Example:
        >>> TokenSums(2.0, 1.5, 1.0, 2.0).count
        2.0
    """

    loss: Any
    negative_log_likelihood: Any
    correct: Any
    count: Any


class ChunkedTrainer(keras.Model):
    """A model of another's weights, for `fit`, whose logits x Eᵀ are computed C tokens at a time and never kept.

    Logits of (N, V) are the largest tensor of a Transformer's training step, and several of their size are alive at
    once; here it is (C, V). The numbers are those of `MaskedCrossEntropy`, `MaskedAccuracy` and `Perplexity`, named
    alike, as `loss` and `metrics` of the model's `compile` would give them: sample weights change the loss only. Save,
    evaluate and translate with the model whose weights it trains.

    Args:
        model: A `Transformer` or a `CausalTransformer`.
        label_smoothing: ε.
        inputs: What is fed, in place of the model's own inputs: those of `Transformer.packed()`.
        ignore_id: The label that is padding; None if there is none.
        chunk_size: C, the most tokens of a chunk; those of a batch are alike in size.
        **kwargs: `name` and the like.

    Raises:
        ValueError: An ε outside [0, 1), a chunk size that is not a positive integer, an `ignore_id` that is no integer.

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
            inputs, outputs = model.input, model.get_layer("decoder").output  # there already: nothing is joined again
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
        """Makes ready for `fit`, with the variables of the optimizer.

        Made in the first step, as Keras would, they have TensorFlow trace that step twice.

        Args:
            optimizer: See `keras.Model.compile`; the model's own, to resume with its state.
            loss: None, as the next three, since the trainer has its loss and metrics.
            loss_weights: None.
            metrics: None.
            weighted_metrics: None.
            **settings: The others of `keras.Model.compile`.

        Raises:
            ValueError: A loss or metrics, or a model whose embedding is quantized.
        """
        given = {
            "loss": loss, "loss_weights": loss_weights, "metrics": metrics, "weighted_metrics": weighted_metrics
        }  # fmt: skip
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"A ChunkedTrainer takes no `{name}`: it computes the masked cross-entropy, the accuracy and the "
                    "perplexity, with the `label_smoothing` and `ignore_id` of its constructor. For another loss or "
                    f"metric, call `compile` and `fit` of the model itself. Received: {name}={value!r}"
                )
        self._check_embedding()
        super().compile(optimizer, **settings)
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The mean over the real tokens, and the metrics beside it.

        Args:
            x: Not used.
            y: Labels (B, T).
            y_pred: What the logits are made of, (B, T, M).
            sample_weight: See `MaskedCrossEntropy`.
            training: Not used.

        Returns:
            A scalar.

        Raises:
            ValueError: There are no labels, or a model whose embedding is quantized.
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
        return share_of_replica(sum(self.losses, ops.divide_no_nan(sums.loss, sums.count)))

    def fit(self, *args: Any, class_weight: None = None, **kwargs: Any) -> Any:
        """See `keras.Model`.

        Args:
            *args: See `keras.Model.fit`.
            class_weight: None.
            **kwargs: See `keras.Model.fit`.

        Returns:
            The history.

        Raises:
            ValueError: Weights of classes.
        """
        _refuse_class_weight(class_weight)
        return super().fit(*args, **kwargs)

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: None = None, **kwargs: Any
    ) -> Any:
        """See `keras.Model`.

        Args:
            x: Inputs.
            y: Labels (B, T).
            sample_weight: See `MaskedCrossEntropy`.
            class_weight: None.
            **kwargs: See `keras.Model.train_on_batch`.

        Returns:
            The loss and the metrics.

        Raises:
            ValueError: Weights of classes.
        """
        _refuse_class_weight(class_weight)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def _check_embedding(self) -> None:
        mode = self.embedding.quantization_mode
        if mode is not None:
            raise ValueError(
                "A ChunkedTrainer makes logits of the embedding's numbers, which a quantized `model` keeps as integers "
                "with scales. Train first, then call `model.quantize`; for the loss of a quantized model, call its own "
                f"`evaluate`. Received: a model whose embedding has quantization_mode={mode!r}"
            )

    def get_config(self) -> dict[str, Any]:
        raise TypeError(
            "A ChunkedTrainer is for `fit` alone, since a copy of it would train other weights. Save the model whose "
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
    """Σ_t −[(1 − ε) z_t(y_t) + ε/V Σ_v z_t(v)] + log Σ_v exp z_t(v) with z_t = E x_t, over the real tokens.

    The gradients are found beside the loss, while a chunk's probabilities p are at hand: those of log Σ exp z are p E
    and pᵀ x. What label and smoothing add to them is written without logits.

    Args:
        x: (B, T, M).
        embeddings: E, (V, M).
        labels: Token ids (B, T).
        label_smoothing: ε.
        ignore_id: The label that is padding; None if there is none.
        chunk_size: C, the most tokens of a chunk; those of a batch are alike in size.
        sample_weight: See `MaskedCrossEntropy`, for the sum of the loss.

    Returns:
        The sums. Gradients of the loss flow to x and E.

    Example:
        >>> x, embeddings = keras.ops.ones((2, 3, 4)), keras.ops.zeros((10, 4))
        >>> float(chunked_cross_entropy(x, embeddings, keras.ops.ones((2, 3), dtype="int32")).count)
        6.0
    """
    width, vocabulary_size = embeddings.shape[1], embeddings.shape[0]
    tokens = tokens_of(labels, x, vocabulary_size, ignore_id, sample_weight)
    labels, real, weights = (ops.reshape(each, (-1,)) for each in tokens)  # (N,)
    rows = ops.where(ops.equal(real, 0)[:, None], 0, ops.reshape(x, (-1, width)))  # (N, M), finite where ignored
    embeddings = ops.cast(embeddings, rows.dtype)
    smooth = label_smoothing / vocabulary_size
    dtype = keras.backend.standardize_dtype(rows.dtype)
    logits_dtype = "float32" if dtype == "float16" else dtype  # float16 has no probability below 6e-8

    # All tensors are arguments because JAX could not differentiate a compiled function that closes over them.
    @ops.custom_gradient
    def sums_of(rows: Any, embeddings: Any, labels: Any, real: Any, weights: Any) -> Any:
        row_sum = ops.sum(ops.cast(embeddings, "float32"), axis=0)  # (M,)

        def chunk(index: Any, carry: Any) -> Any:
            sums, d_rows, d_embeddings = carry
            x, labels, real, weights = (each[index] for each in chunked)  # (C, M), (C,), (C,), (C,)
            logits = ops.cast(ops.matmul(x, ops.transpose(embeddings)), logits_dtype)  # (C, V)
            best = first_largest(logits)  # (C,)
            largest, correct = ops.cast(gather_labels(logits, best), "float32"), ops.equal(best, labels)
            probabilities = ops.softmax(logits)  # (C, V)
            label_logits, label_probabilities = (
                ops.cast(gather_labels(values, labels), "float32") for values in (logits, probabilities)
            )  # (C,), z and p of the labels
            # log Σ exp z = z − log p. Where p is too small for a number, the largest z is nearly all of it.
            log_sum = ops.maximum(label_logits - ops.log(ops.maximum(label_probabilities, 1e-37)), largest)  # (C,)
            probabilities = ops.cast(probabilities, x.dtype)
            x = ops.cast(x, "float32")
            label_vectors = ops.cast(ops.take(embeddings, labels, axis=0), "float32")  # (C, M)
            losses = log_sum - (1 - label_smoothing) * label_logits - smooth * ops.matmul(x, row_sum[:, None])[:, 0]
            likelihoods = log_sum - label_logits  # negative, of the logarithm
            pairs = (
                (losses, weights),
                (likelihoods, real),
                (ops.cast(correct, "float32"), real),
                (ops.ones_like(real), real),
            )
            sums = sums + ops.stack([ops.sum(weighted(*pair)) for pair in pairs])
            weights = weights[:, None]  # (C, 1)
            attracted = (1 - label_smoothing) * label_vectors + smooth * row_sum  # (C, M)
            d_x = (ops.cast(ops.matmul(probabilities, embeddings), "float32") - attracted) * weights
            new = ops.matmul(ops.transpose(probabilities), ops.cast(x * weights, probabilities.dtype))  # (V, M)
            # Not `slice_update`, which TensorFlow compiles anew for each shape.
            d_rows = ops.scatter_update(d_rows, ops.reshape(index, (1, 1)), d_x[None])
            return sums, d_rows, d_embeddings + ops.cast(new, "float32")

        chunks = 1 + ops.shape(rows)[0] // chunk_size
        size = 1 + ops.shape(rows)[0] // chunks  # C at most; the last chunk is not mostly padding
        chunked = [_chunks_of(values, chunks, size) for values in (rows, labels, real, weights)]
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

    sums = sums_of(rows, embeddings, labels, real, weights)
    return TokenSums(*(sums[index] for index in range(4)))


def _refuse_class_weight(class_weight: Any) -> None:
    if class_weight is not None:
        raise ValueError(
            "`class_weight` weighs whole samples, where each token has a class. Give each token its weight: "
            f"`fit(inputs, labels, sample_weight=weights)`. Received: class_weight={class_weight!r}"
        )


def _chunks_of(values: Any, chunks: Any, size: Any) -> Any:
    """(N, …) as (chunks, C, …), the last of it zeros."""
    rest = tuple(values.shape[1:])
    padded = ops.pad(values, [[0, chunks * size - ops.shape(values)[0]], *([0, 0] for _ in rest)])
    return ops.reshape(padded, (chunks, size, *rest))
