"""Retries of requests."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

Response = TypeVar("Response")
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class ServingError(RuntimeError):
    """A request that failed; the message has what the server said and how to fix it.

    Args:
        message: The message.
        passing: Whether the same request may succeed later.

    Example:
        >>> ServingError("http://localhost:8501 is busy. Try again later", passing=True).passing
        True
    """

    def __init__(self, message: str, passing: bool = False):
        super().__init__(message)
        self.passing = passing


def with_retries(send: Callable[[], Response], retries: int) -> Response:
    """Calls `send` again while it raises errors that may pass, after pauses that double each time."""
    for number in range(retries + 1):
        try:
            return send()
        except ServingError as error:
            if not error.passing or number == retries:
                raise
        # Up to a quarter longer at random, so that many clients do not return at the same time.
        time.sleep(min(FIRST_PAUSE * 2**number, LONGEST_PAUSE) * random.uniform(1, 1.25))
    raise AssertionError("the last attempt returns or raises")
