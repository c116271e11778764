"""Metrics of a server, in Prometheus' format."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from keras_attention.server.errors import RequestError
from keras_attention.server.signature import Signature

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts of requests by status, their durations, sizes of batches, and the length of the queue, `waiting()`.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/
    """

    def __init__(self, waiting: Callable[[], int]):
        self._registry = CollectorRegistry()
        each = {"registry": self._registry, "namespace": "keras_attention"}
        self._requests = Counter("requests", "Predict requests, by how they ended", ["api", "code"], **each)
        self._seconds = Histogram("request_seconds", "From request to answer", ["api"], buckets=SECONDS, **each)
        self._rows = Histogram("batch_rows", "Texts in a run of the model", ["signature"], buckets=ROWS, **each)
        Gauge("queue_requests", "Requests that wait", **each).set_function(waiting)

    @contextmanager
    def request(self, api: str) -> Iterator[None]:
        """Counts and times a request of an API, "rest" or "grpc", during the block."""
        start, code = time.perf_counter(), "OK"
        try:
            yield
        except RequestError as error:
            code = error.code
            raise
        except BaseException:
            code = "INTERNAL"
            raise
        finally:
            self._requests.labels(api, code).inc()
            self._seconds.labels(api).observe(time.perf_counter() - start)

    def batch(self, signature: Signature, rows: int) -> None:
        """Counts a run of a signature on a number of texts."""
        self._rows.labels(signature.name).observe(rows)

    def text(self) -> str:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry).decode()
