"""The open connections of REST: how many there may be, and how long one may wait."""

import asyncio
import os
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from keras_attention.server.limits import Limits

# Connections that the system holds until they are taken; asyncio may take as many before it serves the first.
BACKLOG = 256
# Files that a process opens besides connections, such as those of a model's export.
SPARE_FILES = 32
BUSY = b'{"error": "The server has too many connections. Try again later"}'
BUSY_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%s" % (len(BUSY), BUSY)
)


def most_connections(wanted: int) -> int:
    """Says how many connections REST and gRPC may each have, so that the process can still open files.

    Args:
        wanted: The most that the limits allow.

    Returns:
        That many, or as many as fit below the number of files that the process may have open.
    """
    try:
        import resource

        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            return wanted
        free = files - len(os.listdir("/dev/fd")) - BACKLOG - SPARE_FILES
    except (ImportError, OSError):  # a system that does not say
        return wanted
    return max(1, min(wanted, free // 2))


class Connections:
    """Keeps the connections of REST below a number, and closes those whose clients send or take nothing.

    A connection waits from when it is opened, or from the end of an answer, until the head of a request is complete. It
    may do so for `idle` seconds. Where there is no room for another, the one that has waited longest is closed, and
    where none waits, the new one is told that the server is busy. From the head of a request to the end of its answer
    are at most `deadline` and `idle` seconds.

    Args:
        limits: `connections`, `idle` and `deadline` count here.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._most = most_connections(limits.connections)
        self._open: set[_Connection] = set()
        self._waiting: dict[_Connection, None] = {}  # in the order in which they began to

    def protocol(self, **arguments: Any) -> asyncio.Protocol:
        """Makes what answers a new connection.

        Args:
            **arguments: Those that uvicorn gives to its own protocols.

        Returns:
            The protocol.
        """
        return _Connection(self, **arguments)

    def watched(self, app: Any) -> Any:
        """Wraps an application so that a connection does not count as waiting while its request is answered.

        Args:
            app: The ASGI application.

        Returns:
            The ASGI application that uvicorn is to run.
        """

        async def watched_app(scope: Any, receive: Any, send: Any) -> None:
            connection = scope["state"]["connection"]
            connection.begin()
            try:
                await app(scope, receive, send)
            finally:
                connection.end()

        return watched_app

    def opened(self, connection: "_Connection") -> None:
        """Takes a connection in, or refuses it.

        Args:
            connection: The new one.
        """
        if len(self._open) >= self._most:
            if not self._waiting:
                connection.refuse()
                return
            next(iter(self._waiting)).drop()
        self._open.add(connection)
        self.waits(connection)

    def waits(self, connection: "_Connection") -> None:
        """Waits for a request.

        Args:
            connection: The one that has none.
        """
        if connection in self._open:
            self._waiting[connection] = None
            connection.limit(self._limits.idle)

    def works(self, connection: "_Connection") -> None:
        """Gives the time for a request and its answer.

        Args:
            connection: The one that has a request.
        """
        self._waiting.pop(connection, None)
        connection.limit(self._limits.deadline + self._limits.idle)

    def closed(self, connection: "_Connection") -> None:
        """Forgets a connection, which makes room for another.

        Args:
            connection: The closed one.
        """
        self._waiting.pop(connection, None)
        self._open.discard(connection)


class _Connection(H11Protocol):
    """A connection that ends when its time is over; the application finds it in the state of a request."""

    def __init__(self, connections: Connections, *, app_state: dict[str, Any], **arguments: Any):
        super().__init__(app_state={**app_state, "connection": self}, **arguments)
        self._connections = connections
        self._requests = 0  # two for a moment, where a client does not wait for an answer
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
        self._wire.write(BUSY_ANSWER)
        self._wire.close()

    def drop(self) -> None:
        self._connections.closed(self)
        self._wire.abort()

    def _over(self) -> None:
        # What came in the meantime, while this process had to wait for others, is looked at first.
        self._timer = asyncio.get_running_loop().call_soon(self.drop)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
