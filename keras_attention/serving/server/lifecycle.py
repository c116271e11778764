"""Starts a server, keeps it until a signal comes, ends it."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

from keras_attention.serving.server.grpc_service import grpc_server
from keras_attention.serving.server.limits import Limits
from keras_attention.serving.server.rest import rest_app
from keras_attention.serving.server.service import Service

# Seconds that requests may still take once the server is told to end.
GRACE = 5


class Server:
    """A server of one exported model for development: TF Serving's REST paths and gRPC services.

    For production, use TF Serving. The newest version in the folder is loaded and warmed up before a port opens.

    Args:
        folder: The model's folder, such as "saved_models/en-de"; its name is the model's.
        host: Where it listens.
        rest_port: The port of REST; 0 is any free one.
        grpc_port: The port of gRPC; 0 is any free one.
        page: Whether `/` is the translation page.
        limits: How much it takes.

    Raises:
        FileNotFoundError: If there is no SavedModel in the folder.
        OSError: If a port is taken.

    Example:
        >>> import tensorflow as tf
        >>> module, texts = tf.Module(), tf.TensorSpec([None], tf.string, name="source")
        >>> module.upper = tf.function(lambda source: {"text": tf.strings.upper(source)}, input_signature=[texts])
        >>> tf.saved_model.save(module, "saved_models/upper/1", signatures={"serving_default": module.upper})
        >>> from keras_attention.serving.client import RestClient
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
        limits: Limits | None = None,
    ):
        self.host = host
        with contextlib.ExitStack() as opened:  # what is open when something fails is closed
            self._service = Service(folder, limits or Limits())
            opened.callback(self._service.close)
            self._service.model.warm_up()
            listening = opened.enter_context(_listen(host, rest_port))
            self.rest_port = listening.getsockname()[1]
            self._grpc, self.grpc_port = grpc_server(self._service, host, grpc_port)
            self._uvicorn = uvicorn.Server(_uvicorn_config(rest_app(self._service, page)))
            self._thread = threading.Thread(target=self._uvicorn.run, args=([listening],), name="rest")
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
        """Where REST answers."""
        return f"http://{_in_url(self.host)}:{self.rest_port}"

    @property
    def address(self) -> str:
        """Where gRPC answers."""
        return f"{_in_url(self.host)}:{self.grpc_port}"

    def close(self) -> None:
        """Takes no more requests, answers those that run, and frees the model and the ports."""
        self._opened.close()

    def _end(self) -> None:
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
        folder: The model's folder, such as "saved_models/en-de".
        ready: Told when the server takes requests.
        **options: The other arguments of `Server`.
    """
    told = threading.Event()

    def end(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        told.set()

    with Server(folder, **options) as server:
        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            ready(server)
            told.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _uvicorn_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",  # whatever else is installed: the same server everywhere
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"rest_port must be free. Received: rest_port={port} on {host}: {error.strerror}") from error


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
