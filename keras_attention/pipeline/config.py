"""What defines a training run, as the file `config.yaml` of its folder holds it."""

import dataclasses
import numbers
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from keras_attention.files import write_atomically
from keras_attention.layers.arguments import boolean, known_names, positive_integer, positive_number
from keras_attention.models import TransformerConfig
from keras_attention.text.sentencepiece_model import check_vocabulary_size
from keras_attention.training.presets import OPTIMIZERS, TRAINING_PRESETS

FILES = ("source", "target", "valid_source", "valid_target")
DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")


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
        tokens_per_batch: The largest padded size of either side of a batch; None for the preset's, as of `optimizer`,
            `warmup_steps` and `learning_rate_scale`.
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

    Raises:
        ValueError: A setting of the wrong type or out of its range; the message names it.

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
    tokens_per_batch: int | None = None
    max_length: int = 256
    packed_rows: int | None = None
    optimizer: str | None = None
    gradient_accumulation: int = 1
    warmup_steps: int | None = None
    learning_rate_scale: float | None = None
    total_steps: int | None = None
    label_smoothing: float = 0.1
    evaluate_every: int = 500
    keep_checkpoints: int = 5
    score_sentences: int = 200
    seed: int = 1

    def __post_init__(self) -> None:
        _CHECKS["preset"](self.preset, "preset")
        for name, value in TRAINING_PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(getattr(self, name), name))
        sizes = self.transformer()
        object.__setattr__(self, "model", {name: getattr(sizes, name) for name in self.model})

    @classmethod
    def names(cls) -> list[str]:
        """The names of all settings.

        Returns:
            A list.
        """
        return [each.name for each in dataclasses.fields(cls)]

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> "RunConfig":
        """The schedule that suits a preset, with changes.

        Args:
            preset: "tiny", "small", "base" or "big".
            **changes: The files, and attributes that differ.

        Returns:
            A config.

        Raises:
            ValueError: An unknown preset or setting, or a value that cannot be.
        """
        _CHECKS["preset"](preset, "preset")
        known_names(changes, cls.names(), "A run")
        return cls(preset=preset, **changes)

    def replace(self, **changes: Any) -> "RunConfig":
        """A config with other settings; another preset brings its own batch size, optimizer and schedule.

        Args:
            **changes: Attributes that differ.

        Returns:
            Another config.

        Raises:
            ValueError: An unknown setting, or a value that cannot be.
        """
        known_names(changes, self.names(), "A run")
        if changes.get("preset", self.preset) != self.preset:
            changes = {**dict.fromkeys(TRAINING_PRESETS[self.preset]), **changes}
        return dataclasses.replace(self, **changes)

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
        text = yaml.dump(dataclasses.asdict(self), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        write_atomically(Path(path), lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> "RunConfig":
        """Reads what `save` wrote.

        Args:
            path: The file.

        Returns:
            The config.

        Raises:
            ValueError: The file does not hold a config, or not all of it.
        """
        try:
            settings = read_yaml(Path(path).read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                raise ValueError("it holds no settings by name")
            known_names(settings, cls.names(), "A run")
            missing = [name for name in cls.names() if name not in settings]
            if missing:
                raise ValueError(
                    f"it lacks {', '.join(missing)}. A file that was cut off or edited is not guessed at: "
                    "put the missing lines back"
                )
            return cls(**settings)
        except ValueError as error:
            raise ValueError(f"{path} is not the config of a training run: {error}") from error


def read_yaml(text: str) -> Any:
    """Reads YAML in which a plain word is text unless it is a number as Python writes it, true, false or null.

    YAML 1.1, which PyYAML reads, also takes `1:30` for 90, `017` for 15 and `no` for False, but `1e-3` for text.

    Args:
        text: A document.

    Returns:
        What it holds.

    Raises:
        ValueError: The text is not YAML, or gives a name twice.

    Example:
        >>> read_yaml("1e-3"), read_yaml("{num_layers: 2}"), read_yaml("2026-01-02")
        (0.001, {'num_layers': 2}, '2026-01-02')
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A dictionary; of a name that is given twice, one value would be ignored."""
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"`{name}` is given twice")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


# The dumper, which keeps those of YAML 1.1, puts text in quotes that either version takes for something else.
for tag, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for each in (_Loader, _Dumper):
        each.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), first)

Check = Callable[[Any, str], Any]


def _one_of(options: Collection[str]) -> Check:
    def check(value: Any, name: str) -> Any:
        if not isinstance(value, str) or value not in options:
            raise ValueError(f"`{name}` is one of {', '.join(options)}. Received: {name}={value!r}")
        return value

    return check


def count(value: Any, name: str) -> int:
    """Returns the value if it is a positive integer that TensorFlow and files of settings can hold."""
    if positive_integer(value, name) >= 2**31:
        raise ValueError(f"`{name}` must be below 2**31. Received: {name}={value!r}")
    return int(value)


def _vocabulary_size(value: Any, name: str) -> int:
    size = count(value, name)
    check_vocabulary_size(size)
    return size


def _optional(check: Check) -> Check:
    return lambda value, name: None if value is None else check(value, name)


def _file(value: Any, name: str) -> str:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"`{name}` must be the path of a text file. Received: {name}={value!r}")
    return os.fspath(value)


def _share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < 1:
        raise ValueError(f"`{name}` must be a number, at least 0 and below 1. Received: {name}={value!r}")
    return float(value)


def _seed(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= value < 2**32:
        raise ValueError(f"`{name}` must be an integer, at least 0 and below 2**32. Received: {name}={value!r}")
    return int(value)


def _sizes(value: Any, name: str) -> dict[str, Any]:
    known = [each.name for each in dataclasses.fields(TransformerConfig) if each.name != "vocabulary_size"]
    if not isinstance(value, dict):
        raise ValueError(
            f"`{name}` must be a dictionary with names among {', '.join(known)}. Received: {name}={value!r}"
        )
    known_names(value, known, f"`{name}`")
    return value


_COUNTS = (
    "vocabulary_size",
    "tokens_per_batch",
    "max_length",
    "gradient_accumulation",
    "warmup_steps",
    "evaluate_every",
    "keep_checkpoints",
    "score_sentences",
)
_CHECKS: dict[str, Check] = {
    **dict.fromkeys(FILES, _file),
    "preset": _one_of(TRAINING_PRESETS),
    **dict.fromkeys(_COUNTS, count),
    "vocabulary_size": _vocabulary_size,
    "split_digits": boolean,
    "model": _sizes,
    "dtype": _one_of(DTYPES),
    **dict.fromkeys(("packed_rows", "total_steps"), _optional(count)),
    "optimizer": _one_of(OPTIMIZERS),
    "learning_rate_scale": positive_number,
    "label_smoothing": _share,
    "seed": _seed,
}
