"""The config of a training run, and the YAML file that stores it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_attention.files import write_atomically
from keras_attention.layers.arguments import Errors, known_names
from keras_attention.models import TransformerConfig
from keras_attention.pipeline.setting_checks import CHECKS, FILES
from keras_attention.pipeline.yaml_settings import read_yaml, yaml_text
from keras_attention.text.streamed_batches import BUFFER_SIZE
from keras_attention.training.consistency import pass_weights
from keras_attention.training.presets import TRAINING_PRESETS, preset_learning_rate_scale
from keras_attention.training.schedules import DECAY

# Settings that runs of version 0.2 lack; such a run resumes with their defaults.
ADDED_SINCE_0_2 = (
    "row_length",
    "max_shapes",
    "buffer_size",
    "weight_decay",
    "learning_rate_decay",
    "subword_dropout",
    "source_word_dropout",
    "consistency",
    "consistency_weight",
    "ema",
    "checkpoint_minutes",
    "patience",
    "init_from",
)
# Of the models that are described before the text is read.
ANY_VOCABULARY_SIZE = 8000


@dataclass(frozen=True)
class RunConfig:
    """The data, the model and the training schedule of a run.

    `optimizer`, `tokens_per_batch`, `warmup_steps` and `learning_rate_scale` default to those of the preset. When a
    training begins, it chooses what the config leaves open: the vocabulary by the size of the text, the dropouts
    of "tiny" and "small" by the number of passes over it, and `evaluate_every` by the length of the training.

    Attributes:
        source: Text file to translate from, one sentence per line, plain or gzip; for text that does not fit into
            memory, many files: a pattern such as "corpus/train-*.en.gz", or a folder. See `ShardedPairs`.
        target: Text file of its translations, line by line, or as many files.
        valid_source: Text file of validation sentences.
        valid_target: Text file of their translations.
        preset: "tiny", "small", "base" or "big".
        vocabulary_size: Number of pieces of the tokenizer that source and target share; None for
            `recommended_vocabulary_size` of the text.
        split_digits: Whether each digit is a piece of its own, for text with many numbers.
        model: Attributes of `TransformerConfig` that differ from the preset; without a "dropout", "tiny" and "small"
            take the `recommended_dropout`.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16"; None for "float32", or "mixed_bfloat16" in a training
            limited by minutes on a machine whose matrix products are at least 1.3 times as fast in it.
        tokens_per_batch: The most tokens of a batch on either side, padding included.
        max_length: Pairs with more tokens on a side are left out.
        packed_rows: Number of rows of `row_length` tokens in a training batch, with several pairs in each row, which
            gives all batches one shape; None for one pair per row and `tokens_per_batch`. On JAX, which compiles a
            program for each shape, a training without this and `max_shapes` chooses it when it begins.
        row_length: Tokens of a packed row on the longer side; None for `max_length`.
        max_shapes: The most shapes of training batches with one pair per row: see `TokenBatches`; None for any number.
        buffer_size: Number of lines of text in many files of which memory holds the token ids at a time. See
            `StreamedBatches`.
        optimizer: "adam", as in the paper, or "muon", which learns more from each token.
        weight_decay: λ of the optimizer, 0 to 1. None for `recommended_weight_decay` with Muon, 0 with Adam.
        gradient_accumulation: Number of batches in one step of the optimizer.
        warmup_steps: Number of warm-up steps of the learning rate.
        learning_rate_scale: Factor on the learning rate; by default of the preset and, with `small`, of the depth.
        learning_rate_decay: Part of the training over which the learning rate falls to zero; 0 for no decay.
        total_steps: Step at which training ends, for a run that is trained in several calls: the learning rate reaches
            zero there. None for a learning rate that reaches zero at the limit of each call.
        label_smoothing: ε of the loss.
        subword_dropout: Dropout of the segmentation of the training text into pieces, sampled anew in each epoch; 0.1
            is the value of the paper on BPE-dropout. None for the `recommended_subword_dropout` with "tiny" and
            "small" and without `consistency`, otherwise 0.
        source_word_dropout: Probability with which a piece of a training source is replaced by the unknown piece.
        consistency: "rdrop" or "simcut" to train on two passes over each batch that should predict the same, at about
            twice the time per step; None for one pass. See `ChunkedTrainer`.
        consistency_weight: α of the consistency loss; None for 5 with "rdrop" and 3 with "simcut".
        ema: Momentum of an exponential moving average of the weights, such as 0.999 for the average over about the last
            1,000 steps; None for no average. See `ExponentialMovingAverage`. With it, the validation loss, BLEU and the
            best checkpoint are those of the average.
        patience: Number of evaluations in a row without a lower validation loss after which training ends; None for no
            such end.
        evaluate_every: Number of steps between evaluations, each of which writes a checkpoint; None for 16 of them, or
            fewer in a short training.
        checkpoint_minutes: Minutes between two states within an evaluation's steps, from which an interrupted training
            resumes. See `ResumableRun`.
        keep_checkpoints: Number of checkpoints to keep for averaging.
        score_sentences: Number of validation sentences to translate for BLEU at each evaluation.
        seed: Seed of the weights, the dropout and the order of the data.
        init_from: Folder of another run, with whose tokenizer and final weights this one begins; None for a new
            tokenizer and random weights.

    Raises:
        ValueError: If a setting has the wrong type or is out of range; the message names it.

    Example:
        >>> config = RunConfig.from_preset("small", source="train.en", target="train.de",
        ...                                valid_source="dev.en", valid_target="dev.de")
        >>> config.transformer().num_layers
        3
    """

    source: str
    target: str
    valid_source: str
    valid_target: str
    preset: str = "small"
    vocabulary_size: int | None = None
    split_digits: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    tokens_per_batch: int | None = None
    max_length: int = 256
    packed_rows: int | None = None
    row_length: int | None = None
    max_shapes: int | None = None
    buffer_size: int = BUFFER_SIZE
    optimizer: str | None = None
    weight_decay: float | None = None
    gradient_accumulation: int = 1
    warmup_steps: int | None = None
    learning_rate_scale: float | None = None
    learning_rate_decay: float = DECAY
    total_steps: int | None = None
    label_smoothing: float = 0.1
    subword_dropout: float | None = None
    source_word_dropout: float = 0.0
    consistency: str | None = None
    consistency_weight: float | None = None
    ema: float | None = None
    patience: int | None = None
    evaluate_every: int | None = None
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 5
    score_sentences: int = 200
    seed: int = 1
    init_from: str | None = None

    def __post_init__(self) -> None:
        errors = Errors()
        default_scale = self.learning_rate_scale is None
        with errors.collected():
            CHECKS["preset"](self.preset, "preset")
            for name, value in TRAINING_PRESETS[self.preset].items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)
        of_preset = TRAINING_PRESETS["tiny"]  # their names: those of a wrong preset have no default
        for name, check in CHECKS.items():
            value = getattr(self, name)
            if value is not None or name not in of_preset or not errors.messages:
                with errors.collected():
                    object.__setattr__(self, name, check(value, name))
        errors.raise_all()
        with errors.collected():
            self._check_shapes()
        with errors.collected():
            pass_weights(self.consistency, self.consistency_weight)
        with errors.collected():
            self._check_model()
        errors.raise_all()
        if default_scale:
            object.__setattr__(self, "learning_rate_scale", preset_learning_rate_scale(self.preset, self.transformer()))

    def _check_shapes(self) -> None:
        if self.packed_rows is not None and self.max_shapes is not None:
            raise ValueError(
                "Packed rows have one shape: set `packed_rows` or `max_shapes`. "
                f"Received: packed_rows={self.packed_rows}, max_shapes={self.max_shapes}"
            )
        if self.row_length is not None and (self.packed_rows is None or self.row_length > self.max_length):
            raise ValueError(
                "`row_length` is the length of `packed_rows`, and at most `max_length`. Received: "
                f"row_length={self.row_length}, packed_rows={self.packed_rows}, max_length={self.max_length}"
            )

    def _check_model(self) -> None:
        transformer = self.transformer()
        if transformer.max_length is not None and transformer.max_length < self.max_length:
            raise ValueError(
                "A model must learn as many positions as the longest pairs have tokens: give a smaller `max_length`, "
                "or `model` a larger one. "
                f"Received: max_length={self.max_length}, model={{'max_length': {transformer.max_length}}}"
            )
        object.__setattr__(self, "model", {name: getattr(transformer, name) for name in self.model})

    @classmethod
    def names(cls) -> list[str]:
        """Lists the names of all settings.

        Returns:
            The names.
        """
        return [each.name for each in dataclasses.fields(cls)]

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> "RunConfig":
        """Makes a config from a preset.

        Args:
            preset: "tiny", "small", "base" or "big".
            **changes: The text files, and settings that differ from the preset.

        Returns:
            A config.

        Raises:
            ValueError: If the preset or a setting is unknown, or a value is invalid.
        """
        return _make(cls, {"preset": preset, **changes})

    def replace(self, **changes: Any) -> "RunConfig":
        """Returns a copy with other settings; another preset comes with its batch size, optimizer and schedule.

        A learning-rate scale that is the preset's follows the depth of another `model`.

        Args:
            **changes: Settings that differ.

        Returns:
            Another config.

        Raises:
            ValueError: If a setting is unknown, or a value is invalid.
        """
        if changes.get("preset", self.preset) != self.preset:
            changes = {**dict.fromkeys(TRAINING_PRESETS[self.preset]), **changes}
        elif self.learning_rate_scale == preset_learning_rate_scale(self.preset, self.transformer()):
            changes = {"learning_rate_scale": None, **changes}
        return _make(type(self), {**{name: getattr(self, name) for name in self.names()}, **changes})

    def transformer(self) -> TransformerConfig:
        """Returns the config of the model.

        Returns:
            The config of the preset with the changes of `model`; with a vocabulary of 8,000 where it is open.
        """
        vocabulary_size = self.vocabulary_size or ANY_VOCABULARY_SIZE
        return TransformerConfig.from_preset(self.preset, vocabulary_size, **self.model)

    def save(self, path: str | Path) -> None:
        """Writes the config as YAML.

        Args:
            path: Path of the file.
        """
        text = yaml_text(dataclasses.asdict(self))
        write_atomically(Path(path), lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> "RunConfig":
        """Reads a config that `save` wrote.

        Args:
            path: Path of the file.

        Returns:
            The config.

        Raises:
            ValueError: If the file is not a config, or lacks a setting that version 0.2 has.
        """
        try:
            settings = read_yaml(Path(path).read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                raise ValueError("it does not map names to settings")
            return _make(cls, settings, required=[name for name in cls.names() if name not in ADDED_SINCE_0_2])
        except ValueError as error:
            raise ValueError(f"{path} is not the config of a training run: {error}") from error


def _make(cls: type[RunConfig], settings: Mapping[str, Any], required: Sequence[str] = ()) -> RunConfig:
    """Makes a config, or raises an error with all settings that are unknown, missing or wrong."""
    errors = Errors()
    with errors.collected():
        known_names(settings, cls.names(), "A run")
    missing = [name for name in required if name not in settings]
    if missing:
        errors.add(
            f"it lacks {', '.join(missing)}. Defaults do not replace the lines of a damaged file: restore the missing "
            "lines"
        )
    known = {name: value for name, value in settings.items() if name in cls.names()}
    with errors.collected():
        config = cls(**{**dict.fromkeys(FILES, "file"), **known})  # without its files, a config for its errors only
    errors.raise_all()
    return config if all(name in known for name in FILES) else cls(**known)
