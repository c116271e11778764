"""The development server: TF Serving's REST paths and gRPC services over loopback, good requests and bad ones."""

import base64
import concurrent.futures
import contextlib
import errno
import http.client
import importlib
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from saved_model import tiny_export
from stub_model import MOST_WORDS, write_stub

pytest.importorskip("grpc", reason="needs the extra serving")
pytest.importorskip("starlette", reason="needs the extra serving")

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_attention.cli import main
from keras_attention.server import Limits, Server, connections, json_tensors, lifecycle, ports, serve
from keras_attention.server.hosts import Hosts

pytestmark = pytest.mark.tensorflow

LONG = 300  # seconds after which a test gives up
FREE = {"rest_port": 0, "grpc_port": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_stub(tmp_path_factory.mktemp("saved_models") / "stub", version=7)


@pytest.fixture(scope="module")
def server(folder):
    with Server(folder, **FREE) as running:
        yield running


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture
def make_server(folder):
    """Makes servers with limits of their own."""
    made = []

    def make(allowed_hosts=(), **limits):
        made.append(Server(folder, **FREE, allowed_hosts=allowed_hosts, limits=Limits(**limits)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def hold(monkeypatch):
    """Makes gates; at the end they are open."""
    made = []

    def make(server):
        made.append(Gate(server._service, monkeypatch))
        return made[-1]

    yield make
    for each in made:
        each.open.set()


class Gate:
    """Holds the runs of a model until it is open, and tells of requests that come."""

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
        """Waits until so many requests are in the queue or run."""
        for _ in range(requests):
            assert self.came.acquire(timeout=LONG)


def ask(server, path, document=None, method=None, headers=None):
    """Sends one request; gives the status and the answer, read as JSON."""
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
    """A number among the server's counts; 0 where it has not been counted yet."""
    text = ask(server, "/monitoring/prometheus/metrics")[1]
    written = ",".join(f'{key}="{value}"' for key, value in labels.items())
    found = re.search(rf"^keras_attention_{name}{{{written}}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


# ---- REST


BACKWARDS = {"text": ["THREE TWO ONE"], "score": [-1.5], "truncated": [False]}


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ({"inputs": {"source": ["one two three"]}}, {"outputs": BACKWARDS}),
        ({"inputs": ["one two three"], "signature_name": ""}, {"outputs": BACKWARDS}),
        ({"inputs": {"source": []}}, {"outputs": {"text": [], "score": [], "truncated": []}}),
        (
            {"instances": ["one", {"b64": base64.b64encode("zählt".encode()).decode()}]},
            {
                "predictions": [
                    {"text": "ONE", "score": -0.5, "truncated": False},
                    {"text": "ZäHLT", "score": -0.5, "truncated": False},
                ]
            },
        ),
        (
            {"instances": [{"source": "a b"}], "signature_name": "translate_nbest"},
            {"predictions": [{"texts": ["B A", "B A?", "B A!"], "scores": [-1.0, -2.25, -3.0], "truncated": False}]},
        ),
        (
            {"instances": [{"source": "a b", "target": "x y z"}], "signature_name": "score"},
            {"predictions": [{"score": -8.0, "tokens": 4, "truncated": False}]},
        ),
        # One output stands alone; float32 comes back as the shortest decimals.
        (
            {"inputs": {"left": [[0.1, 1e-7, 5]], "right": [0]}, "signature_name": "add"},
            {"outputs": [[0.1, 1e-7, 5.0]]},
        ),
        (
            {"instances": [{"left": [1, 2, 3], "right": 0.5}] * 2, "signature_name": "add"},
            {"predictions": [[1.5, 2.5, 3.5]] * 2},
        ),
        # Bytes: a name that ends so asks for base64.
        (
            {"inputs": [[3, 5], [7, 11]], "signature_name": "echo_ids"},
            {"outputs": {"text": ["3 5", "7 11"], "raw_bytes": [{"b64": "/zMgNQ=="}, {"b64": "/zcgMTE="}]}},
        ),
        # No batch at all.
        ({"inputs": 1.25, "signature_name": "double"}, {"outputs": {"number": 2.5, "whole": 1, "text": "1.250000"}}),
    ],
)
def test_rest_answers_as_tf_serving_does(server, request_, answer):
    status, found = predict(server, **request_)
    assert status == 200
    assert found == answer


def test_numbers_that_json_does_not_have_are_written_as_tf_serving_writes_them(server):
    status, found = predict(server, inputs=["a"], signature_name="not_a_number")
    assert status == 200
    assert math.isnan(found["outputs"]["score"][0])
    assert predict(server, inputs=math.inf, signature_name="double")[1]["outputs"]["number"] == math.inf


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (b"", "JSON Parse error"),
        (b"{", "JSON Parse error"),
        (b'["a"]', "Is not object"),
        (b'{"inputs": ["\xff"]}', "not UTF-8 .*b64"),
        (b'{"inputs": ["\\ud800"]}', "surrogates not allowed"),
        (b'{"inputs": ' + b"[" * 100_000, "too many levels"),
        (b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}", "more than 32 levels"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"inputs": ["a"], "instances": ["a"]}, "only one of 'inputs' or 'instances'"),
        ({"inputs": ["a"], "signature_name": 3}, "'signature_name' key must be a string"),
        ({"inputs": ["a"], "signature_name": "serve"}, '"serve" not found in signature def. It has: add, align'),
        ({"inputs": ["a"], "signature_name": "__saved_model_init_op"}, "not found in signature def"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": "a"}, "to be an list/array"),
        ({"inputs": "a"}, r"takes shape \(any\). Received: \(\)"),
        ({"inputs": [["a"]]}, r"takes shape \(any\). Received: \(1, 1\)"),
        ({"inputs": ["a", ["b"]]}, "list at unexpected level"),
        ({"inputs": [["a"], "b"]}, "found at incorrect level"),
        ({"inputs": [[1, 2], [3]], "signature_name": "echo_ids"}, "list at unexpected size: 1 expected size: 2"),
        ({"inputs": ["a", 3]}, "JSON Value: 3 Type: int is not of expected type: string"),
        ({"inputs": [None]}, "JSON Value: null"),
        ({"inputs": [{"b64": "?"}]}, "Unable to base64 decode"),
        ({"inputs": [{"b64": 3}]}, "is not of expected type: string"),
        ({"inputs": {"text": ["a"]}}, r"Missing: \['source'\]. Unknown: \['text'\]"),
        ({"inputs": {"source": ["a"], "text": ["a"]}}, r"Unknown: \['text'\]"),
        ({"inputs": ["a"], "signature_name": "score"}, "multiple input tensors required: source, target"),
        ({"instances": ["a"], "signature_name": "score"}, "multiple input tensors required"),
        ({"instances": [{"source": "a"}, "b"]}, "Failed to process element: 1"),
        ({"instances": [{"source": "a"}, {"text": "a"}]}, "keys must be equal to: source"),
        ({"inputs": {"source": ["a"], "target": ["a", "b"]}, "signature_name": "score"}, "same number of rows"),
        ({"inputs": [[1.5]], "signature_name": "echo_ids"}, "Type: float is not of expected type: int32"),
        ({"inputs": [[True]], "signature_name": "echo_ids"}, "Type: bool"),
        ({"inputs": [[2**31]], "signature_name": "echo_ids"}, "out of bounds for int32"),
        ({"inputs": 1e39, "signature_name": "double"}, "overflow"),
        ({"inputs": 10**400, "signature_name": "double"}, "too large"),
        ({"inputs": ["bad", "good"], "signature_name": "refuse"}, "assertion failed: .a bad text"),
        ({"instances": ["a", "b"], "signature_name": "sideways"}, None),
        ({"inputs": ["a"] * 257}, "may have 256 rows"),
        (b'{"inputs": ["a"], "inputs": ["b", "c"]}', 'JSON Parse error: the name "inputs" occurs twice'),
        (b'{"instances": [{"source": "a", "source": "b"}]}', 'JSON Parse error: the name "source" occurs twice'),
    ],
)
def test_rest_refuses_with_a_clear_error(server, request_, message):
    status, found = ask(server, "/v1/models/stub:predict", request_)
    if message is None:
        assert (status, found) == (200, {"predictions": [["a", "b"]] * 3})  # three rows, as the model has it
        return
    assert status == 400
    assert list(found) == ["error"]
    assert re.search(message, found["error"])
    assert len(found["error"]) < 1000
    assert predict(server, inputs=["still here"])[1]["outputs"]["text"] == ["HERE STILL"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v1/models/other:predict", 404, r"Servable not found for request: Latest\(other\)"),
        ("POST", "/v1/models/stub/versions/6:predict", 404, r"Specific\(stub, 6\). Served is stub, version 7"),
        ("POST", f"/v1/models/stub/versions/{'9' * 5000}:predict", 404, "Specific"),
        ("GET", "/v1/models/other", 404, "Servable not found"),
        ("GET", "/v1/models/stub/versions/x/metadata", 404, "Servable not found"),
        ("GET", "/v1/models/stub:predict", 400, "Malformed request: GET /v1/models/stub:predict"),
        ("POST", "/v1/models/stub", 400, "Malformed request"),
        ("POST", "/v1/models/stub:classify", 400, "Malformed request"),
        ("GET", "/v2", 404, "GET /v2"),
        ("GET", "/", 404, "Not Found"),  # the page was not asked for
    ],
)
def test_paths_that_are_not_there(server, method, path, status, message):
    found = ask(server, path, b"{}" if method == "POST" else None)
    assert found[0] == status
    assert re.search(message, found[1]["error"])


def test_odd_texts_each_get_one_answer(server):
    texts = ["", "\0", "a\0b", "😀", "x" * 100_000, "a " * 50_000, " \t\n"]
    status, found = predict(server, inputs={"source": texts})
    assert status == 200
    assert found["outputs"]["text"][:5] == ["", "\0", "A\0B", "😀", "X" * 100_000]
    assert found["outputs"]["truncated"] == [False, False, False, False, False, True, False]
    odd = [{"b64": base64.b64encode(text).decode()} for text in (b"\xff\xfe", b"\xc3")]
    status, found = predict(server, inputs={"source": odd})
    assert (status, len(found["outputs"]["text"])) == (200, 2)


def test_status_health_and_versions(server):
    status, found = ask(server, "/v1/models/stub")
    assert status == 200
    parsed = json_format.ParseDict(found, get_model_status_pb2.GetModelStatusResponse())
    (version,) = parsed.model_version_status
    assert (version.version, version.state) == (7, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    assert found["model_version_status"][0]["status"] == {"error_code": "OK", "error_message": ""}
    assert ask(server, "/v1/models/stub/versions/7") == (200, found)
    assert ask(server, "/healthz") == (200, "ok\n")
    assert ask(server, "/v1/models/stub/versions/7:predict", {"inputs": ["a"]})[0] == 200


def test_metadata_describes_the_signatures(server):
    status, found = ask(server, "/v1/models/stub/metadata")
    assert status == 200
    assert found["model_spec"] == {"name": "stub", "signature_name": "", "version": "7"}
    described = json_format.ParseDict(found["metadata"]["signature_def"], get_model_metadata_pb2.SignatureDefMap())
    nbest = described.signature_def["translate_nbest"].outputs["scores"]
    assert nbest.dtype == tf.float32.as_datatype_enum
    assert [dim.size for dim in nbest.tensor_shape.dim] == [-1, 3]


# ---- gRPC


def predict_request(signature_name="", version=None, name="stub", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature_name
    if version is not None:
        request.model_spec.version.value = version
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value))
    return request


def test_grpc_predicts(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(predict_request("translate_nbest", version=7, source=["a b", ""]), timeout=LONG)
    assert (response.model_spec.name, response.model_spec.version.value) == ("stub", 7)
    assert response.model_spec.signature_name == "translate_nbest"
    np.testing.assert_array_equal(
        tf.make_ndarray(response.outputs["texts"]), [[b"B A", b"B A?", b"B A!"], [b"", b"?", b"!"]]
    )
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["scores"])[0], [-1, -2.25, -3])


def test_grpc_takes_empty_batches_filters_and_numbers(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = predict_request(source=tf.make_tensor_proto([], tf.string, [0]))
    request.output_filter.append("text")
    response = stub.Predict(request, timeout=LONG)
    assert list(response.outputs) == ["text"]
    assert tf.make_ndarray(response.outputs["text"]).shape == (0,)
    numbers = predict_request("add", left=np.float32([[1, 2, 3]]), right=np.float32([4]))
    np.testing.assert_array_equal(tf.make_ndarray(stub.Predict(numbers).outputs["sum"]), [[5, 6, 7]])
    scalar = stub.Predict(predict_request("double", number=np.float32(3)))
    assert tf.make_ndarray(scalar.outputs["number"]) == 6


def huge_tensor():
    """A few bytes that mean a terabyte."""
    proto = tf.make_tensor_proto([1], tf.int32)
    proto.tensor_shape.dim[0].size = 2**38
    return proto


def negative_tensor():
    proto = tf.make_tensor_proto([1, 2], tf.int32)
    proto.tensor_shape.dim[0].size = -2
    return proto


def unknown_tensor():
    proto = tf.make_tensor_proto([1, 2], tf.int32)
    proto.dtype = 999
    return proto


def handle_tensor(dtype):
    """A dtype whose values are in one process only."""
    proto = tf.make_tensor_proto([1, 2], tf.int32)
    proto.dtype = dtype.as_datatype_enum
    return proto


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (predict_request(name="other", source=["a"]), "NOT_FOUND", r"Latest\(other\)"),
        (predict_request(version=6, source=["a"]), "NOT_FOUND", r"Specific\(stub, 6\)"),
        (predict_request("serve", source=["a"]), "INVALID_ARGUMENT", '"serve" not found'),
        (predict_request(), "INVALID_ARGUMENT", r"Missing: \['source'\]"),
        (predict_request(source=[1.5]), "INVALID_ARGUMENT", "takes string. Received: float32"),
        (predict_request(source=[["a"]]), "INVALID_ARGUMENT", "takes shape"),
        (predict_request("echo_ids", ids=huge_tensor()), "INVALID_ARGUMENT", "elements. Received: more"),
        (predict_request("echo_ids", ids=negative_tensor()), "INVALID_ARGUMENT", "no negative dimensions"),
        (predict_request("echo_ids", ids=unknown_tensor()), "INVALID_ARGUMENT", "is no tensor"),
        (predict_request("echo_ids", ids=handle_tensor(tf.resource)), "INVALID_ARGUMENT", "is no tensor: resource has"),
        (predict_request("echo_ids", ids=handle_tensor(tf.variant)), "INVALID_ARGUMENT", "is no tensor: variant has"),
        (predict_request("refuse", source=["bad"]), "INVALID_ARGUMENT", "assertion failed"),
        (predict_request(source=["x" * 5_000_000]), "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_grpc_refuses_with_a_clear_error(channel, request_, code, message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Predict(request_, timeout=LONG)
    assert refused.value.code().name == code
    assert re.search(message, refused.value.details())
    assert len(stub.Predict(predict_request(source=["still here"])).outputs) == 3


def test_grpc_refuses_unknown_outputs_and_labels(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = predict_request(source=["a"])
    request.output_filter.append("words")
    with pytest.raises(grpc.RpcError, match=r"the outputs are \['score', 'text', 'truncated'\]"):
        stub.Predict(request, timeout=LONG)
    request = predict_request(source=["a"])
    request.model_spec.version_label = "stable"
    with pytest.raises(grpc.RpcError, match="Versions have no labels here"):
        stub.Predict(request, timeout=LONG)


def test_grpc_gives_status_and_metadata(server, channel):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "stub"
    status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=LONG)
    assert [version.version for version in status.model_version_status] == [7]
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "stub"
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError, match="metadata_field must be signature_def"):
        stub.GetModelMetadata(request, timeout=LONG)
    request.metadata_field.append("signature_def")
    found = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(request, timeout=LONG).metadata["signature_def"].Unpack(found)
    over_rest = ask(server, "/v1/models/stub/metadata")[1]["metadata"]["signature_def"]
    assert json_format.ParseDict(over_rest, get_model_metadata_pb2.SignatureDefMap()) == found


# ---- many at once, too much, too long, gone


def test_two_hundred_at_once_each_get_their_own_answer(server, channel, hold):
    gate = hold(server)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    begun = counted(server, "batch_rows_count", signature="serving_default")

    def one(number):
        text = f"word{number} and"
        if number % 2:
            response = stub.Predict(predict_request(source=[text]), timeout=LONG)
            return tf.make_ndarray(response.outputs["text"])[0].decode()
        return predict(server, inputs=[text])[1]["outputs"]["text"][0]

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        answers = pool.map(one, range(200))
        gate.wait_for(requests=5)
        gate.open.set()
        found = list(answers)
    assert found == [f"AND WORD{number}" for number in range(200)]
    assert counted(server, "batch_rows_count", signature="serving_default") - begun < 200  # some shared a run


def test_a_body_that_is_too_large_is_refused(server):
    before = counted(server, "requests_total", api="rest", code="INVALID_ARGUMENT")
    status, found = predict(server, inputs=["x" * 5_000_000])
    assert status == 413
    assert "may have 4194304 bytes; send fewer texts at a time" in found["error"]
    assert counted(server, "requests_total", api="rest", code="INVALID_ARGUMENT") == before + 1
    assert predict(server, inputs=["a b"])[1]["outputs"]["text"] == ["B A"]


SLOW = {"source": ["a"], "rounds": [200_000_000]}  # minutes, if nobody ends it


def test_a_run_that_takes_too_long_ends_and_the_server_goes_on(make_server):
    server = make_server(deadline=0.2)
    status, found = predict(server, inputs=SLOW, signature_name="slow")
    assert status == 504
    assert re.search(r"No answer within 0\.2 seconds|Timed out", found["error"])
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as ended:
            stub.Predict(predict_request("slow", source=["a"], rounds=np.int32(SLOW["rounds"])), timeout=LONG)
        assert ended.value.code().name == "DEADLINE_EXCEEDED"
    server._service.limits = Limits(deadline=LONG)  # however busy this machine is
    assert predict(server, inputs={"source": ["a b"], "rounds": [1]}, signature_name="slow")[0] == 200


def test_a_client_that_goes_away_leaves_no_work_behind(make_server, hold):
    server = make_server(deadline=LONG)
    gate = hold(server)
    body = json.dumps({"inputs": ["a"]})
    with socket.create_connection((server.host, server.rest_port)) as gone:
        head = f"POST /v1/models/stub:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        gone.sendall((head + body).encode())
        gate.wait_for(requests=1)
        gone.shutdown(socket.SHUT_WR)
        assert gone.recv(1) == b""  # the server has noticed
    wait_until(lambda: counted(server, "requests_total", api="rest", code="CANCELLED"))
    with socket.create_connection((server.host, server.rest_port)) as half:
        half.sendall(b"POST /v1/models/stub:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    with socket.create_connection((server.host, server.rest_port)) as nonsense:
        nonsense.sendall(b"\x16\x03\x01\xff\0nonsense\r\n\r\n")
        assert nonsense.recv(1000).startswith(b"HTTP/1.1 400")
    with grpc.insecure_channel(server.address) as channel:
        call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict.future(predict_request(source=["a"]))
        gate.wait_for(requests=1)
        call.cancel()
        wait_until(lambda: counted(server, "requests_total", api="grpc", code="CANCELLED"))
    gate.open.set()
    assert predict(server, inputs=["a b"])[1]["outputs"]["text"] == ["B A"]


def wait_until(true):
    until = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < until


def test_a_full_queue_is_said_over_both(make_server, hold):
    server = make_server(queue=1, deadline=LONG)
    gate = hold(server)
    with concurrent.futures.ThreadPoolExecutor(2) as pool, grpc.insecure_channel(server.address) as channel:
        runs = pool.submit(predict, server, inputs=["a b"])
        assert gate.entered.wait(LONG)
        waits = pool.submit(predict, server, inputs=["c d"])
        gate.wait_for(requests=2)
        status, found = predict(server, inputs=["e"])
        assert (status, found["error"]) == (503, "The server has 1 requests waiting. Try again later")
        with pytest.raises(grpc.RpcError) as refused:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(predict_request(source=["e"]))
        assert refused.value.code().name == "UNAVAILABLE"
        gate.open.set()
        assert runs.result(LONG)[1]["outputs"]["text"] == ["B A"]
        assert waits.result(LONG)[1]["outputs"]["text"] == ["D C"]


def test_the_counts_are_readable_by_prometheus(server):
    parser = pytest.importorskip("prometheus_client.parser")
    predict(server, inputs=["a b", "c"], signature_name="translate_nbest")
    predict(server, inputs=["a"], signature_name="no such one")
    text = ask(server, "/monitoring/prometheus/metrics")[1]
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    names = ("requests", "request_seconds", "batch_rows", "queue_requests")
    assert {f"keras_attention_{name}" for name in names} <= set(families)
    assert counted(server, "requests_total", api="rest", code="OK") > 0
    assert counted(server, "requests_total", api="rest", code="INVALID_ARGUMENT") > 0
    assert counted(server, "batch_rows_sum", signature="translate_nbest") >= 2
    assert "no such one" not in text  # callers do not make new counts


# ---- connections


def connect(server, port="rest_port"):
    return socket.create_connection((server.host, getattr(server, port)), timeout=LONG)


def ended(connection):
    """Reads until the other side ends the connection; gives what came."""
    found = b""
    try:
        while part := connection.recv(4096):
            found += part
    except ConnectionError:
        pass
    return found


ASK = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HT",
        ASK,
        ASK + b"\r\n",  # answered, and no other request comes
        ASK + b"Content-Length: 9\r\n\r\n1",  # answered before its body is there
        ASK + b"\r\n" + ASK,
        b"POST /v1/models/stub:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n{",
    ],
)
@pytest.mark.parametrize("drips", [False, True])
def test_a_connection_without_a_complete_request_is_closed(make_server, sent, drips):
    server = make_server(idle=0.1, deadline=0.2)
    found = until_closed(server, sent, drips)
    if b"\r\n\r\n" not in sent:
        assert found == b""
        return
    while not found:  # a machine so busy that the server did not wait for the request
        found = until_closed(server, sent, drips)
    assert found.startswith(b"HTTP/1.1 504 " if sent.startswith(b"POST") else b"HTTP/1.1 200 ")


def until_closed(server, sent, drips):
    """Sends something and, if it drips, again and again a little more; gives what comes until the server closes."""
    with connect(server) as connection:
        try:
            connection.sendall(sent)
            while drips and not select.select([connection], [], [], 0.01)[0]:
                connection.sendall(b"0")
        except ConnectionError:
            pass
        found = b""
        try:
            while part := connection.recv(4096):
                found += part
                while drips and not select.select([connection], [], [], 0.01)[0]:
                    connection.sendall(b"0")
        except ConnectionError:
            pass
        return found


def test_a_connection_whose_client_does_not_read_is_closed(make_server, monkeypatch):
    server = make_server(idle=0.1, deadline=0.1)
    monkeypatch.setattr(server._service.metrics, "text", lambda: "x" * 50_000_000)  # more than the system keeps
    with connect(server) as connection:
        connection.sendall(b"GET /monitoring/prometheus/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with connect(server) as later:
            assert ended(later) == b""
        wait_until(lambda: not server._uvicorn.server_state.connections)
        assert len(ended(connection)) < 50_000_000


def test_a_request_that_is_answered_slowly_keeps_its_connection(make_server, hold):
    server = make_server(idle=0.1, deadline=LONG)
    gate = hold(server)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:

        def ask_until_heard():
            with contextlib.suppress(ConnectionError):  # a machine so busy that the server did not wait for the request
                return predict(server, inputs=["a b"])[0]

        answer = pool.submit(lambda: next(filter(None, iter(ask_until_heard, ""))))
        assert gate.entered.wait(LONG)
        with connect(server) as later:
            assert ended(later) == b""  # so that time has passed
        gate.open.set()
        assert answer.result(LONG) == 200
    gate.wait_for(requests=1)
    assert not gate.came.acquire(blocking=False)  # it was sent once


def test_silent_connections_make_room_for_others(make_server):
    server = make_server(connections=3, idle=LONG)
    silent = [connect(server) for _ in range(5)]
    assert predict(server, inputs=["a b"])[0] == 200
    for connection in silent[:3]:  # the last two are there, and the request has taken a third place
        assert ended(connection) == b""
    silent[4].sendall(ASK + b"Connection: close\r\n\r\n")
    assert ended(silent[4]).startswith(b"HTTP/1.1 200")
    for connection in silent:
        connection.close()


def test_where_all_connections_work_another_hears_that_the_server_is_busy(make_server, hold):
    server = make_server(connections=2, deadline=LONG, idle=LONG)
    gate = hold(server)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(predict, server, inputs=[text]) for text in ("a b", "c d")]
        gate.wait_for(requests=2)
        with connect(server) as another:
            found = ended(another)
        gate.open.set()
        assert [answer.result(LONG)[0] for answer in answers] == [200, 200]
    head, body = found.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert "too many connections. Try again later" in json.loads(body)["error"]


def test_connections_leave_files_for_other_things(monkeypatch):
    resource = pytest.importorskip("resource")
    used = len(os.listdir("/dev/fd")) - 1  # without the one that lists them
    for files, most in ((1024, (1024 - used - 256 - 32) // 2), (64, 1), (resource.RLIM_INFINITY, 700), (2**20, 700)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert abs(connections.most_connections(700) - most) <= 1


def test_grpc_closes_connections_and_calls_without_a_request(make_server):
    server = make_server(idle=0.5)
    for sent in (b"", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"):
        with connect(server, "grpc_port") as silent:
            silent.sendall(sent)
            ended(silent)
    never = threading.Event()

    def no_requests():
        never.wait(LONG)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        method = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
        calls = [method.future(no_requests()) for _ in range(40)]  # more than there are threads
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = None
        while answer is None:  # on a machine so busy that the server does not wait for a request
            with contextlib.suppress(grpc.RpcError):
                answer = stub.Predict(predict_request(source=["a"]), timeout=LONG)
        assert answer.model_spec.name == "stub"
        assert "CANCELLED" in {call.exception(LONG).code().name for call in calls[:32]}
        never.set()


def test_grpc_says_that_a_call_has_no_request(channel):
    method = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError, match=r"A call needs a request. Received: none"):
        method(iter(()), timeout=LONG)


# ---- names and pages of others


@pytest.mark.parametrize(
    ("bound", "known", "unknown"),
    [
        (
            "127.0.0.1",
            [
                *("localhost", "LOCALHOST:8501", "localhost.", "a.localhost", "127.0.0.1:1", "127.9.9.9", "[::1]:8501"),
                *("[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "mine.example", "Mine.Example.:80", "[fd00::5]"),
            ],
            [
                *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.1.2.3", "[2001:db8::1]"),
                *("0.0.0.0", "127.1", "evillocalhost", "mine.example.evil", socket.gethostname() + ".evil"),
            ],
        ),
        ("0.0.0.0", ["0.0.0.0:8501", "10.1.2.3", "[2001:db8::1]", socket.gethostname(), "localhost"], ["evil.example"]),
        ("::", ["[::]", "10.1.2.3", "mine.example"], ["evil.example", "10.1.2.3.evil.example"]),
        ("here.example", ["here.example:8501", "10.1.2.3"], ["there.example"]),
    ],
)
def test_hosts_that_are_known(bound, known, unknown):
    hosts = Hosts(bound, allowed=["mine.example", "fd00::5"])
    for host in known:
        hosts.check("/", [(b"host", host.encode())])
        hosts.check(f"http://{host}/path", [(b"host", host.encode())])
    for host in unknown:
        for target, header in (("/", host), (f"http://{host}/path", "localhost"), ("http://localhost/", host)):
            with pytest.raises(Exception, match=f"--allowed-host .* if it is to. Received: Host='{re.escape(host)}'"):
                hosts.check(target, [(b"host", header.encode())])


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "a b",
        "localhost:x",
        "localhost:1:2",
        "user@localhost",
        "[::1",
        "::1",
        "[localhost]",
        "[::1]a",
        "a/b",
        "é",
    ],
)
def test_hosts_that_are_none(host):
    with pytest.raises(Exception, match=r"Host must be NAME or NAME:PORT. Received: Host="):
        Hosts("127.0.0.1").check("/", [(b"host", host.encode())])


@pytest.mark.parametrize(
    "target", ["http://[::1/healthz", "http://user[@localhost/healthz", "http:///healthz", "healthz"]
)
def test_targets_without_a_host_are_refused(server, target):
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=LONG) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert b"Host must be NAME or NAME:PORT. Received: Host=''" in connection.makefile("rb").read()


def test_the_path_of_a_whole_url_is_asked(server):
    for target in ("http://user%5B@localhost/healthz", "http://localhost/%68ealthz", "HTTP://LOCALHOST/healthz?a=b#c"):
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=LONG) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert connection.makefile("rb").read().endswith(b"\r\n\r\nok\n"), target


@pytest.mark.parametrize("headers", [[], [(b"host", b"localhost")] * 2])
def test_a_request_names_one_host(headers):
    with pytest.raises(Exception, match=r"A request has one Host header. Received: "):
        Hosts("127.0.0.1").check("/", headers)


@pytest.mark.parametrize("name", ["", "http://a.example", "a.example:80", "a b", "*"])
def test_allowed_hosts_are_names(folder, name):
    with pytest.raises(ValueError, match=f"allowed_hosts must be names or addresses.*Received: .*{re.escape(name)}"):
        Server(folder, **FREE, allowed_hosts=[name])


def test_only_known_names_and_own_pages_are_answered(make_server):
    server = make_server(allowed_hosts=["Mine.example"])
    here = f"localhost:{server.rest_port}"
    path, document = "/v1/models/stub:predict", {"inputs": ["a b"]}
    good = [
        {"Host": here},
        {"Host": "mine.example"},
        {"Host": here, "Origin": f"http://{here}"},
        {"Host": "localhost", "Origin": "http://LOCALHOST:80"},
        {"Host": "mine.example", "Origin": "https://mine.example"},  # behind a server that encrypts
        {"Host": here, "Origin": "https://mine.example"},
    ]
    bad = [
        {"Host": "evil.example"},
        {"Host": f"evil.example:{server.rest_port}", "Origin": f"http://evil.example:{server.rest_port}"},
        {"Host": here, "Origin": "http://evil.example"},
        {"Host": here, "Origin": "http://localhost:1"},  # another program of this machine
        {"Host": here, "Origin": "null"},
        {"Host": here, "Origin": f"ftp://{here}"},
        {"Host": here, "Origin": "http://[::1"},
    ]
    for headers in good:
        assert ask(server, path, document, headers=headers)[0] == 200, headers
    for headers in bad:
        status, found = ask(server, path, document, headers=headers)
        assert (status, found.keys()) == (403, {"error"}), headers
    for wrong in ("/v1/models/stub", "/", "/healthz", "/monitoring/prometheus/metrics"):
        assert ask(server, wrong, headers={"Host": "evil.example"})[0] == 403
    assert ask(server, "http://localhost/healthz") == (200, "ok\n")  # as a proxy asks
    assert ask(server, "http://evil.example/healthz", headers={"Host": here})[0] == 403
    for lines in (
        "GET /healthz HTTP/1.0",
        "GET /healthz HTTP/1.1",
        f"GET /healthz HTTP/1.1\r\nHost: {here}\r\nHost: a",
    ):
        with connect(server) as connection:
            connection.sendall(f"{lines}\r\n\r\n".encode())
            connection.shutdown(socket.SHUT_WR)
            assert ended(connection).startswith(b"HTTP/1.1 400")


def test_answers_are_not_for_other_pages(folder):
    with Server(folder, **FREE, page=True) as server:
        for path, status in (("/", 200), ("/v1/models/stub", 200), ("/nowhere", 404), ("/v1/models/other", 404)):
            connection = http.client.HTTPConnection(server.host, server.rest_port, timeout=LONG)
            connection.request("GET", path, headers={"Origin": server.url})
            response = connection.getresponse()
            response.read()
            connection.close()
            assert response.status == status
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            (policy,) = response.headers.get_all("Content-Security-Policy")
            assert policy.startswith("default-src 'none'; ")
            assert "frame-ancestors 'none'" in policy
            assert not [name for name in response.headers if name.lower().startswith("access-control")]


# ---- requests that are large


def test_long_answers_take_little_memory():
    tracemalloc = pytest.importorskip("tracemalloc")
    numbers = np.random.default_rng(3).random((31, 53, 59), np.float32)
    expected = json.dumps({"outputs": [[[float(str(x)) for x in row] for row in rows] for rows in numbers]}).encode()
    tracemalloc.start()
    written = json_tensors.write_response({"alignment": numbers}, by_row=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written == expected
    assert peak < 3 * len(written)


def test_long_plain_lists_are_read_at_once(server, monkeypatch):
    monkeypatch.setattr(json_tensors, "_element", lambda value, dtype: pytest.fail(f"read one by one: {value}"))
    status, found = predict(server, inputs=[list(range(300_000))], signature_name="echo_ids")
    assert status == 200
    assert found["outputs"]["text"][0].endswith(" 299999")


def test_errors_about_large_requests_are_short(server):
    status, found = predict(server, inputs={f"name {number}": [] for number in range(10_000)})
    assert (status, len(found["error"]) < 400) == (400, True)
    for document in ({"instances": ["a"] * 257}, {"inputs": ["a"] * 257}, {"inputs": {"source": [[]] * 257}}):
        status, found = predict(server, **document)
        assert (status, found["error"]) == (400, "A request may have 256 rows; send several. Received: 257 rows")


@pytest.mark.parametrize(
    ("signature", "inputs", "cells"),
    [
        ("serving_default", {"source": ["abcd", "abc"]}, 2 * 5 * 53),
        ("align", {"source": ["a" * 1000]}, 7 * 53),
        ("translate_nbest", {"source": [""]}, 1 * 50),
        ("score", {"source": ["ab"] * 3, "target": ["", "ab", "abcd"]}, 3 * 3 * 5),
        ("score", {"source": [], "target": []}, 0),
        ("refuse", {"source": ["abcd"]}, 0),  # gives no score: the model is not run
    ],
)
def test_what_attention_computes_is_limited(tmp_path, signature, inputs, cells):
    write_stub(tmp_path / "stub")
    extra = tmp_path / "stub" / "1" / "assets.extra"
    extra.mkdir()
    decoding = {"max_source_length": 7, "max_target_length": 53, "max_length": None}
    (extra / "model_card.json").write_text(json.dumps({"decoding": decoding}))
    with Server(tmp_path / "stub", **FREE, limits=Limits(request_cells=max(1, cells))) as server:
        assert predict(server, inputs=inputs, signature_name=signature)[0] == 200
        if cells:
            server._service.limits = Limits(request_cells=cells - 1)
            status, found = predict(server, inputs=inputs, signature_name=signature)
            assert status == 400
            assert re.search(f"may have {cells - 1} cells.*Received: up to {cells} cells", found["error"])
            with grpc.insecure_channel(server.address) as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                with pytest.raises(grpc.RpcError, match=f"Received: up to {cells} cells"):
                    stub.Predict(predict_request(signature, name="stub", **inputs), timeout=LONG)


@pytest.mark.parametrize("card", ["", "{", "[]", '{"decoding": null}', '{"decoding": {"max_source_length": "x"}}'])
def test_a_card_that_somebody_changed_is_passed_over(tmp_path, card):
    write_stub(tmp_path / "stub")
    (tmp_path / "stub" / "1" / "assets.extra").mkdir()
    (tmp_path / "stub" / "1" / "assets.extra" / "model_card.json").write_text(card)
    with Server(tmp_path / "stub", **FREE, limits=Limits(request_cells=1)) as server:
        assert predict(server, inputs=["a b"])[0] == 200


# ---- starting and ending


def test_the_newest_version_is_served_after_its_warm_up(tmp_path):
    for version in (9, 10):
        write_stub(tmp_path / "stub", version)
    (tmp_path / "stub" / "11").mkdir()  # a version that is not there yet
    extra = tmp_path / "stub" / "10" / "assets.extra"
    extra.mkdir()
    with Server(tmp_path / "stub", **FREE) as server:
        assert server.version == 10
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(predict_request("refuse", source=["bad"]))
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())
    with pytest.raises(ValueError, match=r"must answer its own warm-up requests.*assertion failed"):  # so it was run
        Server(tmp_path / "stub", **FREE)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("nowhere", FileNotFoundError, "folder must exist"),
        ("", FileNotFoundError, r"folder must be a model's, such as .*stub\. Received: .* without any version"),
        ("empty", FileNotFoundError, r"folder must hold versions such as .*empty.1\. Received: .* without any version"),
        ("stub/7", ValueError, "folder must be a model's, not that of one version"),
        ("a:b", ValueError, "folder must have a name without :"),
    ],
)
def test_folders_without_a_model(folder, path, error, message, no_model):
    for name in ("empty", "a:b"):
        (folder.parent / name).mkdir(exist_ok=True)
    with pytest.raises(error, match=message):
        Server(folder.parent / path, **FREE)


@pytest.mark.parametrize("content", [b"", b"\xff\xffnothing"])
def test_a_version_that_is_not_complete(tmp_path, content):
    (tmp_path / "stub" / "3").mkdir(parents=True)
    (tmp_path / "stub" / "3" / "saved_model.pb").write_bytes(content)
    with pytest.raises(ValueError, match=r"must be a complete SavedModel for serving; .*Received: .*stub.3$"):
        Server(tmp_path / "stub", **FREE)


@pytest.fixture
def no_model(monkeypatch):
    """A server that fails where it would load the model."""
    monkeypatch.setattr(lifecycle, "Service", lambda *_: pytest.fail("the model was loaded"))


@pytest.mark.parametrize("name", ["rest_port", "grpc_port"])
def test_a_port_that_is_taken(server, folder, name, no_model):
    port = getattr(server, name)
    with pytest.raises(OSError, match=f"{name} must be free; .*Received: {name}={port}, host='127.0.0.1'"):
        Server(folder, **{**FREE, name: port})


@pytest.mark.parametrize("name", ["rest_port", "grpc_port"])
@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none(folder, name, port, no_model):
    with pytest.raises(ValueError, match=f"{name} must be from 0.* to 65535. Received: {name}={port}"):
        Server(folder, **{**FREE, name: port})
    found = CliRunner().invoke(main, ["serve", str(folder), f"--{name.replace('_', '-')}={port}"])
    assert (found.exit_code, found.stderr.count("\n")) == (1, 1)


def test_one_port_for_both(folder, no_model):
    with pytest.raises(ValueError, match=r"must differ. Received: rest_port=8501, grpc_port=8501"):
        Server(folder, rest_port=8501, grpc_port=8501)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", "host must be a name or an address of this machine, .*Received: rest_port=0, host='192.0.2.1'"),
        ("no-such-host.invalid", "host must be a name or an address of this machine, .*host='no-such-host.invalid'"),
    ],
)
def test_a_host_that_is_not_this_machine(folder, host, message, no_model):
    with pytest.raises(ValueError, match=r"host must be .*, or 0\.0\.0\.0 to let other machines in. Received: host=''"):
        Server(folder, **FREE, host="")
    with pytest.raises(OSError, match=message):
        Server(folder, **FREE, host=host)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "rest_port must be one that this user may open; give one above 1023"),
        (errno.EAFNOSUPPORT, "host must be"),
        (5, "rest_port must be one to listen on"),
    ],
)
def test_a_port_that_the_system_refuses(folder, monkeypatch, code, message, no_model):
    class Refused(socket.socket):
        def bind(self, address):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket, "socket", Refused)
    with pytest.raises(OSError, match=f"{message}.*. Received: rest_port=80, host='127.0.0.1'"):
        Server(folder, rest_port=80, grpc_port=0)


def test_a_port_that_is_taken_while_the_model_is_loaded():
    reserved = ports.reserve("127.0.0.1", rest_port=0, grpc_port=0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(reserved[0].getsockname())
    port = reserved[0].getsockname()[1]
    other = ports.reserve("127.0.0.1", rest_port=port, grpc_port=0)
    ports.listen(other[0], "127.0.0.1", "rest_port", 5)
    with pytest.raises(OSError, match=f"rest_port must be free; .*Received: rest_port={port}"):
        ports.listen(reserved[0], "127.0.0.1", "rest_port", 5)
    for each in (*reserved, *other):
        each.close()


def test_requests_that_wait_hear_that_the_server_ends(folder, hold):
    server = Server(folder, **FREE, limits=Limits(deadline=LONG))
    gate = hold(server)
    with concurrent.futures.ThreadPoolExecutor(3) as pool, grpc.insecure_channel(server.address) as channel:
        runs = pool.submit(predict, server, inputs=["a b"])
        assert gate.entered.wait(LONG)
        waits = pool.submit(predict, server, inputs=["c d"])
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        also_waits = stub.Predict.future(predict_request(source=["e"]))
        gate.wait_for(requests=3)
        closing = pool.submit(server.close)
        assert waits.result(LONG) == (503, {"error": "The server is shutting down"})
        assert also_waits.exception(LONG).code().name == "UNAVAILABLE"
        gate.open.set()
        assert runs.result(LONG)[1]["outputs"]["text"] == ["B A"]
        closing.result(LONG)


def test_a_run_without_end_does_not_keep_the_server(folder, monkeypatch):
    monkeypatch.setattr(lifecycle, "GRACE", 1)
    server = Server(folder, **FREE, limits=Limits(deadline=LONG))
    begun = threading.Event()
    run = server._service.model.run
    monkeypatch.setattr(server._service.model, "run", lambda *args: (begun.set(), run(*args))[1])
    with concurrent.futures.ThreadPoolExecutor(1) as pool, connect(server) as half:
        half.sendall(b"POST /v1/models/stub:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        answer = pool.submit(predict, server, inputs=SLOW, signature_name="slow")
        assert begun.wait(LONG)
        server.close()
        assert answer.result(LONG) == (503, {"error": "The server is shutting down"})
        found = ended(half)
    assert found.startswith(b"HTTP/1.1 503 ")
    assert found.endswith(b'"The server is shutting down"\n}')


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(folder, number):
    seen, before = [], signal.getsignal(number)

    def ready(server):
        seen.append((server.host, server.rest_port))
        assert predict(server, inputs=["a b"])[0] == 200
        signal.raise_signal(number)

    serve(folder, ready=ready, **FREE)
    assert signal.getsignal(number) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(seen[0])


def serve_command(folder, *options):
    """`keras-attention serve` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "keras_attention",
        "serve",
        str(folder),
        "--rest-port=0",
        "--grpc-port=0",
        *options,
    ]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
def test_floods_leave_no_memory_behind():
    """200 requests of 50,000 characters at once, again and again: what threads and allocator keep has a limit."""
    flood, size, settled, floods = 200, 50_000, 16, 24

    with serve_command(tiny_export().parent) as process:
        try:
            url = [process.stdout.readline() for _ in range(3)][1].split()[1]
            host, path = url.removeprefix("http://").split("/", 1)

            def status_of(number):
                body = json.dumps({"inputs": [f"one two {number} " + "x" * size]})
                connection = http.client.HTTPConnection(host, timeout=LONG)
                connection.request("POST", f"/{path}:predict", body)
                response = connection.getresponse()
                response.read()
                connection.close()
                return response.status

            taken = []  # MiB after each flood
            with concurrent.futures.ThreadPoolExecutor(flood) as pool:
                for _ in range(floods):
                    assert set(pool.map(status_of, range(flood))) == {200}
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    taken.append(int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=LONG)
    sent = (floods - settled) * flood * size / 2**20
    assert taken[-1] - taken[settled - 1] < sent / 4, taken


def test_the_commands(folder):
    """`serve` in a process of its own, `ask` in this one."""
    with serve_command(folder, "--page") as process:
        lines = [process.stdout.readline() for _ in range(4)]
        try:
            assert lines[0].startswith("stub, version 7. For development; TF Serving is for production")
            rest, grpc_url = (line.split()[1] for line in lines[1:3])
            for url in (rest, grpc_url):
                found = CliRunner().invoke(main, ["ask", url, "one two", "three"])
                assert (found.exit_code, found.stdout) == (0, "TWO ONE\nTHREE\n")
            found = CliRunner().invoke(main, ["ask", rest, "-"], input=b"one two\n")
            assert found.output == "TWO ONE\n"
            found = CliRunner().invoke(main, ["ask", rest], input=b"one two\r\n\n" + b"w " * (MOST_WORDS + 1) + b"\n")
            assert (found.exit_code, found.stdout) == (0, f"TWO ONE\n\n{' '.join('W' * MOST_WORDS)}\n")
            assert "Note: Texts [2] are longer than the model reads" in found.stderr
            found = CliRunner().invoke(main, ["ask", rest.replace("stub", "other"), "one"])
            assert found.exit_code == 1
            assert "answered 404: Servable not found" in found.stderr
            page = http.client.HTTPConnection(rest.split("/")[2])
            page.request("GET", "/")
            assert page.getresponse().headers["content-type"].startswith("text/html")
            page.close()
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 0
    assert "Traceback" not in errors
    found = CliRunner().invoke(main, ["serve", "nowhere"])
    assert found.exit_code == 1
    assert "Error: folder must exist; keras-attention export writes one. Received: nowhere" in found.stderr


def test_the_library_loads_nothing_of_this_before_it_is_asked():
    names = ["grpc", "starlette", "uvicorn", "prometheus_client", "tensorflow_serving"]
    code = "import sys, keras_attention.serving, keras_attention.client as client; "
    code += f"client.RestClient('http://localhost:1'); print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_former_module_publishes_the_same_objects(name):
    former, module = (importlib.import_module(f"keras_attention.{room}") for room in (f"serving.{name}", name))
    assert former.__all__ == module.__all__
    assert all(getattr(former, public) is getattr(module, public) for public in module.__all__)
