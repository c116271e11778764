"""The development server: TF Serving's REST paths and gRPC services over loopback, good requests and bad ones."""

import base64
import concurrent.futures
import http.client
import json
import math
import os
import re
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
from keras_attention.serving.server import Limits, Server, serve

pytestmark = pytest.mark.tensorflow

LONG = 60  # seconds after which a test gives up
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

    def make(**limits):
        made.append(Server(folder, **FREE, limits=Limits(**limits)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ask(server, path, document=None, method=None):
    """Sends one request; gives the status and the answer, read as JSON."""
    body = json.dumps(document).encode() if isinstance(document, dict) else document
    connection = http.client.HTTPConnection(server.host, server.rest_port, timeout=LONG)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body)
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


def test_two_hundred_at_once_each_get_their_own_answer(server, channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    begun = counted(server, "batch_rows_count", signature="serving_default")

    def one(number):
        text = f"word{number} and"
        if number % 2:
            response = stub.Predict(predict_request(source=[text]), timeout=LONG)
            return tf.make_ndarray(response.outputs["text"])[0].decode()
        return predict(server, inputs=[text])[1]["outputs"]["text"][0]

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        found = list(pool.map(one, range(200)))
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
    assert predict(server, inputs={"source": ["a b"], "rounds": [1]}, signature_name="slow")[0] == 200


def test_a_client_that_goes_away_leaves_no_work_behind(make_server):
    server = make_server(deadline=2)  # the run that nobody waits for ends then
    body = json.dumps({"inputs": SLOW, "signature_name": "slow"})
    with socket.create_connection((server.host, server.rest_port)) as gone:
        head = f"POST /v1/models/stub:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        gone.sendall((head + body).encode())
        gone.shutdown(socket.SHUT_WR)
        assert gone.recv(1) == b""  # the server has noticed
    until = time.monotonic() + LONG
    while not counted(server, "requests_total", api="rest", code="CANCELLED"):
        assert time.monotonic() < until
    with socket.create_connection((server.host, server.rest_port)) as half:
        half.sendall(b"POST /v1/models/stub:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
    with socket.create_connection((server.host, server.rest_port)) as nonsense:
        nonsense.sendall(b"\x16\x03\x01\xff\0nonsense\r\n\r\n")
        assert nonsense.recv(1000).startswith(b"HTTP/1.1 400")
    with grpc.insecure_channel(server.address) as channel:
        predict_ = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        call = predict_.future(predict_request("slow", source=["a"], rounds=np.int32(SLOW["rounds"])))
        call.cancel()
    status, found = predict(server, inputs=["a b"])
    # The run that nobody waits for may take as long as a request may: then this one is told to come again.
    assert status in (200, 504), found
    assert predict(server, inputs=["a b"])[1]["outputs"]["text"] == ["B A"]


def test_a_full_queue_is_said_over_both(make_server):
    server = make_server(queue=1, deadline=3)
    slow = threading.Thread(target=predict, args=(server,), kwargs={"inputs": SLOW, "signature_name": "slow"})
    slow.start()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: predict(server, inputs={**SLOW}, signature_name="slow")[0], range(8)))
    slow.join()
    assert set(found) <= {503, 504}
    assert 503 in found


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
        ("", FileNotFoundError, "folder must hold versions"),
        ("stub/7", ValueError, "folder must be a model's, not that of one version"),
    ],
)
def test_folders_without_a_model(folder, path, error, message):
    with pytest.raises(error, match=message):
        Server(folder.parent / path, **FREE)


@pytest.mark.parametrize("name", ["rest_port", "grpc_port"])
def test_a_port_that_is_taken(server, folder, name):
    with pytest.raises(OSError, match=f"{name} must be free. Received: {name}={getattr(server, name)}"):
        Server(folder, **{**FREE, name: getattr(server, name)})


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
    code = "import sys, keras_attention.serving, keras_attention.serving.client as client; "
    code += f"client.RestClient('http://localhost:1'); print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
