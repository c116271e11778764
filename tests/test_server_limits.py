"""The limits of requests to the development server: many at once, too large, too slow, without a client."""

import concurrent.futures
import json
import re
import socket

import numpy as np
import pytest
import tensorflow as tf
from stub_model import write_stub

pytest.importorskip("grpc", reason="needs the extra serving")
pytest.importorskip("starlette", reason="needs the extra serving")

import grpc
from served_stub import FREE, LONG, SLOW, ask, counted, predict, predict_request, wait_until
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_attention.server import Limits, Server

pytestmark = pytest.mark.tensorflow


def test_two_hundred_at_once_each_get_their_own_answer(server, channel, hold):
    gate = hold(server)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    before = counted(server, "batch_rows_count", signature="serving_default")

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
        texts = list(answers)
    assert texts == [f"AND WORD{number}" for number in range(200)]
    assert counted(server, "batch_rows_count", signature="serving_default") - before < 200  # some shared a run


def test_a_body_that_is_too_large_is_refused(server):
    before = counted(server, "requests_total", api="rest", code="INVALID_ARGUMENT")
    status, response = predict(server, inputs=["x" * 5_000_000])
    assert status == 413
    assert "may have 4194304 bytes; send fewer texts at a time" in response["error"]
    assert counted(server, "requests_total", api="rest", code="INVALID_ARGUMENT") == before + 1
    assert predict(server, inputs=["a b"])[1]["outputs"]["text"] == ["B A"]


def test_a_run_that_takes_too_long_ends_and_the_server_goes_on(make_server):
    server = make_server(deadline=0.2)
    status, response = predict(server, inputs=SLOW, signature_name="slow")
    assert status == 504
    assert re.search(r"No answer within 0\.2 seconds|Timed out", response["error"])
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


def test_a_full_queue_is_said_over_both(make_server, hold):
    server = make_server(queue=1, deadline=LONG)
    gate = hold(server)
    with concurrent.futures.ThreadPoolExecutor(2) as pool, grpc.insecure_channel(server.address) as channel:
        runs = pool.submit(predict, server, inputs=["a b"])
        assert gate.entered.wait(LONG)
        waits = pool.submit(predict, server, inputs=["c d"])
        gate.wait_for(requests=2)
        status, response = predict(server, inputs=["e"])
        assert (status, response["error"]) == (503, "The server has 1 requests waiting. Try again later")
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
            status, response = predict(server, inputs=inputs, signature_name=signature)
            assert status == 400
            assert re.search(f"may have {cells - 1} cells.*Received: up to {cells} cells", response["error"])
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
