"""A `Transformer` as one LiteRT model with the signatures `encode` and `decode_step`."""

import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_attention.conversion.folder import TOKENIZER_FILE, written_whole
from keras_attention.conversion.functions import DecodingFunctions, Run, check
from keras_attention.conversion.model import check_tokenizer, needs, readable
from keras_attention.models import Transformer

MODEL_FILE = "model.tflite"
SIGNATURES = ("encode", "decode_step")


def to_litert(model: Transformer, tokenizer: Any, folder: str | os.PathLike) -> Path:
    """Writes `model.tflite`, with the tokenizer beside it.

    Its signatures `encode` and `decode_step` share the weights, take token ids and need none of TensorFlow's own
    kernels; batch and lengths may be any. The step takes the keys and values of the tokens before and gives them back
    grown; the page on conversions lists its tensors. Before the folder takes its place the model is run by
    ai-edge-litert: its logits must be those of `model`.

    Args:
        model: A `Transformer`.
        tokenizer: The `SubwordTokenizer` that it was trained with.
        folder: What is written; it must not exist.

    Returns:
        The folder.

    Raises:
        TypeError: Another model.
        ValueError: The folder is taken, or the check fails: nothing is left behind then. Also without ai-edge-litert.

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
    needs("ai_edge_litert")
    model = readable(model)
    check_tokenizer(model, tokenizer)
    with written_whole(folder) as beside:
        (beside / MODEL_FILE).write_bytes(_converted(DecodingFunctions(model)))
        tokenizer.save(beside / TOKENIZER_FILE)
        check(model, *_runners(beside / MODEL_FILE))
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
            # What it returns lies in memory that its next run writes over.
            return {key: np.array(value) for key, value in signature(**inputs).items()}

        return run

    return runner("encode"), runner("decode_step")
