"""The connections of the development server: their number, and how long one may wait."""

import concurrent.futures
import contextlib
import json
import os
import select
import threading

import pytest

pytest.importorskip("grpc", reason="needs the extra serving")
pytest.importorskip("starlette", reason="needs the extra serving")

import grpc
from served_stub import LONG, connect, ended, predict, predict_request, wait_until
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_attention.server import connections

pytestmark = pytest.mark.tensorflow


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
    received = until_closed(server, sent, drips)
    if b"\r\n\r\n" not in sent:
        assert received == b""
        return
    while not received:  # a machine so busy that the server did not wait for the request
        received = until_closed(server, sent, drips)
    assert received.startswith(b"HTTP/1.1 504 " if sent.startswith(b"POST") else b"HTTP/1.1 200 ")


def until_closed(server, sent, drips):
    """Sends bytes and, if it drips, one more again and again; returns what the server sends until it closes."""
    with connect(server) as connection:
        try:
            connection.sendall(sent)
            while drips and not select.select([connection], [], [], 0.01)[0]:
                connection.sendall(b"0")
        except ConnectionError:
            pass
        received = b""
        try:
            while part := connection.recv(4096):
                received += part
                while drips and not select.select([connection], [], [], 0.01)[0]:
                    connection.sendall(b"0")
        except ConnectionError:
            pass
        return received


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
    for connection in silent[:3]:  # the request has replaced the third, and the last two are still open
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
            received = ended(another)
        gate.open.set()
        assert [answer.result(LONG)[0] for answer in answers] == [200, 200]
    head, body = received.split(b"\r\n\r\n")
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
