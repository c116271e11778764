"""Limits of the open connections of REST: their number, and how long one may wait."""

import asyncio
import os
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from keras_attention.server.limits import Limits

# Connections that the system holds until they are accepted; asyncio may accept as many before it serves the first.
BACKLOG = 256
# Files that a process opens in addition to connections, such as those of a SavedModel.
SPARE_FILES = 32
BUSY = b'{"error": "The server has too many connections. Try again later"}'
BUSY_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%s" % (len(BUSY), BUSY)
)


def most_connections(wanted: int) -> int:
    """Returns the number of connections of REST and gRPC each, reduced so that the process can still open files."""
    try:
        import resource

        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            return wanted
        free = files - len(os.listdir("/dev/fd")) - BACKLOG - SPARE_FILES
    except (ImportError, OSError):  # the system has no such limit
        return wanted
    return max(1, min(wanted, free // 2))


class Connections:
    """Limits the number of connections of REST, and closes those whose clients neither send nor read.

    A connection waits from when it is opened, or from the end of a response, until the head of a request is complete,
    at most `idle` seconds. At the limit, a new connection replaces the one that has waited longest; if none waits, the
    new one gets 503. From the head of a request to the end of its response are at most `deadline` + `idle` seconds.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._most = most_connections(limits.connections)
        self._open: set[_Connection] = set()
        self._waiting: dict[_Connection, None] = {}  # in the order in which they began to wait

    def protocol(self, **arguments: Any) -> asyncio.Protocol:
        """Returns the protocol of a new connection, with the arguments that uvicorn gives to its own protocols."""
        return _Connection(self, **arguments)

    def watched(self, app: Any) -> Any:
        """Wraps an ASGI application so that a connection does not count as waiting during its request."""

        async def watched_app(scope: Any, receive: Any, send: Any) -> None:
            connection = scope["state"]["connection"]
            connection.begin()
            try:
                await app(scope, receive, send)
            finally:
                connection.end()

        return watched_app

    def opened(self, connection: "_Connection") -> None:
        """Accepts or refuses a new connection."""
        if len(self._open) >= self._most:
            if not self._waiting:
                connection.refuse()
                return
            next(iter(self._waiting)).drop()
        self._open.add(connection)
        self.waits(connection)

    def waits(self, connection: "_Connection") -> None:
        """Starts the time limit of a connection without a request."""
        if connection in self._open:
            self._waiting[connection] = None
            connection.limit(self._limits.idle)

    def works(self, connection: "_Connection") -> None:
        """Starts the time limit of a connection with a request."""
        self._waiting.pop(connection, None)
        connection.limit(self._limits.deadline + self._limits.idle)

    def closed(self, connection: "_Connection") -> None:
        """Forgets a closed connection, which makes room for another."""
        self._waiting.pop(connection, None)
        self._open.discard(connection)


class _Connection(H11Protocol):
    """A connection that is closed after its time limit; the application has it in the state of a request."""

    def __init__(self, connections: Connections, *, app_state: dict[str, Any], **arguments: Any):
        super().__init__(app_state={**app_state, "connection": self}, **arguments)
        self._connections = connections
        self._requests = 0  # two for a moment if a client does not wait for a response
        self._timer: asyncio.Handle | None = None
        self._wire: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # asyncio declares a wider type
        super().connection_made(transport)
        self._wire = transport
        self._connections.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_timer()
        self._connections.closed(self)
        super().connection_lost(error)

    def begin(self) -> None:
        self._requests += 1
        self._connections.works(self)

    def end(self) -> None:
        self._requests -= 1
        if not self._requests:
            self._connections.waits(self)

    def limit(self, seconds: float) -> None:
        self._stop_timer()
        if not self._wire.is_closing():
            self._timer = asyncio.get_running_loop().call_later(seconds, self._over)

    def refuse(self) -> None:
        self._wire.write(BUSY_RESPONSE)
        self._wire.close()

    def drop(self) -> None:
        self._connections.closed(self)
        self._wire.abort()

    def _over(self) -> None:
        # Data that arrived while this process was suspended is handled first.
        self._timer = asyncio.get_running_loop().call_soon(self.drop)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
