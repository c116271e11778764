"""A SavedModel, loaded as TF Serving loads it: a graph in a session."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_attention.extras import needed_by
from keras_attention.server.errors import HTTP_STATUS, RequestError
from keras_attention.server.signature import Arrays, Signature, read_signatures

CODES = {getattr(tf.errors, name): name for name in HTTP_STATUS}
WARM_UP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MODEL_CARD = Path("assets.extra") / "model_card.json"
# A translation may be this many tokens longer than its source, unless the model card has a maximum length.
LONGER_TARGET = 49


def newest_version(folder: str | os.PathLike) -> Path:
    """Returns the folder of the newest version in a model's folder, the one with the highest number."""
    folder = Path(folder)
    if (folder / "saved_model.pb").exists():
        raise ValueError(f"folder must be a model's, not that of one version: {folder.parent}. Received: {folder}")
    if not folder.is_dir():
        raise FileNotFoundError(f"folder must exist; keras-attention export writes one. Received: {folder}")
    if ":" in os.path.basename(os.path.realpath(folder)):
        raise ValueError(
            f"folder must have a name without :, as clients cannot ask for it; rename it. Received: {folder}"
        )
    if not (versions := _versions(folder)):
        models = [path for path in sorted(folder.iterdir()) if path.is_dir() and _versions(path)]
        rule = f"hold versions such as {folder / '1'}" if not models else f"be a model's, such as {models[0]}"
        raise FileNotFoundError(f"folder must {rule}. Received: {folder} without any version")
    return max(versions, key=lambda path: int(path.name))


def _versions(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _is_version(path.name) and (path / "saved_model.pb").is_file()]


def _is_version(name: str) -> bool:
    """Returns whether TF Serving treats a folder as a version: its name is a 64-bit number."""
    return name.isascii() and name.isdecimal() and len(name) < 20 and int(name) < 2**63


class LoadedModel:
    """The newest version in a model's folder, in a session.

    Source: https://www.tensorflow.org/tfx/serving/architecture
    """

    def __init__(self, folder: str | os.PathLike):
        with needed_by("keras_attention.server", "serving", "text"):
            importlib.import_module("tensorflow_text")  # registers the tokenizer's operations
        self.path = newest_version(folder)
        self.name = os.path.basename(os.path.realpath(folder))
        self.version = int(self.path.name)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        # tf.saved_model.load, which TensorFlow recommends, accepts models that TF Serving cannot load.
        try:
            with _QuietTensorFlow():
                graph = tf.compat.v1.saved_model.load(self._session, [tf.saved_model.SERVING], str(self.path))
        except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
            self._session.close()
            reason = str(error).partition("\n")[0][:300].rstrip(".")
            message = (
                f"The newest version must be a complete SavedModel for serving; export again, or remove it. {reason}"
            )
            raise ValueError(f"{message}. Received: {self.path}") from error
        self.signature_defs = graph.signature_def
        self.signatures = read_signatures(graph.signature_def)
        self._lengths = _lengths(self.path / MODEL_CARD)

    def signature(self, name: str) -> Signature:
        """Returns the signature of a name, "" for serving_default."""
        name = name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
        if name not in self.signatures:
            message = f'Serving signature name: "{name[:80]}" not found in signature def. It has: '
            raise RequestError("INVALID_ARGUMENT", message + ", ".join(sorted(self.signatures)))
        return self.signatures[name]

    def cells(self, signature: Signature, inputs: Arrays) -> int:
        """Returns a bound of texts × source tokens × target tokens, the size of the attention weights of a request.

        Those of several heads count as many times.
        """
        # 0 for a model without the lengths in a model card, and for a signature that does not run the model.
        lengths = self._lengths.get(signature.name) or self._lengths.get("decoding")
        if not lengths or "source" not in inputs or not {"score", "scores"} & set(signature.outputs):
            return 0
        max_source, max_target, max_length = lengths
        source = min(_longest(inputs["source"]) + 1, max_source)
        target = max_length or source + LONGER_TARGET
        if "target" in inputs:
            target = _longest(inputs["target"]) + 1
        return len(inputs["source"]) * source * min(target, max_target) * signature.heads

    def run(self, signature: Signature, inputs: Arrays, timeout: float = 60.0) -> Arrays:
        """Runs a signature, at most `timeout` seconds; one at a time, as a timeout stops all runs of a session."""
        fetches = {name: spec.name for name, spec in signature.outputs.items()}
        feeds = {signature.inputs[name].name: array for name, array in inputs.items()}
        options = tf.compat.v1.RunOptions(timeout_in_ms=max(1, int(timeout * 1000)))
        try:
            outputs = self._session.run(fetches, feeds, options=options)
        except tf.errors.OpError as error:
            code = CODES.get(error.error_code, "UNKNOWN")
            code = "DEADLINE_EXCEEDED" if code == "CANCELLED" else code  # nothing else cancels a run
            message = error.message.removeprefix("Graph execution error:").strip()[:500]
            raise RequestError(code, f"Signature '{signature.name}': {message}") from error
        # A single text is bytes, of which NumPy would drop NULs at the end.
        kinds = {name: object if spec.dtype == tf.string else None for name, spec in signature.outputs.items()}
        return {name: np.asarray(value, kinds[name]) for name, value in outputs.items()}

    def warm_up(self) -> int:
        """Runs the warm-up requests of the export and returns their number: the first run of a graph takes seconds."""
        from tensorflow_serving.apis import prediction_log_pb2

        file = self.path / WARM_UP_FILE
        records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator()) if file.is_file() else []
        for record in records:
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
            try:
                self.run(self.signature(request.model_spec.signature_name), inputs)
            except RequestError as error:
                message = f"A model must answer its own warm-up requests. Received: {self.path}: {error}"
                raise ValueError(message) from error
        return len(records)

    def close(self) -> None:
        """Frees the model's memory."""
        self._session.close()


class _QuietTensorFlow:
    """Suppresses TensorFlow's warning that the loader is deprecated."""

    def __enter__(self) -> None:
        self._level = tf.get_logger().level
        tf.get_logger().setLevel("ERROR")

    def __exit__(self, *_: Any) -> None:
        tf.get_logger().setLevel(self._level)


def _lengths(card: Path) -> dict[str, tuple[int, int, int | None]]:
    """Returns `max_source_length`, `max_target_length` and `max_length` in the entries of an export's model card.

    The entry `inspect` has those of that signature, `decoding` those of all others.
    """
    try:
        entries = json.loads(card.read_text(encoding="utf-8"))
        return {name: _three(entries[name]) for name in ("decoding", "inspect") if name in entries}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):  # another SavedModel, or an edited card
        return {}


def _three(entry: dict[str, Any]) -> tuple[int, int, int | None]:
    """Returns the three lengths of an entry."""
    max_length = entry["max_length"]
    return int(entry["max_source_length"]), int(entry["max_target_length"]), max_length and int(max_length)


def _longest(texts: np.ndarray) -> int:
    """Returns the number of bytes of the longest text, which is at least its number of tokens."""
    return max(map(len, texts), default=0)
