"""Parts of the development server by themselves: JSON, limits, metrics, error codes."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("starlette", reason="needs the extra serving")

from keras_attention.server.errors import HTTP_STATUS, RequestError
from keras_attention.server.json_tensors import read_request, write_response
from keras_attention.server.limits import Limits
from keras_attention.server.metrics import ROWS, SECONDS, Metrics
from keras_attention.server.signature import Signature, elements

pytestmark = pytest.mark.tensorflow


def taking(dtype, shape=None):
    """A signature of one input of a dtype."""
    return Signature("one", {"x": tf.TensorSpec(shape, dtype)}, {"y": tf.TensorSpec(shape, dtype)})


def read(document, signature):
    return read_request(json.dumps(document).encode(), lambda name: signature)


# ---- JSON to arrays


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ([[1, 2, 3], [4, 5, 6]], tf.int32, np.array([[1, 2, 3], [4, 5, 6]], np.int32)),
        ([1, 2.5], tf.float32, np.array([1, 2.5], np.float32)),
        ([1, 2.5], tf.float64, np.array([1, 2.5])),
        ([True, False], tf.bool, np.array([True, False])),
        ([-(2**63), 2**63 - 1], tf.int64, np.array([-(2**63), 2**63 - 1])),
        ([[], []], tf.int32, np.zeros((2, 0), np.int32)),
        ([], tf.string, np.zeros(0, object)),
        (7, tf.int32, np.array(7, np.int32)),
    ],
    ids=str,
)
def test_lists_become_arrays_of_the_inputs_dtype(value, dtype, expected):
    request = read({"inputs": value}, taking(dtype))
    array = request.inputs["x"]
    assert (array.dtype, array.shape, request.by_row) == (expected.dtype, expected.shape, False)
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ([1], tf.bool, "JSON Value: 1 Type: int is not of expected type: bool"),
        ([True], tf.float32, "JSON Value: true Type: bool is not of expected type: float32"),
        (["1"], tf.float32, "Type: str is not of expected type: float32"),
        ([{"b64": "YQ=="}], tf.int32, "Type: dict is not of expected type: int32"),
        ([{"b64": "YQ==", "more": 1}], tf.string, "Type: dict is not of expected type: string"),
        ([{"b64": "YQ=!"}], tf.string, "Unable to base64 decode"),
        ([1e39], tf.float32, "overflow"),
        ([[1], 2], tf.int32, "JSON Value: 2 found at incorrect level: 2$"),
        ([[1], [[2]]], tf.int32, "list at unexpected level: 2 expected < 2$"),
        ([[1, 2], [3, 4, 5]], tf.int32, "unexpected size: 3 expected size: 2$"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_named(value, dtype, message):
    with pytest.raises(RequestError, match=message) as refused:
        read({"inputs": {"x": value}}, taking(dtype))
    assert refused.value.message.startswith("Signature 'one', input 'x': ")
    assert refused.value.http_status == 400


def test_a_list_may_have_32_levels():
    value = 5
    for _ in range(32):
        value = [value]
    assert read({"inputs": value}, taking(tf.int32)).inputs["x"].shape == (1,) * 32
    with pytest.raises(RequestError, match="more than 32 levels of lists"):
        read({"inputs": [value]}, taking(tf.int32))


def test_rows_and_columns_give_the_same_inputs():
    spec = tf.TensorSpec([None], tf.int32)
    both = Signature("both", {"x": spec, "z": spec}, {"y": spec})
    by_row = read({"instances": [{"x": 1, "z": 2}, {"z": 4, "x": 3}]}, both)
    by_column = read({"inputs": {"x": [1, 3], "z": [2, 4]}}, both)
    assert (by_row.by_row, by_column.by_row) == (True, False)
    for request in (by_row, by_column):
        assert {name: array.tolist() for name, array in request.inputs.items()} == {"x": [1, 3], "z": [2, 4]}
    assert read({"instances": [3, 4]}, taking(tf.int32)).inputs["x"].tolist() == [3, 4]
    # One text as base64 is a value, not a row of named inputs.
    assert read({"inputs": {"b64": "YQ=="}}, taking(tf.string, [])).inputs["x"].item() == b"a"


def test_the_name_of_the_signature_is_asked_for():
    asked = []

    def find(name):
        asked.append(name)
        return taking(tf.int32)

    read_request(b'{"inputs": [1], "signature_name": "score"}', find)
    read_request(b'{"inputs": [1]}', find)
    assert asked == ["score", ""]


def test_a_long_value_is_cut_in_the_message():
    for length, written in ((98, '"' + "a" * 98 + '" Type'), (99, '"' + "a" * 99 + "… Type")):
        with pytest.raises(RequestError) as refused:
            read({"inputs": ["a" * length]}, taking(tf.int32))
        assert f"JSON Value: {written}" in refused.value.message


# ---- arrays to JSON


def test_one_output_stands_alone_and_several_are_named():
    numbers, texts = np.array([[1, 2], [3, 4]], np.int32), np.array([b"a", "ä".encode()], object)
    one, two = {"y": numbers}, {"y": numbers, "text": texts}
    assert json.loads(write_response(one, by_row=False)) == {"outputs": [[1, 2], [3, 4]]}
    assert json.loads(write_response(one, by_row=True)) == {"predictions": [[1, 2], [3, 4]]}
    assert json.loads(write_response(two, by_row=False)) == {"outputs": {"y": [[1, 2], [3, 4]], "text": ["a", "ä"]}}
    assert json.loads(write_response(two, by_row=True)) == {
        "predictions": [{"y": [1, 2], "text": "a"}, {"y": [3, 4], "text": "ä"}]
    }


@pytest.mark.parametrize(
    ("array", "written"),
    [
        (np.float32([0.2, 1e-7]), [0.2, 1e-7]),
        (np.float16([0.2]), [np.float64(np.float32(np.float16(0.2)).astype(str))]),
        (np.array([1 / 3]), [1 / 3]),
        (np.array([True, False]), [True, False]),
        (np.array([2**64 - 1], np.uint64), [2**64 - 1]),
        (np.array([b"\xff"], object), ["�"]),
        (np.zeros((0, 3), np.int32), []),
    ],
    ids=str,
)
def test_numbers_come_back_as_they_are(array, written):
    assert json.loads(write_response({"y": array}, by_row=False)) == {"outputs": written}


def test_outputs_without_rows_or_without_a_form_are_refused():
    for outputs in ({"a": np.zeros(2), "b": np.zeros(3)}, {"a": np.array(1.0)}):
        assert write_response(outputs, by_row=False)
        with pytest.raises(RequestError, match="no common rows; send 'inputs', not 'instances'"):
            write_response(outputs, by_row=True)
    with pytest.raises(RequestError, match="Output 'y' of dtype complex64 has no form in JSON") as refused:
        write_response({"y": np.zeros(2, np.complex64)}, by_row=False)
    assert (refused.value.code, refused.value.http_status) == ("UNIMPLEMENTED", 501)


# ---- signatures


@pytest.mark.parametrize(
    ("shapes", "batchable"),
    [([[None], [None, 3]], True), ([[None], []], False), ([[2], [None]], False), ([None, [None]], False)],
    ids=str,
)
def test_what_can_be_joined_has_a_first_axis_of_any_size(shapes, batchable):
    first, second = (tf.TensorSpec(shape, tf.int32) for shape in shapes)
    assert Signature("s", {"x": first}, {"y": second}).batchable == batchable
    assert Signature("s", {"x": second}, {"y": first}).batchable == batchable


def test_rows_are_those_of_the_longest_input():
    assert taking(tf.int32).rows({"x": np.zeros((3, 5))}) == 3
    assert taking(tf.int32).rows({"x": np.array(5)}) == 1
    assert taking(tf.int32).rows({"x": np.zeros(2), "z": np.zeros(4)}) == 4
    assert taking(tf.int32).rows({}) == 1


def test_outputs_are_asked_for_once_each():
    spec = tf.TensorSpec([None], tf.int32)
    signature = Signature("s", {"x": spec}, {"b": spec, "a": spec})
    assert signature.select([]) == ["a", "b"]
    assert signature.select(["b"]) == ["b"]
    for names in (["c"], ["a", "a"]):
        with pytest.raises(RequestError, match=r"the outputs are \['a', 'b'\], each once"):
            signature.select(names)


def test_elements_of_a_shape():
    assert (elements([]), elements([3, 5]), elements([3, 0])) == (1, 15, 0)
    with pytest.raises(RequestError, match=r"no negative dimensions\. Received: \[3, -1\]"):
        elements([3, -1])


# ---- limits, counts, codes


def test_the_limits_that_the_documentation_states():
    limits = Limits()
    assert (limits.request_bytes, limits.request_rows, limits.queue) == (4 * 2**20, 256, 512)
    assert (limits.deadline, limits.batch_rows, limits.batch_wait) == (60, 64, 0.004)


@pytest.mark.parametrize("value", [0, float("nan")])
def test_a_limit_of_nothing_is_refused(value):
    with pytest.raises(ValueError, match=f"deadline must be above 0. Received: deadline={value}"):
        Limits(deadline=value)
    assert Limits(deadline=1e-9, queue=1).queue == 1


def number(metrics, name, **labels):
    written = ",".join(f'{key}="{value}"' for key, value in labels.items())
    match = re.search(rf"^keras_attention_{name}(?:{{{written}}})? (\S+)$", metrics.text(), re.MULTILINE)
    return float(match[1]) if match else None


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, "OK"), (RequestError("NOT_FOUND", "no"), "NOT_FOUND"), (ZeroDivisionError(), "INTERNAL")],
    ids=str,
)
def test_a_request_is_counted_by_its_end(error, code):
    metrics = Metrics(lambda: 5)

    def ask():
        with metrics.request("grpc"):
            if error is not None:
                raise error

    for _ in range(2):
        if error is None:
            ask()
        else:
            with pytest.raises(type(error)):
                ask()
    assert number(metrics, "requests_total", api="grpc", code=code) == 2
    assert len(re.findall(r"^keras_attention_requests_total", metrics.text(), re.MULTILINE)) == 1
    assert number(metrics, "request_seconds_count", api="grpc") == 2
    assert 0 <= number(metrics, "request_seconds_sum", api="grpc") < 60
    assert number(metrics, "queue_requests") == 5


def test_rows_and_seconds_fall_into_buckets():
    metrics = Metrics(lambda: 0)
    for rows in (1, 2, 3, 300):
        metrics.batch(taking(tf.int32), rows)
    counts = [number(metrics, "batch_rows_bucket", le=f"{float(most)}", signature="one") for most in ROWS]
    assert counts == [1, 2, 3, 3, 3, 3, 3, 3, 3]
    assert number(metrics, "batch_rows_sum", signature="one") == 306
    assert ROWS == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert tuple(sorted(SECONDS)) == SECONDS
    assert SECONDS[-1] == Limits().deadline


def test_a_code_has_the_status_that_tf_serving_gives_it():
    # https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
    usual = {"NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504, "INTERNAL": 500}
    usual |= {"RESOURCE_EXHAUSTED": 429, "UNIMPLEMENTED": 501, "CANCELLED": 499, "PERMISSION_DENIED": 403}
    usual |= {"UNAUTHENTICATED": 401, "ALREADY_EXISTS": 409, "ABORTED": 409, "UNKNOWN": 500, "DATA_LOSS": 500}
    usual |= {"FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400}
    assert usual == HTTP_STATUS
    for code, status in usual.items():
        assert RequestError(code, "why").http_status == status
    error = RequestError("RESOURCE_EXHAUSTED", "why", 413)
    assert (error.code, error.message, str(error), error.http_status) == ("RESOURCE_EXHAUSTED", "why", "why", 413)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (
            b'{"inputs": 1, "instances": 1}',
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist",
        ),
        (b"\xff", 'JSON Parse error: not UTF-8 (invalid start byte); send bytes as {"b64": ...}'),
        (b'{"inputs": ' + b"[" * 100_000, "JSON Parse error: too many levels"),
        (b"[3]", "JSON Value: [3] Is not object"),
        (b'{"inputs": [{"b64": "YQ=!"}]}', 'input \'x\': Unable to base64 decode {"b64": "YQ=!"}'),
    ],
    ids=range(6),
)
def test_messages_word_by_word(body, message):
    with pytest.raises(RequestError) as refused:
        read_request(body, lambda name: taking(tf.string))
    assert refused.value.message.endswith(message)
