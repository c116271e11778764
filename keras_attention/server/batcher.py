"""Joins requests that arrive at the same time into one batch, and splits its outputs again."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from keras_attention.server.errors import RequestError
from keras_attention.server.limits import Limits
from keras_attention.server.signature import Arrays, Signature


class _Request(NamedTuple):
    signature: Signature
    inputs: Arrays
    rows: int
    arrived: float
    response: Future

    def joins(self, other: "_Request") -> bool:
        """Returns whether both can be in one batch: the arrays differ only in their number of rows."""
        shapes = {name: array.shape[1:] for name, array in self.inputs.items()}
        return (
            self.signature is other.signature
            and self.signature.batchable
            and shapes == {name: array.shape[1:] for name, array in other.inputs.items()}
        )


class Batcher:
    """Runs requests, those of a signature that arrive at the same time as one batch.

    If a batch fails, each of its requests is run by itself, so that a bad request fails only for its own caller.
    `observe` is called with the signature and the number of rows of each batch.
    """

    def __init__(
        self,
        run: Callable[[Signature, Arrays], Arrays],
        limits: Limits | None = None,
        observe: Callable[[Signature, int], None] = lambda signature, rows: None,
    ):
        self._run = run
        self._limits = limits or Limits()
        self._observe = observe
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return len(self._waiting)

    def submit(self, signature: Signature, inputs: Arrays) -> Future:
        """Puts a request into the queue and returns a future of its outputs; cancelling it removes the request."""
        signature.check(inputs)
        rows = signature.rows(inputs)
        if rows > self._limits.request_rows:
            raise RequestError(
                "INVALID_ARGUMENT",
                f"A request may have {self._limits.request_rows} rows; send several. Received: {rows} rows",
            )
        request = _Request(signature, inputs, rows, time.monotonic(), Future())
        with self._changed:
            if len(self._waiting) >= self._limits.queue:
                self._waiting = [waiting for waiting in self._waiting if not waiting.response.cancelled()]
            if self._closed or len(self._waiting) >= self._limits.queue:
                why = "is shutting down" if self._closed else f"has {self._limits.queue} requests waiting"
                raise RequestError("UNAVAILABLE", f"The server {why}. Try again later")
            self._waiting.append(request)
            self._changed.notify()
        return request.response

    def close(self, grace: float | None = None) -> None:
        """Ends the requests that wait with an error, and after `grace` seconds those that run; None waits for them."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify()
        _shut_down(request for request in waiting if request.response.set_running_or_notify_cancel())
        self._worker.join(grace)
        _shut_down(self._running)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._running = [request for request in batch if request.response.set_running_or_notify_cancel()]
            if self._running:
                self._respond(self._running)
            self._running = []

    def _next_batch(self) -> list[_Request] | None:
        """Waits for a request and for a moment for others that can join it; returns None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            first = self._waiting[0]
            until = first.arrived + self._limits.batch_wait
            if first.signature.batchable:
                self._changed.wait_for(lambda: self._closed or self._full(first), until - time.monotonic())
            batch, rows = [], 0
            for request in self._waiting:
                if request is first or (request.joins(first) and rows + request.rows <= self._limits.batch_rows):
                    batch.append(request)
                    rows += request.rows
            taken = set(map(id, batch))
            self._waiting = [request for request in self._waiting if id(request) not in taken]
            return batch

    def _full(self, first: _Request) -> bool:
        return sum(each.rows for each in self._waiting if each.joins(first)) >= self._limits.batch_rows

    def _respond(self, batch: list[_Request]) -> None:
        try:
            responses = self._run_joined(batch)
        except Exception as error:
            if len(batch) > 1 and not self._closed and getattr(error, "code", "") != "DEADLINE_EXCEEDED":
                for request in batch:
                    self._respond([request])
                return
            for request in batch:
                with suppress(InvalidStateError):  # `close` has ended it
                    request.response.set_exception(error)
            return
        for request, response in zip(batch, responses, strict=True):
            with suppress(InvalidStateError):
                request.response.set_result(response)

    def _run_joined(self, batch: list[_Request]) -> list[Arrays]:
        signature, rows = batch[0].signature, sum(request.rows for request in batch)
        self._observe(signature, rows)
        if len(batch) == 1:
            return [self._run(signature, batch[0].inputs)]
        joined = {name: np.concatenate([request.inputs[name] for request in batch]) for name in signature.inputs}
        outputs = self._run(signature, joined)
        wrong = {name: array.shape for name, array in outputs.items() if array.shape[0] != rows}
        if wrong:
            raise RequestError("INTERNAL", f"Signature '{signature.name}': {rows} rows in, but out: {wrong}")
        ends = np.cumsum([request.rows for request in batch])[:-1]
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        return [{name: parts[name][index] for name in parts} for index in range(len(batch))]


def _shut_down(requests: Iterable[_Request]) -> None:
    """Ends requests with the error that the server is shutting down."""
    for request in requests:
        with suppress(InvalidStateError):  # the response came at this moment
            request.response.set_exception(RequestError("UNAVAILABLE", "The server is shutting down"))
