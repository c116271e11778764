"""What defines a training run, as the file `config.yaml` of its folder holds it."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from keras_attention.models import TransformerConfig

# What each preset was found to want on a validation set, in half an hour or less on two CPU cores.
TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"tokens_per_batch": 512, "warmup_steps": 300, "learning_rate_scale": 0.42},
    "small": {"optimizer": "muon", "tokens_per_batch": 2048, "warmup_steps": 200, "learning_rate_scale": 1.5},
    "base": {"tokens_per_batch": 25000, "warmup_steps": 4000, "learning_rate_scale": 1.0},
    "big": {"tokens_per_batch": 25000, "warmup_steps": 4000, "learning_rate_scale": 1.0},
}


@dataclass(frozen=True)
class RunConfig:
    """The data, the sizes and the schedule of a training run.

    Attributes:
        source: Text file to translate from, a sentence a line, plain or gzip.
        target: Its translations, line by line.
        valid_source: Sentences kept for validation.
        valid_target: Their translations.
        preset: "tiny", "small", "base" or "big".
        vocabulary_size: Pieces of the tokenizer that source and target share.
        split_digits: Whether each digit is a piece of its own, for text full of numbers.
        model: Attributes of `TransformerConfig` that differ from the preset.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16".
        tokens_per_batch: The largest padded size of either side of a batch.
        max_length: Pairs with more tokens on a side are left out.
        packed_rows: Rows of `max_length` tokens, with several pairs in each, that make a batch of training, whose shape
            never changes then; None for a pair a row and `tokens_per_batch`.
        optimizer: "adam", as in the paper, or "muon", which learns more from each token.
        gradient_accumulation: Batches that make one step of the optimizer.
        warmup_steps: Of the schedule.
        learning_rate_scale: Of the schedule.
        total_steps: The step at which the learning rate has fallen to zero and training ends; None for neither.
        label_smoothing: ε of the loss.
        evaluate_every: Steps between evaluations, each of which leaves a checkpoint.
        keep_checkpoints: How many are kept for averaging.
        score_sentences: Validation sentences that are translated for BLEU at each evaluation.
        seed: Of the weights, the dropout and the order of the data.

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
    vocabulary_size: int = 8000
    split_digits: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    tokens_per_batch: int = 4096
    max_length: int = 256
    packed_rows: int | None = None
    optimizer: str = "adam"
    gradient_accumulation: int = 1
    warmup_steps: int = 4000
    learning_rate_scale: float = 1.0
    total_steps: int | None = None
    label_smoothing: float = 0.1
    evaluate_every: int = 500
    keep_checkpoints: int = 5
    score_sentences: int = 200
    seed: int = 1

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> "RunConfig":
        """The schedule that suits a preset, with changes.

        Args:
            preset: "tiny", "small", "base" or "big".
            **changes: The files, and attributes that differ.

        Returns:
            A config.

        Raises:
            ValueError: An unknown preset.
        """
        if preset not in TRAINING_PRESETS:
            raise ValueError(f"`preset` is one of {', '.join(TRAINING_PRESETS)}. Received: preset={preset!r}")
        return cls(preset=preset, **{**TRAINING_PRESETS[preset], **changes})

    def transformer(self) -> TransformerConfig:
        """The sizes of the model.

        Returns:
            The preset with the changes of `model`.
        """
        return TransformerConfig.from_preset(self.preset, self.vocabulary_size, **self.model)

    def save(self, path: str | Path) -> None:
        """Writes the config as YAML.

        Args:
            path: The file.
        """
        Path(path).write_text(yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True))

    @classmethod
    def load(cls, path: str | Path) -> "RunConfig":
        """Reads what `save` wrote.

        Args:
            path: The file.

        Returns:
            The config.

        Raises:
            ValueError: The file does not hold a config.
        """
        try:
            return cls(**yaml.safe_load(Path(path).read_text()))
        except (TypeError, yaml.YAMLError) as error:
            raise ValueError(f"{path} is not the config of a training run: {error}") from error
