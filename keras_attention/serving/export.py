"""One SavedModel from text to text, in the folders that TensorFlow Serving watches."""

import importlib.util
import os
import shutil
import uuid
from pathlib import Path

import keras
import tensorflow as tf

from keras_attention.serving.translator import Translator

WARM_UP_TEXTS = ("How are you?", "")
WARM_UP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"


def export(translator: Translator, folder: str | os.PathLike) -> Path:
    """Writes the next version of a SavedModel that takes text and returns text.

    Its signature `serving_default` takes `source` (B,) and returns `text` and `score` (B,);
    `translate_nbest` returns `texts` and `scores` (B, K). It is written beside its place and renamed
    when it is complete: a server that watches the folder never sees half a model, and an export that
    fails leaves nothing behind. Where tensorflow-serving-api is installed, requests are added that a
    server runs before it takes a caller's.

    Args:
        translator: What to export.
        folder: The model's folder; versions in it are 1, 2, 3, …

    Returns:
        The folder of the new version.

    Example:
        >>> translator = getfixture("translator")
        >>> export(translator, "saved_models/en-de").as_posix()
        'saved_models/en-de/1'

    Source: https://www.tensorflow.org/tfx/serving/serving_config
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"unfinished-{uuid.uuid4().hex}"
    try:
        _write(translator, unfinished)
        return _publish(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        for path in made:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()
        raise


def _write(translator: Translator, path: Path) -> None:
    # tf.saved_model.save would do for Python only: a session, as servers use, finds no variables.
    archive = keras.export.ExportArchive()
    archive.track(translator)
    archive.add_endpoint("serving_default", translator.serve)
    archive.add_endpoint("translate_nbest", translator.serve_nbest)
    archive.write_out(str(path), verbose=False)
    if importlib.util.find_spec("tensorflow_serving") is not None:
        _write_warm_up(path / WARM_UP_FILE)


def _write_warm_up(path: Path) -> None:
    """Writes a request for each signature: the first run of a graph takes seconds."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in ("serving_default", "translate_nbest"):
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            request.inputs["source"].CopyFrom(tf.make_tensor_proto(list(WARM_UP_TEXTS)))
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString())


def _publish(unfinished: Path, folder: Path) -> Path:
    """Renames a finished export to the next version."""
    while True:
        taken = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
        version = folder / str(max(taken, default=0) + 1)
        try:
            return unfinished.rename(version)
        except OSError:
            if not version.exists():
                raise  # not another export that took the number at the same time
