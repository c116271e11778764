"""TF Serving's REST API of the development server: good requests and bad ones."""

import base64
import json
import math
import re

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("grpc", reason="needs the extra serving")
pytest.importorskip("starlette", reason="needs the extra serving")

from google.protobuf import json_format
from served_stub import ask, predict
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from keras_attention.server import json_tensors

pytestmark = pytest.mark.tensorflow


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
        # A single output has no name; float32 comes back as the shortest decimals.
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
    status, response = predict(server, **request_)
    assert status == 200
    assert response == answer


def test_numbers_that_json_does_not_have_are_written_as_tf_serving_writes_them(server):
    status, response = predict(server, inputs=["a"], signature_name="not_a_number")
    assert status == 200
    assert math.isnan(response["outputs"]["score"][0])
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
    status, response = ask(server, "/v1/models/stub:predict", request_)
    if message is None:
        assert (status, response) == (200, {"predictions": [["a", "b"]] * 3})  # three rows, as the model has it
        return
    assert status == 400
    assert list(response) == ["error"]
    assert re.search(message, response["error"])
    assert len(response["error"]) < 1000
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
    response = ask(server, path, b"{}" if method == "POST" else None)
    assert response[0] == status
    assert re.search(message, response[1]["error"])


def test_odd_texts_each_get_one_answer(server):
    texts = ["", "\0", "a\0b", "😀", "x" * 100_000, "a " * 50_000, " \t\n"]
    status, response = predict(server, inputs={"source": texts})
    assert status == 200
    assert response["outputs"]["text"][:5] == ["", "\0", "A\0B", "😀", "X" * 100_000]
    assert response["outputs"]["truncated"] == [False, False, False, False, False, True, False]
    odd = [{"b64": base64.b64encode(text).decode()} for text in (b"\xff\xfe", b"\xc3")]
    status, response = predict(server, inputs={"source": odd})
    assert (status, len(response["outputs"]["text"])) == (200, 2)


def test_status_health_and_versions(server):
    status, response = ask(server, "/v1/models/stub")
    assert status == 200
    parsed = json_format.ParseDict(response, get_model_status_pb2.GetModelStatusResponse())
    (version,) = parsed.model_version_status
    assert (version.version, version.state) == (7, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    assert response["model_version_status"][0]["status"] == {"error_code": "OK", "error_message": ""}
    assert ask(server, "/v1/models/stub/versions/7") == (200, response)
    assert ask(server, "/healthz") == (200, "ok\n")
    assert ask(server, "/v1/models/stub/versions/7:predict", {"inputs": ["a"]})[0] == 200


def test_metadata_describes_the_signatures(server):
    status, response = ask(server, "/v1/models/stub/metadata")
    assert status == 200
    assert response["model_spec"] == {"name": "stub", "signature_name": "", "version": "7"}
    described = json_format.ParseDict(response["metadata"]["signature_def"], get_model_metadata_pb2.SignatureDefMap())
    nbest = described.signature_def["translate_nbest"].outputs["scores"]
    assert nbest.dtype == tf.float32.as_datatype_enum
    assert [dim.size for dim in nbest.tensor_shape.dim] == [-1, 3]


# ---- large requests and responses


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
    status, response = predict(server, inputs=[list(range(300_000))], signature_name="echo_ids")
    assert status == 200
    assert response["outputs"]["text"][0].endswith(" 299999")


def test_errors_about_large_requests_are_short(server):
    status, response = predict(server, inputs={f"name {number}": [] for number in range(10_000)})
    assert (status, len(response["error"]) < 400) == (400, True)
    for document in ({"instances": ["a"] * 257}, {"inputs": ["a"] * 257}, {"inputs": {"source": [[]] * 257}}):
        status, response = predict(server, **document)
        assert (status, response["error"]) == (400, "A request may have 256 rows; send several. Received: 257 rows")
