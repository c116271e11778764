"""The limits of a server."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a server, so that no request can take it down.

    Args:
        request_bytes: Maximum size of a request in bytes; a larger one gets 413, over gRPC RESOURCE_EXHAUSTED.
        request_rows: Maximum number of texts of a request; one with more gets 400.
        request_cells: Maximum of texts × source tokens × target tokens of a request, the size of its attention weights;
            one with more gets 400. The lengths are those of the model card, so only exported translators have this
            limit.
        queue: Maximum number of requests that wait; one more gets 503 and may be sent again.
        deadline: Maximum duration of a request in seconds; after that it gets 504.
        batch_rows: Maximum number of texts of the batch into which requests are joined.
        batch_wait: Seconds that the first request of a batch waits for others.
        connections: Maximum number of open connections, for REST and gRPC each; fewer if the process may not open that
            many files. At the limit, a new REST connection replaces the one that has waited longest without a request.
        idle: Seconds after which a connection is closed that does not send a complete request or does not read its
            response.

    Raises:
        ValueError: If a limit is not positive.

    Example:
        >>> Limits(deadline=10).request_rows
        256
    """

    request_bytes: int = 4 * 1024 * 1024  # gRPC's default
    request_rows: int = 256
    request_cells: int = 4 * 1024 * 1024  # 53 texts of 256 tokens
    queue: int = 512
    deadline: float = 60.0
    batch_rows: int = 64
    batch_wait: float = 0.004
    connections: int = 1024
    idle: float = 20.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} must be above 0. Received: {field.name}={value}")
