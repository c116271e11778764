"""Starting and stopping the development server, its ports, its command."""

import concurrent.futures
import errno
import http.client
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tensorflow as tf
from click.testing import CliRunner
from saved_model import tiny_export
from stub_model import MOST_WORDS, write_stub

pytest.importorskip("grpc", reason="needs the extra serving")
pytest.importorskip("starlette", reason="needs the extra serving")

import grpc
from served_stub import FREE, LONG, SLOW, connect, ended, predict, predict_request
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_attention.cli import main
from keras_attention.server import Limits, Server, lifecycle, ports, serve

pytestmark = pytest.mark.tensorflow


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
    """A server that fails if it loads the model."""
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
    result = CliRunner().invoke(main, ["serve", str(folder), f"--{name.replace('_', '-')}={port}"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


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
    started = threading.Event()
    run = server._service.model.run
    monkeypatch.setattr(server._service.model, "run", lambda *args: (started.set(), run(*args))[1])
    with concurrent.futures.ThreadPoolExecutor(1) as pool, connect(server) as half:
        half.sendall(b"POST /v1/models/stub:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        answer = pool.submit(predict, server, inputs=SLOW, signature_name="slow")
        assert started.wait(LONG)
        server.close()
        assert answer.result(LONG) == (503, {"error": "The server is shutting down"})
        received = ended(half)
    assert received.startswith(b"HTTP/1.1 503 ")
    assert received.endswith(b'"The server is shutting down"\n}')


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
            assert lines[0].startswith("stub, version 7. For development; use TF Serving for production.")
            rest, grpc_url = (line.split()[1] for line in lines[1:3])
            for url in (rest, grpc_url):
                result = CliRunner().invoke(main, ["ask", url, "one two", "three"])
                assert (result.exit_code, result.stdout) == (0, "TWO ONE\nTHREE\n")
            result = CliRunner().invoke(main, ["ask", rest, "-"], input=b"one two\n")
            assert result.output == "TWO ONE\n"
            result = CliRunner().invoke(main, ["ask", rest], input=b"one two\r\n\n" + b"w " * (MOST_WORDS + 1) + b"\n")
            assert (result.exit_code, result.stdout) == (0, f"TWO ONE\n\n{' '.join('W' * MOST_WORDS)}\n")
            assert "Note: Texts [2] are longer than the model reads" in result.stderr
            result = CliRunner().invoke(main, ["ask", rest.replace("stub", "other"), "one"])
            assert result.exit_code == 1
            assert "answered 404: Servable not found" in result.stderr
            page = http.client.HTTPConnection(rest.split("/")[2])
            page.request("GET", "/")
            assert page.getresponse().headers["content-type"].startswith("text/html")
            page.close()
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 0
    assert "Traceback" not in errors
    result = CliRunner().invoke(main, ["serve", "nowhere"])
    assert result.exit_code == 1
    assert "Error: folder must exist; keras-attention export writes one. Received: nowhere" in result.stderr


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
