"""Training without the logits of a whole batch.

Shapes: B batch, T target length, N = B·T tokens, C chunk size, M model width, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_attention.layers.arguments import fraction, integer_or_none, positive_integer
from keras_attention.layers.replicas import WithoutSampleBatch, split_over_replicas
from keras_attention.training.chunked_cross_entropy import chunked_cross_entropy
from keras_attention.training.consistency import pass_weights, twice, with_cutoff
from keras_attention.training.labels import mean_loss
from keras_attention.training.metrics import MaskedAccuracy, Perplexity


class ChunkedTrainer(WithoutSampleBatch, keras.Model):
    """Model for `fit` that trains the weights of another model and computes the logits x Eᵀ only C tokens at a time.

    The logits, (N, V), are the largest tensor of a Transformer's training step, and several of their size are alive at
    once. Here their size is (C, V). The loss and the metrics have the values and names of `MaskedCrossEntropy`,
    `MaskedAccuracy` and `Perplexity` in the `loss` and `metrics` of the model's `compile`: sample weights change the
    loss only. Save, evaluate and translate with the model whose weights it trains.

    With `consistency`, a training step computes two passes with different noise and adds the KL divergence of their
    output distributions p₁ and p₂ to the loss of each token:

    - "rdrop": ½ [CE(p₁) + CE(p₂) + α/2 (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁))], half the loss of the paper. The passes differ in
      their dropout, so the model needs some.
    - "simcut": CE(p₁) + α KL(p₁ ‖ p₂), with gradients through both passes, as in the paper. In the second, the
      embedding of each source and target token, before its position is added, is zero with probability 0.05.

    The accuracy and the perplexity are those of the first pass; evaluation has only that pass, and no such term.

    Args:
        model: A `Transformer` or a `CausalTransformer`.
        label_smoothing: ε.
        inputs: Inputs instead of the model's own: those of `Transformer.packed()`.
        ignore_id: Label of padding; None for no padding.
        chunk_size: C, the most tokens of a chunk, those of both passes counted; 1,024 by default, 8,192 on a GPU. The
            chunks of a batch have equal sizes.
        consistency: "rdrop" or "simcut"; None for one pass.
        consistency_weight: α; None for 5 with "rdrop" and 3 with "simcut".
        name: Name of the trainer.

    Raises:
        ValueError: If ε is outside [0, 1), `chunk_size` is not a positive integer, `ignore_id` is not an integer,
            `consistency` is unknown, or α is not above zero or has no `consistency`.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=100)
        >>> trainer = ChunkedTrainer(model, label_smoothing=0.1)
        >>> trainer.compile(ka.training.paper_optimizer(model.config))
        >>> ids = keras.ops.ones((2, 5), dtype="int32")
        >>> history = trainer.fit({"source": ids, "target": ids}, ids, verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'loss', 'perplexity']

    Source: Vaswani et al. 2017, sections 3.4 and 5.4; Liang et al. 2021, "R-Drop: Regularized Dropout for Neural
    Networks"; Gao et al. 2022, "Bi-SimCut: A Simple Strategy for Boosting Neural Machine Translation".
    """

    def __init__(
        self,
        model: keras.Model,
        label_smoothing: float = 0.0,
        inputs: Any = None,
        ignore_id: int | None = 0,
        chunk_size: int | None = None,
        consistency: str | None = None,
        consistency_weight: float | None = None,
        name: str | None = None,
    ):
        pass_weights(consistency, consistency_weight)
        if inputs is None:
            inputs, outputs = model.input, model.get_layer("decoder").output  # of the model's own graph
        else:
            outputs = model.decoder_output(**(inputs if isinstance(inputs, Mapping) else {inputs.name: inputs}))
        embedding = model.get_layer("embedding")
        if consistency == "simcut":
            inputs, outputs = with_cutoff(inputs, outputs, embedding)
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.dtype_policy = model.dtype_policy
        self.embedding = embedding
        self.label_smoothing = fraction(label_smoothing, "label_smoothing")
        self.ignore_id = integer_or_none(ignore_id, "ignore_id")
        self.chunk_size = None if chunk_size is None else positive_integer(chunk_size, "chunk_size")
        self.consistency, self.consistency_weight = consistency, consistency_weight
        self.accuracy, self.perplexity = MaskedAccuracy(), Perplexity()

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Computes the hidden states.

        Args:
            inputs: Those of the model, of B rows.
            training: Whether to compute both passes of a consistency loss.
            **kwargs: See `keras.Model.call`.

        Returns:
            (B, T, M); with two passes (2B, T, M), all rows of the first pass before those of the second.
        """
        return super().call(twice(inputs) if training and self.consistency else inputs, training=training, **kwargs)

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
            y_pred: Hidden states from `call`, from which the logits are computed.
            sample_weight: See `MaskedCrossEntropy`.
            training: Whether the hidden states are those of training.

        Returns:
            A scalar.

        Raises:
            ValueError: If there are no labels, or the model's embedding is quantized.
        """
        if y is None:
            raise ValueError("A ChunkedTrainer takes inputs and labels: `fit(inputs, labels)`. Received: y=None")
        self._check_embedding()
        two_passes = {}
        if training and self.consistency:
            y_pred, second_pass = ops.split(y_pred, 2)
            two_passes = {
                "second_pass": second_pass,
                "consistency": self.consistency,
                "consistency_weight": self.consistency_weight,
            }
        sums = chunked_cross_entropy(
            y_pred,
            self.embedding.embeddings,
            y,
            self.label_smoothing,
            self.ignore_id,
            self.chunk_size,
            sample_weight,
            **two_passes,
        )
        self.accuracy.add(sums.correct, sums.count)
        self.perplexity.add(sums.negative_log_likelihood, sums.count)
        return sum(map(split_over_replicas, self.losses), mean_loss(sums.loss, sums.count))

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


def _refuse_class_weight(class_weight: Any) -> None:
    if class_weight is not None:
        raise ValueError(
            "`class_weight` weighs whole samples, but here each token has a class. Pass the weight of each token: "
            f"`fit(inputs, labels, sample_weight=weights)`. Received: class_weight={class_weight!r}"
        )
