"""How much a server takes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a server takes, so that no request takes it down.

    Args:
        request_bytes: The most bytes of a request; more is answered with 413, over gRPC with RESOURCE_EXHAUSTED.
        request_rows: The most texts of a request; more is answered with 400.
        request_cells: The most texts × source tokens × target tokens of a request, the size of what attention computes;
            more is answered with 400. It needs the lengths in the model card, so only exported translators have it.
        queue: The most requests that wait; one more is answered with 503 and may be tried again.
        deadline: Seconds that a request may take; after that it is answered with 504.
        batch_rows: Texts up to which requests are joined into one batch.
        batch_wait: Seconds that the first request of a batch waits for others.
        connections: The most open connections, of REST and of gRPC each; fewer where the process may not open so many
            files. One more takes the place of the REST connection that has waited longest without a request.
        idle: Seconds after which a connection that sends no complete request is closed, or one that does not read its
            answer.

    Raises:
        ValueError: If one of them is not positive.

    Example:
        >>> Limits(deadline=10).request_rows
        256
    """

    request_bytes: int = 4 * 1024 * 1024  # gRPC's own
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
