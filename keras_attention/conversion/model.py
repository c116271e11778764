"""The checks and the dtype of a model before its conversion."""

from typing import Any

import keras

from keras_attention.extras import install_command, is_installed
from keras_attention.models import Transformer


def float32_model(model: Any) -> Transformer:
    """Returns a `Transformer` of any float policy in float32, in which other runtimes are compared with it."""
    if not isinstance(model, Transformer):
        raise TypeError(f"`model` must be a keras_attention.Transformer. Received: model={type(model).__name__}")
    weights = [keras.backend.standardize_dtype(weight.dtype) for weight in model.weights]
    if any("int" in dtype or "float8" in dtype for dtype in weights):
        raise ValueError(
            "A quantized model cannot be converted: load the float one, and ask for the format's own quantization. "
            f"Received: weights of {', '.join(sorted(set(weights)))}"
        )
    if model.dtype_policy.compute_dtype == model.dtype_policy.variable_dtype == "float32":
        return model
    return model.in_dtype("float32")


def check_tokenizer(model: Transformer, tokenizer: Any) -> None:
    """Raises for a tokenizer with another vocabulary size than the model's."""
    if tokenizer.vocabulary_size != model.config.vocabulary_size:
        raise ValueError(
            "`tokenizer` must be the one that the model was trained with. Received: tokenizer.vocabulary_size="
            f"{tokenizer.vocabulary_size}, model.config.vocabulary_size={model.config.vocabulary_size}"
        )


def check_installed(*packages: str) -> None:
    """Raises if a package that the conversion imports is not installed."""
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise ValueError(f"This conversion needs {', '.join(missing)}: {install_command('convert')}")
