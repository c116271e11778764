"""What a run shows in TensorBoard: curves, attention, translations, weights, settings, embeddings."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_attention.extras import install_command, is_installed
from keras_attention.files import write_atomically
from keras_attention.models import Transformer
from keras_attention.pipeline.attention_maps import KINDS, AttentionPicture, attention_weights
from keras_attention.pipeline.config import RunConfig
from keras_attention.pipeline.folder import RunFolder
from keras_attention.pipeline.run_data import RunData
from keras_attention.pipeline.setting_checks import FILES
from keras_attention.pipeline.validation import Validation
from keras_attention.text import EOS_ID, SubwordTokenizer
from keras_attention.training import StepTensorBoard
from keras_attention.training.scalars import step_of

# Sentences with a picture of their attention, their most pieces, and sentences with their translation.
NUM_PICTURES, MAX_PIECES, NUM_TRANSLATIONS = 2, 16, 8
# The most values of a weight that its histogram counts, and the most pieces in the projector.
_MAX_VALUES, _MAX_POINTS = 4096, 10_000
_METRICS = {"bleu": "BLEU", "chrf": "chrF", "perplexity": "perplexity", "loss": "loss"}


def tensorboard_callbacks(
    run: RunFolder,
    config: RunConfig,
    data: RunData,
    model: Transformer,
    validation: Validation,
    batch: int,
) -> list[keras.callbacks.Callback]:
    """The callbacks that write the event files of a run from this batch on; none without TensorBoard."""
    # Checked here because `tf.summary` imports TensorBoard only when it writes.
    if not is_installed("tensorboard"):
        print(f"no TensorBoard logs: {install_command('tensorboard')} to have them")
        return []
    if not is_installed("tensorflow"):  # on any backend, its `tf.summary` writes them
        print("no TensorBoard logs: pip install tensorflow to have them")
        return []
    steps = StepTensorBoard(run.logs, data=data.batches)
    steps.batch = batch
    return [
        steps,
        EvaluationSummaries(
            steps, config, data.tokenizer, model, validation.averaged, data.sample, validation.translations
        ),
    ]


class EvaluationSummaries(keras.callbacks.Callback):
    """Adds what is no number to the event files of a `StepTensorBoard`, after which it comes in the list."""

    def __init__(
        self,
        tensorboard: StepTensorBoard,
        config: RunConfig,
        tokenizer: SubwordTokenizer,
        model: Transformer,
        averaged: Callable[[], AbstractContextManager[Any]],
        sample: Sequence[tuple[str, str]],
        translations: Sequence[str],
    ):
        super().__init__()
        self._tensorboard, self._config, self._tokenizer = tensorboard, config, tokenizer
        self._transformer, self._averaged = model, averaged
        self._sample, self._translations = sample, translations
        self._pairs = _short_pairs(sample, tokenizer)
        self._pictures: dict[tuple[int, str], AttentionPicture] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        folder = self._tensorboard.log_dir
        if not list(folder.glob("events.out.tfevents.*")):  # those of a run that resumes exist
            _write_settings(self._tensorboard.writer(), self._config, folder.absolute().parent.name)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        import tensorflow as tf

        step = step_of(self.model.optimizer)
        writer = self._tensorboard.writer("validation")
        with writer.as_default(step), self._averaged():
            tf.summary.text("translations", self._table())
            if is_shown(epoch + 1):
                self._draw_attention()
                weights = [each for each in self._transformer.trainable_weights if len(each.shape) > 1]
                tf.summary.experimental.write_raw_pb(_histograms(weights))
        writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        with self._averaged():
            embeddings = keras.ops.convert_to_numpy(self._transformer.get_layer("embedding").embeddings)[:_MAX_POINTS]
        _write_projector(self._tensorboard.log_dir, embeddings, self._tokenizer.pieces(range(len(embeddings))))

    def _table(self) -> str:
        """The first sentences of the sample, with their translations, as a table in Markdown."""
        rows = [
            (source, reference, translation)
            for (source, reference), translation in zip(self._sample, self._translations, strict=True)
        ]
        lines = ["| source | reference | translation |", "| --- | --- | --- |"]
        return "\n".join(lines + [f"| {' | '.join(map(_as_markdown, row))} |" for row in rows[:NUM_TRANSLATIONS]])

    def _draw_attention(self) -> None:
        """Writes an image of each kind of attention and each pair."""
        import tensorflow as tf

        for number, weights in enumerate(attention_weights(self._transformer, self._pairs)):
            for kind in KINDS:
                image = self._picture(number, kind, weights[kind]).draw(weights[kind])
                tf.summary.image(f"attention/{kind}/{number + 1}", image[None])

    def _picture(self, number: int, kind: str, weights: np.ndarray) -> AttentionPicture:
        if (number, kind) not in self._pictures:
            query, key = KINDS[kind]
            sides = [self._tokenizer.pieces(ids) for ids in self._pairs[number]]
            # The decoder reads each token after the one before it; a row of cross-attention is the predicted token.
            labels = [["<s>", *sides[1][:-1]]] * 2 if kind == "decoder" else [sides[query], sides[key]]
            self._pictures[number, kind] = AttentionPicture(*weights.shape[:2], *labels)
        return self._pictures[number, kind]


def is_shown(evaluation: int) -> bool:
    """Returns True for evaluations 1, 2, 3, 5, 10, 20, 30, 50, 100, …: TensorBoard shows ten images of a tag."""
    return str(evaluation).rstrip("0") in ("1", "2", "3", "5")


def _short_pairs(sample: Sequence[tuple[str, str]], tokenizer: SubwordTokenizer) -> list[tuple[list[int], list[int]]]:
    """The ids of the longest pairs that a picture can show, or the beginning of the shortest if none is so short."""
    sides = (tokenizer.encode([pair[side] for pair in sample]) for side in (0, 1))
    pairs = sorted(zip(*sides, strict=True), key=lambda pair: max(map(len, pair)))
    short = [pair for pair in pairs if max(map(len, pair)) < MAX_PIECES and min(map(len, pair)) > 0]
    chosen = short[-NUM_PICTURES:] or pairs[:NUM_PICTURES]
    return [tuple([*side[: MAX_PIECES - 1], EOS_ID] for side in pair) for pair in chosen]


def _histograms(weights: Sequence[keras.Variable]) -> bytes:
    """The histograms of weights as one summary: `tf.summary.histogram` takes a thousand operations for each."""
    import tensorflow as tf
    from tensorboard.plugins.histogram.summary_v2 import histogram_pb

    summary = tf.compat.v1.Summary()
    for weight in weights:
        values = keras.ops.convert_to_numpy(weight).ravel()
        few = values[:: -(-values.size // _MAX_VALUES)]  # at equal distances
        summary.MergeFromString(histogram_pb(f"weights/{weight.path}", few).SerializeToString())
    return summary.SerializeToString()


def _as_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a cell of a table."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return re.sub(r"([\\`*_{}\[\]()#+\-.!])", r"\\\1", text)


def _write_settings(writer: Any, config: RunConfig, name: str) -> None:
    """Writes the settings for TensorBoard's page of hyperparameters, and the metrics that it shows next to them."""
    from tensorboard.plugins.hparams import api

    settings = _settings(config)
    with writer.as_default(0):
        api.hparams_config(
            hparams=[api.HParam(each) for each in settings],
            metrics=[
                api.Metric(f"steps/{tag}", group="validation", display_name=shown) for tag, shown in _METRICS.items()
            ],
        )
        api.hparams(settings, trial_id=name)
    writer.flush()


def _settings(config: RunConfig) -> dict[str, Any]:
    """The settings that have a value, without the paths of the texts."""
    settings: Mapping[str, Any] = {
        **{name: getattr(config, name) for name in config.names() if name not in (*FILES, "model")},
        **{f"model.{name}": value for name, value in dataclasses.asdict(config.transformer()).items()},
    }
    return {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}


def _write_projector(folder: Path, embeddings: np.ndarray, pieces: Sequence[str]) -> None:
    """Writes the embeddings (V, M) and their pieces for TensorBoard's projector."""
    from tensorboard.plugins import projector

    values = np.ascontiguousarray(embeddings, np.float32)
    names = "".join(re.sub(r"[\t\r\n]", " ", piece) + "\n" for piece in pieces)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "embedding.bytes", lambda path: Path(path).write_bytes(values.tobytes()))
    write_atomically(folder / "vocabulary.tsv", lambda path: Path(path).write_text(names, encoding="utf-8"))
    config = projector.ProjectorConfig()
    config.embeddings.add(
        tensor_name="embedding",
        tensor_shape=values.shape,
        tensor_path="embedding.bytes",
        metadata_path="vocabulary.tsv",
    )
    projector.visualize_embeddings(str(folder), config)
