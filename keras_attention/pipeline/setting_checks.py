"""What each setting of a run may be."""

import dataclasses
import numbers
import os
from collections.abc import Callable, Collection
from typing import Any

from keras_attention.layers.arguments import (
    Errors,
    boolean,
    fraction,
    fraction_or_one,
    known_names,
    one_of,
    positive_integer,
    positive_number,
)
from keras_attention.models import TransformerConfig
from keras_attention.models.config import check_attributes
from keras_attention.text.sentencepiece_model import check_vocabulary_size
from keras_attention.training.consistency import CONSISTENCY_WEIGHTS
from keras_attention.training.presets import OPTIMIZERS, TRAINING_PRESETS

FILES = ("source", "target", "valid_source", "valid_target")
DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")

Check = Callable[[Any, str], Any]


def _one_of(options: Collection[str]) -> Check:
    return lambda value, name: one_of(value, name, tuple(options))


def positive_int32(value: Any, name: str) -> int:
    """Returns the value if it is a positive integer that TensorFlow's int32 can hold."""
    if positive_integer(value, name) >= 2**31:
        raise ValueError(f"`{name}` must be below 2**31. Received: {name}={value!r}")
    return int(value)


def _vocabulary_size(value: Any, name: str) -> int:
    size = positive_int32(value, name)
    check_vocabulary_size(size)
    return size


def _optional(check: Check) -> Check:
    return lambda value, name: None if value is None else check(value, name)


def _file(value: Any, name: str) -> str:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"`{name}` must be the path of a text file. Received: {name}={value!r}")
    return os.fspath(value)


def _folder(value: Any, name: str) -> str:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"`{name}` must be the path of the folder of a run. Received: {name}={value!r}")
    return os.fspath(value)


def _seed(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= value < 2**32:
        raise ValueError(f"`{name}` must be an integer, at least 0 and below 2**32. Received: {name}={value!r}")
    return int(value)


def _model_settings(value: Any, name: str) -> dict[str, Any]:
    known = [each.name for each in dataclasses.fields(TransformerConfig) if each.name != "vocabulary_size"]
    if not isinstance(value, dict):
        raise ValueError(
            f"`{name}` must be a dictionary with names among {', '.join(known)}. Received: {name}={value!r}"
        )
    errors = Errors()
    with errors.collected():
        known_names(value, known, f"`{name}`")
    if not isinstance(value.get("activation", ""), str):  # a file can hold no function
        errors.add(f"`activation` must be the name of a function. Received: activation={value['activation']!r}")
        known.remove("activation")
    with errors.collected():
        value = check_attributes({each: value[each] for each in known if each in value})
    errors.raise_all()
    return value


_INTEGERS = (
    "tokens_per_batch",
    "max_length",
    "buffer_size",
    "gradient_accumulation",
    "warmup_steps",
    "keep_checkpoints",
    "score_sentences",
)
_OPTIONAL_INTEGERS = ("packed_rows", "row_length", "max_shapes", "total_steps", "patience", "evaluate_every")
CHECKS: dict[str, Check] = {
    **dict.fromkeys(FILES, _file),
    "preset": _one_of(TRAINING_PRESETS),
    **dict.fromkeys(_INTEGERS, positive_int32),
    "vocabulary_size": _optional(_vocabulary_size),
    "split_digits": boolean,
    "model": _model_settings,
    "dtype": _optional(_one_of(DTYPES)),
    **dict.fromkeys(_OPTIONAL_INTEGERS, _optional(positive_int32)),
    "optimizer": _one_of(OPTIMIZERS),
    "weight_decay": _optional(fraction_or_one),
    **dict.fromkeys(("learning_rate_scale", "checkpoint_minutes"), positive_number),
    "learning_rate_decay": fraction_or_one,
    **dict.fromkeys(("label_smoothing", "source_word_dropout"), fraction),
    "subword_dropout": _optional(fraction),
    "consistency": _optional(_one_of(CONSISTENCY_WEIGHTS)),
    "consistency_weight": _optional(positive_number),
    "ema": _optional(fraction),
    "seed": _seed,
    "init_from": _optional(_folder),
}
