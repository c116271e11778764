"""Starts and stops a server."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from keras_attention.server.connections import BACKLOG, Connections, most_connections
from keras_attention.server.grpc_service import grpc_server
from keras_attention.server.hosts import Hosts, guarded
from keras_attention.server.limits import Limits
from keras_attention.server.model import newest_version
from keras_attention.server.ports import listen, reserve
from keras_attention.server.rest import rest_app
from keras_attention.server.service import Service

# Seconds that running requests may still take when the server stops.
GRACE = 5


class Server:
    """A server of an exported model for development, with TF Serving's REST API and gRPC services.

    For production, use TF Serving. The ports are reserved first, so that one that is taken is an error at once. Then
    the newest version in the folder is loaded and warmed up, and the ports open.

    Args:
        folder: Folder of the model, such as "saved_models/en-de"; its name is the model's name.
        host: Host name or address to listen on.
        rest_port: Port of REST; 0 is any free one.
        grpc_port: Port of gRPC; 0 is any free one.
        page: Whether to serve the translation page at `/`.
        allowed_hosts: More names that REST requests may have in `Host`, and whose web pages may send requests. Loopback
            names and addresses and `host` are always allowed; if `host` is not loopback, also all IP addresses and the
            name of this machine.
        limits: The limits of requests and connections.

    Raises:
        FileNotFoundError: If the folder has no SavedModel.
        ValueError: If the folder is that of one version, or a port or a name is invalid.
        OSError: If the server cannot listen on a port.

    Example:
        >>> import tensorflow as tf
        >>> module, texts = tf.Module(), tf.TensorSpec([None], tf.string, name="source")
        >>> module.upper = tf.function(lambda source: {"text": tf.strings.upper(source)}, input_signature=[texts])
        >>> tf.saved_model.save(module, "saved_models/upper/1", signatures={"serving_default": module.upper})
        >>> from keras_attention.client import RestClient
        >>> with Server("saved_models/upper", rest_port=0, grpc_port=0) as server:
        ...     RestClient(server.url, "upper").status()
        {1: 'AVAILABLE'}
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        host: str = "127.0.0.1",
        rest_port: int = 8501,
        grpc_port: int = 8500,
        page: bool = False,
        allowed_hosts: Sequence[str] = (),
        limits: Limits | None = None,
    ):
        self.host = host
        limits = limits or Limits()
        hosts = Hosts(host, allowed_hosts)
        newest_version(folder)
        with contextlib.ExitStack() as opened:  # closes everything after an error
            rest_socket, grpc_socket = map(
                opened.enter_context, reserve(host, rest_port=rest_port, grpc_port=grpc_port)
            )
            self._service = Service(folder, limits)
            opened.callback(self._service.close)
            self._service.model.warm_up()
            listen(rest_socket, host, "rest_port", BACKLOG)
            self.rest_port = rest_socket.getsockname()[1]
            grpc_socket.close()
            self._grpc, self.grpc_port = grpc_server(
                self._service, host, grpc_port, most_connections(limits.connections)
            )
            connections = Connections(limits)
            app = connections.watched(guarded(rest_app(self._service, page), hosts))
            self._uvicorn = uvicorn.Server(_uvicorn_config(app, connections))
            self._thread = threading.Thread(target=self._uvicorn.run, args=([rest_socket],), name="rest")
            self._thread.start()
            self._grpc.start()
            opened.callback(self._end)
            self._opened = opened.pop_all()

    @property
    def model_name(self) -> str:
        """The name of the served model."""
        return self._service.model.name

    @property
    def version(self) -> int:
        """The served version."""
        return self._service.model.version

    @property
    def url(self) -> str:
        """The URL of REST."""
        return f"http://{_in_url(self.host)}:{self.rest_port}"

    @property
    def address(self) -> str:
        """The address of gRPC."""
        return f"{_in_url(self.host)}:{self.grpc_port}"

    def close(self) -> None:
        """Stops the server and frees the model and the ports.

        Requests that run have a few seconds more; those that wait, and those that take longer, get UNAVAILABLE, over
        REST 503.
        """
        self._opened.close()

    def _end(self) -> None:
        self._service.batcher.close(GRACE)  # each request gets a response before its connection is closed
        stopped = self._grpc.stop(GRACE)
        self._uvicorn.should_exit = True
        self._thread.join()
        stopped.wait()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def serve(folder: str | os.PathLike, *, ready: Callable[[Server], None] = lambda server: None, **options: Any) -> None:
    """Serves a model until the process gets SIGINT or SIGTERM; a second signal ends it at once.

    Args:
        folder: Folder of the model, such as "saved_models/en-de".
        ready: Called with the server when it accepts requests.
        **options: The other arguments of `Server`.
    """
    stopped = threading.Event()

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        stopped.set()

    with Server(folder, **options) as server:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            ready(server)
            stopped.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _uvicorn_config(app: Any, connections: Connections) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connections.protocol,  # type: ignore[arg-type]  # of h11, even if httptools is installed
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE,
    )


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
