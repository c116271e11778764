"""The service behind REST and gRPC: the model, its queue, the metrics."""

import os
from concurrent.futures import Future
from typing import Any

from keras_attention.server.batcher import Batcher
from keras_attention.server.errors import RequestError
from keras_attention.server.limits import Limits
from keras_attention.server.metrics import Metrics
from keras_attention.server.model import LoadedModel
from keras_attention.server.signature import Arrays, Signature


class Service:
    """The newest version of the model in a folder, with a queue of requests."""

    def __init__(self, folder: str | os.PathLike, limits: Limits):
        self.limits = limits
        self.model = LoadedModel(folder)
        self.batcher = Batcher(
            lambda signature, inputs: self.model.run(signature, inputs, self.limits.deadline),
            limits,
            observe=lambda signature, rows: self.metrics.batch(signature, rows),
        )
        self.metrics = Metrics(lambda: self.batcher.waiting)

    def check_model(self, name: str, version: str | None = None) -> None:
        """Checks that a request is for the served model and version; None is the newest version."""
        if name != self.model.name or version not in (None, str(self.model.version)):
            wanted = f"Latest({name[:80]})" if version is None else f"Specific({name[:80]}, {version[:80]})"
            served = f"{self.model.name}, version {self.model.version}"
            raise RequestError("NOT_FOUND", f"Servable not found for request: {wanted}. Served is {served}")

    def submit(self, signature: Signature, inputs: Arrays) -> Future:
        """Checks a request, puts it into the queue and returns a future of its outputs."""
        signature.check(inputs)
        cells, most = self.model.cells(signature, inputs), self.limits.request_cells
        if cells > most:
            rule = f"A request may have {most} cells, texts x source tokens x target tokens; send fewer texts at a time"
            raise RequestError("INVALID_ARGUMENT", f"{rule}. Received: up to {cells} cells")
        return self.batcher.submit(signature, inputs)

    def status(self) -> Any:
        """Returns the `GetModelStatusResponse`."""
        from tensorflow_serving.apis import get_model_status_pb2

        response = get_model_status_pb2.GetModelStatusResponse()
        version = response.model_version_status.add(version=self.model.version)
        version.state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        version.status.SetInParent()  # no error
        return response

    def signature_map(self) -> Any:
        """Returns the `SignatureDefMap` of the served signatures."""
        from tensorflow_serving.apis import get_model_metadata_pb2

        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name in self.model.signatures:
            signatures.signature_def[name].CopyFrom(self.model.signature_defs[name])
        return signatures

    def close(self) -> None:
        """Ends all requests, those that run too, and frees the model."""
        self.batcher.close(0)
        self.model.close()
