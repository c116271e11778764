"""Warm-up requests, which a server runs before it accepts others: the first run of a graph takes seconds."""

import itertools
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_attention.extras import install_command, is_installed
from keras_attention.serving.server_files import MAX_BATCH_SIZE
from keras_attention.serving.signatures import SIGNATURES
from keras_attention.serving.translator import Translator

WARM_UP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
# One caller, a few callers at once, and the largest batch, which allocates the memory that the model will need.
BATCH_SIZES = (1, 4, MAX_BATCH_SIZE)
TEXTS = ("How are you?", "", "Good night, and thank you for everything.")


def write_warm_up(path: Path, translator: Translator) -> None:
    """Writes a request for each signature and batch size, if tensorflow-serving-api is installed."""
    # https://www.tensorflow.org/tfx/serving/saved_model_warmup
    if not is_installed("tensorflow_serving"):
        print(f"no warm-up requests: {install_command('serving')} to have them")
        return
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    with tf.io.TFRecordWriter(str(path)) as writer:
        for (signature, (_, inputs)), batch_size in itertools.product(SIGNATURES.items(), BATCH_SIZES):
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            values = _values(translator, batch_size)
            for spec in inputs:
                request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(values[spec.name], spec.dtype))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def _values(translator: Translator, batch_size: int) -> dict[str, np.ndarray]:
    """Returns an array of `batch_size` rows for every input by its name."""
    texts = np.resize(np.array([text.encode() for text in TEXTS]), batch_size)  # repeats them
    return {"source": texts, "target": texts, "ids": translator.read(tf.constant(texts)).ids.numpy()}
