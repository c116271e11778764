"""Conversion of a `Transformer` to a LiteRT model with the signatures `encode` and `decode_step`."""

import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_attention.conversion.folder import TOKENIZER_FILE, atomic_folder
from keras_attention.conversion.functions import DecodingFunctions, Run, check
from keras_attention.conversion.model import check_installed, check_tokenizer, float32_model
from keras_attention.models import Transformer

MODEL_FILE = "model.tflite"
SIGNATURES = ("encode", "decode_step")


def to_litert(model: Transformer, tokenizer: Any, folder: str | os.PathLike) -> Path:
    """Writes a folder with `model.tflite` and the tokenizer.

    Its signatures `encode` and `decode_step` share the weights, take token ids of any batch size and length, and need
    no kernels of TensorFlow itself. The step takes the keys and values of the tokens before and returns them with those
    of the new tokens; the page on conversions lists its tensors. The model is checked with ai-edge-litert before the
    folder is renamed to `folder`: its logits must be those of `model`.

    Args:
        model: The `Transformer`.
        tokenizer: The `SubwordTokenizer` that the model was trained with.
        folder: The output folder; it must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        TypeError: If `model` is not a `Transformer`.
        ValueError: If `folder` exists, the check fails, or ai-edge-litert is not installed. Nothing is written then.

    Example:
        >>> from ai_edge_litert.interpreter import Interpreter
        >>> tokenizer = getfixture("tokenizer")
        >>> model = ka.Transformer.from_preset("tiny", tokenizer.vocabulary_size, num_layers=1)
        >>> folder = to_litert(model, tokenizer, "litert/en-de")
        >>> encode = Interpreter(str(folder / "model.tflite")).get_signature_runner("encode")
        >>> encode(source=np.array([[5, 6, 3], [7, 3, 0]], "int32"))["memory_keys"].shape
        (2, 1, 4, 3, 16)

    Source: https://ai.google.dev/edge/litert
    """
    check_installed("ai_edge_litert")
    model = float32_model(model)
    check_tokenizer(model, tokenizer)
    with atomic_folder(folder) as temporary:
        (temporary / MODEL_FILE).write_bytes(_converted(DecodingFunctions(model)))
        tokenizer.save(temporary / TOKENIZER_FILE)
        check(model, *_runners(temporary / MODEL_FILE))
    return Path(folder)


def _converted(functions: DecodingFunctions) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(functions)
        for name in SIGNATURES:
            archive.add_endpoint(name, getattr(functions, name))
        archive.write_out(folder, verbose=False)
        return tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(SIGNATURES)).convert()


def _runners(path: Path) -> tuple[Run, Run]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))

    def runner(name: str) -> Run:
        signature = interpreter.get_signature_runner(name)

        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            # Copies, as the next run overwrites the memory of the outputs.
            return {key: np.array(value) for key, value in signature(**inputs).items()}

        return run

    return runner("encode"), runner("decode_step")
