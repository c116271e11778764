"""TF Serving's gRPC services of the development server: good requests and bad ones."""

import re

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("grpc", reason="needs the extra serving")
pytest.importorskip("starlette", reason="needs the extra serving")

import grpc
from google.protobuf import json_format
from served_stub import LONG, ask, predict_request
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

pytestmark = pytest.mark.tensorflow


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
    over_grpc = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(request, timeout=LONG).metadata["signature_def"].Unpack(over_grpc)
    over_rest = ask(server, "/v1/models/stub/metadata")[1]["metadata"]["signature_def"]
    assert json_format.ParseDict(over_rest, get_model_metadata_pb2.SignatureDefMap()) == over_grpc
