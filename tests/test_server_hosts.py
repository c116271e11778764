"""The hosts and web pages that the development server answers."""

import http.client
import re
import socket

import pytest

pytest.importorskip("grpc", reason="needs the extra serving")
pytest.importorskip("starlette", reason="needs the extra serving")

from served_stub import FREE, LONG, ask, connect, ended

from keras_attention.server import Server
from keras_attention.server.hosts import Hosts

pytestmark = pytest.mark.tensorflow


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
        status, response = ask(server, path, document, headers=headers)
        assert (status, response.keys()) == (403, {"error"}), headers
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
