"""TF Serving's gRPC services: predictions, signatures, the status of a version."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_attention.server.errors import RequestError
from keras_attention.server.service import Service
from keras_attention.server.signature import Arrays, elements

# Threads that wait for outputs; the model itself runs in one.
THREADS = 32


def grpc_server(service: Service, host: str, port: int, connections: int) -> tuple[grpc.Server, int]:
    """Returns a server of TF Serving's gRPC services, not started, and its port; port 0 is any free one."""
    # https://www.tensorflow.org/tfx/serving/serving_advanced
    idle = max(1, int(1000 * service.limits.idle))
    options = [
        ("grpc.max_receive_message_length", service.limits.request_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a second server on the port is an error
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.server_handshake_timeout_ms", idle),  # connections that send nothing
        ("grpc.max_connection_idle_ms", idle),  # connections without a call; a client reconnects
        ("grpc.keepalive_time_ms", idle),  # connections whose client has vanished
        ("grpc.keepalive_timeout_ms", idle),
    ]
    server = grpc.server(
        futures.ThreadPoolExecutor(THREADS, "grpc"),
        interceptors=[_RequestTimeout(service.limits.idle)],
        options=options,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Predictions(service), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(service), server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return server, server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"grpc_port must be free ({error}). Received: grpc_port={port}, host={host!r}") from error


class _RequestTimeout(grpc.ServerInterceptor):
    """Ends calls whose request does not come, as each would keep a thread.

    On the wire, a call with one request is one with a stream of requests, so a method can wait for the first of them.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler

        def respond(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            timer = threading.Timer(self._seconds, context.cancel)
            timer.start()
            try:
                request = next(requests, None)
            finally:
                timer.cancel()
            if request is None:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "A call needs a request. Received: none")
            return handler.unary_unary(request, context)

        return grpc.stream_unary_rpc_method_handler(respond, handler.request_deserializer, handler.response_serializer)


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, service: Service):
        self._service = service

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        with _errors_as_status(context), self._service.metrics.request("grpc"):
            return self._predict(request, context)

    def _predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        _check_model(self._service, request.model_spec)
        signature = self._service.model.signature(request.model_spec.signature_name)
        names = signature.select(list(request.output_filter))
        inputs = {
            name: _array(name, proto, self._service.limits.request_bytes) for name, proto in request.inputs.items()
        }
        future = self._service.submit(signature, inputs)
        outputs = _wait(future, context, self._service.limits.deadline)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self._service.model.name
        response.model_spec.version.value = self._service.model.version
        response.model_spec.signature_name = signature.name
        for name in names:
            response.outputs[name].CopyFrom(_proto(outputs, name))
        return response

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        with _errors_as_status(context):
            _check_model(self._service, request.model_spec)
            if list(request.metadata_field) != ["signature_def"]:
                fields = list(request.metadata_field)
                message = f"metadata_field must be signature_def. Received: {fields!r:.200}"
                raise RequestError("INVALID_ARGUMENT", message)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = self._service.model.name
            response.model_spec.version.value = self._service.model.version
            response.metadata["signature_def"].Pack(self._service.signature_map())
            return response


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, service: Service):
        self._service = service

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        with _errors_as_status(context):
            _check_model(self._service, request.model_spec)
            return self._service.status()


@contextmanager
def _errors_as_status(context: grpc.ServicerContext) -> Iterator[None]:
    """Ends a call with the status of a `RequestError`."""
    try:
        yield
    except RequestError as error:
        context.abort(grpc.StatusCode[error.code], error.message)


def _check_model(service: Service, spec: Any) -> None:
    if spec.version_label:
        raise RequestError("INVALID_ARGUMENT", f"Versions have no labels here. Received: {spec.version_label[:80]}")
    service.check_model(spec.name, str(spec.version.value) if spec.HasField("version") else None)


def _wait(outputs: futures.Future, context: grpc.ServicerContext, deadline: float) -> Arrays:
    """Waits for the outputs while the client is connected."""
    ended = threading.Event()
    if not context.add_callback(ended.set):
        ended.set()
    outputs.add_done_callback(lambda _: ended.set())
    remaining = context.time_remaining()
    in_time = ended.wait(deadline if remaining is None else min(deadline, remaining))
    if outputs.done():
        return outputs.result()
    outputs.cancel()
    if in_time:
        raise RequestError("CANCELLED", "The client is gone")
    raise RequestError("DEADLINE_EXCEEDED", f"No answer within {deadline:g} seconds")


def _array(name: str, proto: Any, limit: int) -> np.ndarray:
    """Returns a tensor as an array; its shape is checked first, as a proto can repeat one number for a whole array."""
    if elements([dim.size for dim in proto.tensor_shape.dim]) > limit:
        raise RequestError("INVALID_ARGUMENT", f"Input '{name}' may have {limit} elements. Received: more")
    try:
        if tf.as_dtype(proto.dtype).is_numpy_compatible:
            return tf.make_ndarray(proto)
        raise TypeError(f"{tf.as_dtype(proto.dtype).name} has no values that can be sent")
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError("INVALID_ARGUMENT", f"Input '{name}' is no tensor: {error}") from error


def _proto(outputs: Arrays, name: str) -> Any:
    return tf.make_tensor_proto(outputs[name], tf.as_dtype(np.asarray(outputs[name]).dtype))
