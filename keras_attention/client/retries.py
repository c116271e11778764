"""Asking again, where that can help."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class ServingError(RuntimeError):
    """A server that was not reached or gave no answer; the message says what it said and what to do.

    Args:
        message: That text.
        passing: Whether the same request may get an answer later.

    Example:
        >>> ServingError("http://localhost:8501 is busy. Try again later", passing=True).passing
        True
    """

    def __init__(self, message: str, passing: bool = False):
        super().__init__(message)
        self.passing = passing


def ask_again(ask: Callable[[], Answer], retries: int) -> Answer:
    """Asks until there is an answer, with a pause that doubles each time.

    Only what may pass is asked again: a refused or broken connection, a busy server. Pauses are up to
    a quarter longer by chance, so that many clients do not come back together.

    Args:
        ask: Gives the answer or raises `ServingError`.
        retries: How often it is asked again.

    Returns:
        The answer.

    Raises:
        ServingError: The last one.

    Example:
        >>> ask_again(lambda: 3, retries=2)
        3
    """
    for number in range(retries + 1):
        try:
            return ask()
        except ServingError as error:
            if not error.passing or number == retries:
                raise
        time.sleep(min(FIRST_PAUSE * 2**number, LONGEST_PAUSE) * random.uniform(1, 1.25))
    raise AssertionError("the last attempt returns or raises")
