"""Functions of the tests of the development server: requests to a served stub, and a gate before its model."""

import http.client
import json
import re
import socket
import threading
import time

import pytest
import tensorflow as tf

pytest.importorskip("tensorflow_serving", reason="needs the extra serving")

from tensorflow_serving.apis import predict_pb2

LONG = 300  # seconds after which a test gives up
FREE = {"rest_port": 0, "grpc_port": 0}
SLOW = {"source": ["a"], "rounds": [200_000_000]}  # minutes, if nobody ends it


class Gate:
    """Blocks the runs of a model until it is open, and counts the requests that arrive."""

    def __init__(self, service, monkeypatch):
        self.open, self.entered, self.came = threading.Event(), threading.Event(), threading.Semaphore(0)
        run, submit = service.model.run, service.batcher.submit

        def held_run(*args):
            self.entered.set()
            assert self.open.wait(LONG)
            return run(*args)

        def told_submit(*args):
            answer = submit(*args)
            self.came.release()
            return answer

        monkeypatch.setattr(service.model, "run", held_run)
        monkeypatch.setattr(service.batcher, "submit", told_submit)

    def wait_for(self, requests):
        """Waits until a number of requests are in the queue or run."""
        for _ in range(requests):
            assert self.came.acquire(timeout=LONG)


def ask(server, path, document=None, method=None, headers=None):
    """Sends one request and returns the status and the JSON or text of the response."""
    body = json.dumps(document).encode() if isinstance(document, dict) else document
    connection = http.client.HTTPConnection(server.host, server.rest_port, timeout=LONG)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        response = connection.getresponse()
        text = response.read().decode()
        kind = response.headers["content-type"]
        return response.status, json.loads(text) if kind == "application/json" else text
    finally:
        connection.close()


def predict(server, **document):
    return ask(server, "/v1/models/stub:predict", document)


def counted(server, name, **labels):
    """A number of the server's metrics, 0 if it has not been counted yet."""
    text = ask(server, "/monitoring/prometheus/metrics")[1]
    written = ",".join(f'{key}="{value}"' for key, value in labels.items())
    match = re.search(rf"^keras_attention_{name}{{{written}}} (\S+)$", text, re.MULTILINE)
    return float(match[1]) if match else 0


def predict_request(signature_name="", version=None, name="stub", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature_name
    if version is not None:
        request.model_spec.version.value = version
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value))
    return request


def connect(server, port="rest_port"):
    return socket.create_connection((server.host, getattr(server, port)), timeout=LONG)


def ended(connection):
    """Reads until the server closes the connection and returns the bytes."""
    received = b""
    try:
        while part := connection.recv(4096):
            received += part
    except ConnectionError:
        pass
    return received


def wait_until(true):
    until = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < until
