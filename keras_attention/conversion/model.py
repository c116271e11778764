"""The model as a conversion reads it: float32 weights of a plain `Transformer`."""

from typing import Any

import keras

from keras_attention.extras import install_command, is_installed
from keras_attention.models import Transformer


def readable(model: Any) -> Transformer:
    """The model with float32 layers, so that other runtimes can be compared with it.

    Args:
        model: A `Transformer` of any float policy, with or without adapters.

    Returns:
        The model itself, or a float32 copy of it.

    Raises:
        TypeError: Another model.
        ValueError: A quantized model.

    Example:
        >>> model = ka.Transformer.from_preset("tiny", vocabulary_size=100, dtype="mixed_bfloat16")
        >>> readable(model).dtype_policy.compute_dtype
        'float32'
    """
    if not isinstance(model, Transformer):
        raise TypeError(f"`model` is a keras_attention.Transformer. Received: model={type(model).__name__}")
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
    """Refuses a tokenizer of another vocabulary.

    Args:
        model: What is converted.
        tokenizer: What it was trained with.

    Raises:
        ValueError: They differ in size.
    """
    if tokenizer.vocabulary_size != model.config.vocabulary_size:
        raise ValueError(
            "`tokenizer` must be the one that the model was trained with. Received: tokenizer.vocabulary_size="
            f"{tokenizer.vocabulary_size}, model.config.vocabulary_size={model.config.vocabulary_size}"
        )


def needs(*packages: str) -> None:
    """Refuses to start without the packages of a format.

    Args:
        *packages: Names to import.

    Raises:
        ValueError: One is not installed.

    Example:
        >>> needs("numpy", "no_such_package")
        Traceback (most recent call last):
        ValueError: This conversion needs no_such_package: pip install 'keras-attention-transformer[convert]'
    """
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        raise ValueError(f"This conversion needs {', '.join(missing)}: {install_command('convert')}")
