"""A `Transformer` as two ONNX graphs, the encoder and the decoder step."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_attention.conversion.folder import TOKENIZER_FILE, written_whole
from keras_attention.conversion.functions import DecodingFunctions, Run, check
from keras_attention.conversion.model import check_tokenizer, needs, readable
from keras_attention.models import Transformer

OPSET = 18
ENCODER, STEP = "encoder.onnx", "decoder_step.onnx"


def to_onnx(model: Transformer, tokenizer: Any, folder: str | os.PathLike) -> Path:
    """Writes `encoder.onnx` and `decoder_step.onnx`, with the tokenizer beside them.

    They take token ids; batch and lengths may be any. The step takes the keys and values of the tokens before and
    gives them back grown; the page on conversions lists its tensors. Before the folder takes its place both graphs
    are run by onnxruntime: their logits must be those of `model`.

    Args:
        model: A `Transformer`.
        tokenizer: The `SubwordTokenizer` that it was trained with.
        folder: What is written; it must not exist.

    Returns:
        The folder.

    Raises:
        TypeError: Another model.
        ValueError: The folder is taken, or the check fails: nothing is left behind then. Also without tf2onnx and
            onnxruntime.

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
    needs("onnx", "onnxruntime", "tf2onnx")
    model = readable(model)
    check_tokenizer(model, tokenizer)
    functions = DecodingFunctions(model)
    with written_whole(folder) as beside:
        for name, function in ((ENCODER, functions.encode), (STEP, functions.decode_step)):
            _write(function, beside / name)
        tokenizer.save(beside / TOKENIZER_FILE)
        check(model, *(_runner(beside / name) for name in (ENCODER, STEP)))
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
