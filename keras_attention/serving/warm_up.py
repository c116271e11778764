"""Warm-up requests, which a server runs before it accepts others: the first run of a graph takes seconds."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_attention.extras import install_command, is_installed
from keras_attention.serving.inspection import MAX_INSPECTED_LENGTH
from keras_attention.serving.server_files import MAX_BATCH_SIZE
from keras_attention.serving.signatures import SIGNATURES, Signature
from keras_attention.serving.translator import Translator

WARM_UP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
# One caller, a few callers at once, and the largest batch, which allocates the memory that the model will need.
BATCH_SIZES = (1, 4, MAX_BATCH_SIZE)
TEXTS = ("How are you?", "", "Good night, and thank you for everything.")


def write_warm_up(path: Path, translator: Translator, signatures: Mapping[str, Signature] = SIGNATURES) -> None:
    """Writes a request for each signature and batch size, if tensorflow-serving-api is installed."""
    # https://www.tensorflow.org/tfx/serving/saved_model_warmup
    if not is_installed("tensorflow_serving"):
        print(f"no warm-up requests: {install_command('serving')} to have them")
        return
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(path)) as writer:
        for (signature, (_, inputs)), batch_size in itertools.product(signatures.items(), BATCH_SIZES):
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            values = _values(translator, batch_size)
            for spec in inputs:
                value = values[spec.name] if spec.name in values else _unchanged(spec, batch_size)
                request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(value, spec.dtype))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def _values(translator: Translator, batch_size: int) -> dict[str, np.ndarray]:
    """Returns an array of `batch_size` rows for every input by its name."""
    texts = np.resize(np.array([text.encode() for text in TEXTS]), batch_size)  # repeats them
    return {"source": texts, "target": texts, "ids": translator.read(tf.constant(texts)).ids.numpy()}


def _unchanged(spec: tf.TensorSpec, batch_size: int) -> np.ndarray:
    """Returns an input of `inspect` that changes nothing: all heads on, a wide window, a scale of one."""
    value = MAX_INSPECTED_LENGTH if spec.name == "window" else 1
    return np.full((batch_size, *spec.shape[1:]), value, spec.dtype.as_numpy_dtype)
