"""The client over gRPC, with TF Serving's own messages."""

import importlib
from typing import Any

from keras_attention.client.base import Client
from keras_attention.client.retries import ServingError
from keras_attention.extras import needed_by

# The connection to a server that restarts is made again within a second.
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class GrpcClient(Client):
    """Client over gRPC of a translator that TF Serving or `keras-attention serve` serves.

    It needs the extra `serving`. Threads can share a client.

    Args:
        address: Address of the server, such as "localhost:8500".
        model: Name of the model on the server.
        version: Version of the model; the newest by default.
        timeout: Timeout of a request in seconds.
        retries: Maximum number of retries of a request when the server is unavailable or busy.
        batch_size: Maximum number of texts of a request.

    Raises:
        ImportError: If the extra is not installed.
        ValueError: If `address` is not HOST:PORT, or another argument is out of its range.

    Example:
        >>> with GrpcClient("localhost:8500", model="en-de", retries=0) as client:
        ...     client.translate([])
        []

    Source: https://www.tensorflow.org/tfx/serving/serving_advanced
    """

    def __init__(
        self,
        address: str,
        model: str = "en-de",
        version: int | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        batch_size: int = 32,
    ):
        super().__init__(model, version, timeout, retries, batch_size)
        if not address or "/" in address or not address.rpartition(":")[2].isdecimal():
            raise ValueError(f"address must be HOST:PORT, such as localhost:8500. Received: address={address!r}")
        self.address = address
        self._grpc = _import("grpc")
        self._messages = _import("tensorflow_serving.apis.predict_pb2")
        self._status_messages = _import("tensorflow_serving.apis.get_model_status_pb2")
        self._channel = self._grpc.insecure_channel(address, options=OPTIONS)
        stubs = _import("tensorflow_serving.apis.prediction_service_pb2_grpc")
        self._predictions = stubs.PredictionServiceStub(self._channel)
        self._models = _import("tensorflow_serving.apis.model_service_pb2_grpc").ModelServiceStub(self._channel)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _predict(self, signature: str, inputs: dict[str, list[bytes]]) -> dict[str, list]:
        import tensorflow as tf

        request = self._messages.PredictRequest()
        self._fill(request.model_spec)
        request.model_spec.signature_name = signature
        for name, texts in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(texts, tf.string, [len(texts)]))
        response = self._call(self._predictions.Predict, request)
        arrays = {name: tf.make_ndarray(proto).tolist() for name, proto in response.outputs.items()}
        return {name: _decode(values) for name, values in arrays.items()}

    def _status(self) -> dict[int, str]:
        request = self._status_messages.GetModelStatusRequest()
        self._fill(request.model_spec)
        response = self._call(self._models.GetModelStatus, request)
        states = self._status_messages.ModelVersionStatus.State
        return {each.version: states.Name(each.state) for each in response.model_version_status}

    def _fill(self, spec: Any) -> None:
        spec.name = self.model
        if self.version is not None:
            spec.version.value = self.version

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self.timeout)
        except self._grpc.RpcError as error:
            code = error.code().name
            message = f"grpc://{self.address}/{self.model} answered {code}: {error.details()[:1000]}"
            raise ServingError(message + self._hint(code), passing=code == "UNAVAILABLE") from error

    def _hint(self, code: str) -> str:
        hints = {
            "UNAVAILABLE": ". Is the server running there?",
            "NOT_FOUND": ". Is that the model's name on the server?",
            "DEADLINE_EXCEEDED": f". Allow more than timeout={self.timeout:g} seconds, or use a smaller batch_size",
            "RESOURCE_EXHAUSTED": ". Use a smaller batch_size",
        }
        return hints.get(code, "")


def _decode(values: Any) -> Any:
    if isinstance(values, list):
        return [_decode(value) for value in values]
    return values.decode("utf-8", "replace") if isinstance(values, bytes) else values


def _import(name: str) -> Any:
    with needed_by("GrpcClient"):
        return importlib.import_module(name)
