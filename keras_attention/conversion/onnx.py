"""Conversion of a `Transformer` to two ONNX graphs, the encoder and the decoder step."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_attention.conversion.folder import TOKENIZER_FILE, atomic_folder
from keras_attention.conversion.functions import DecodingFunctions, Run, check
from keras_attention.conversion.model import check_installed, check_tokenizer, float32_model
from keras_attention.models import Transformer

OPSET = 18
ENCODER, STEP = "encoder.onnx", "decoder_step.onnx"


def to_onnx(model: Transformer, tokenizer: Any, folder: str | os.PathLike) -> Path:
    """Writes a folder with `encoder.onnx` and `decoder_step.onnx`, and the tokenizer.

    The graphs take token ids of any batch size and length. The step takes the keys and values of the tokens before and
    returns them with those of the new tokens; the page on conversions lists its tensors. Both graphs are checked with
    onnxruntime before the folder is renamed to `folder`: their logits must be those of `model`.

    Args:
        model: The `Transformer`.
        tokenizer: The `SubwordTokenizer` that the model was trained with.
        folder: The output folder; it must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        TypeError: If `model` is not a `Transformer`.
        ValueError: If `folder` exists, the check fails, or tf2onnx or onnxruntime is not installed. Nothing is written
            then.

    Example:
        >>> import onnxruntime
        >>> tokenizer = getfixture("tokenizer")
        >>> model = ka.Transformer.from_preset("tiny", tokenizer.vocabulary_size, num_layers=1)
        >>> folder = to_onnx(model, tokenizer, "onnx/en-de")
        >>> encoder = onnxruntime.InferenceSession(folder / "encoder.onnx")
        >>> keys, values = encoder.run(None, {"source": np.array([[5, 6, 3], [7, 3, 0]], "int32")})
        >>> keys.shape  # sentences, layers, heads, source length, head width
        (2, 1, 4, 3, 16)

    Source: https://onnx.ai
    """
    check_installed("onnx", "onnxruntime", "tf2onnx")
    model = float32_model(model)
    check_tokenizer(model, tokenizer)
    functions = DecodingFunctions(model)
    with atomic_folder(folder) as temporary:
        for name, function in ((ENCODER, functions.encode), (STEP, functions.decode_step)):
            _write(function, temporary / name)
        tokenizer.save(temporary / TOKENIZER_FILE)
        check(model, *(_runner(temporary / name) for name in (ENCODER, STEP)))
    return Path(folder)


def _write(function: Any, path: Path) -> None:
    import tf2onnx

    tf2onnx.convert.from_function(
        function, input_signature=function.input_signature, opset=OPSET, output_path=str(path)
    )


def _runner(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run
