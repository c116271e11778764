"""What REST and gRPC share: the model, the queue before it, the counts."""

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
    """A loaded model behind a queue.

    Args:
        folder: The model's folder, which holds a folder for each version.
        limits: How much it takes.
    """

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
        """Checks that the served model is the one that is asked for.

        Args:
            name: Its name.
            version: Its version; None is the newest.

        Raises:
            RequestError: If another model or version is served.
        """
        if name != self.model.name or version not in (None, str(self.model.version)):
            wanted = f"Latest({name[:80]})" if version is None else f"Specific({name[:80]}, {version[:80]})"
            served = f"{self.model.name}, version {self.model.version}"
            raise RequestError("NOT_FOUND", f"Servable not found for request: {wanted}. Served is {served}")

    def submit(self, signature: Signature, inputs: Arrays) -> Future:
        """Puts a request into the queue.

        Args:
            signature: What to run.
            inputs: Its inputs.

        Returns:
            The outputs to be, or the `RequestError`.

        Raises:
            RequestError: If the request does not fit the signature or is too large, or the queue is full.
        """
        signature.check(inputs)
        cells, most = self.model.cells(signature, inputs), self.limits.request_cells
        if cells > most:
            rule = f"A request may have {most} cells, texts x source tokens x target tokens; send fewer texts at a time"
            raise RequestError("INVALID_ARGUMENT", f"{rule}. Received: up to {cells} cells")
        return self.batcher.submit(signature, inputs)

    def status(self) -> Any:
        """Says that the version is there.

        Returns:
            The `GetModelStatusResponse`.
        """
        from tensorflow_serving.apis import get_model_status_pb2

        response = get_model_status_pb2.GetModelStatusResponse()
        version = response.model_version_status.add(version=self.model.version)
        version.state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        version.status.SetInParent()  # no error
        return response

    def signature_map(self) -> Any:
        """Describes the signatures.

        Returns:
            The `SignatureDefMap`.
        """
        from tensorflow_serving.apis import get_model_metadata_pb2

        described = get_model_metadata_pb2.SignatureDefMap()
        for name in self.model.signatures:
            described.signature_def[name].CopyFrom(self.model.signature_defs[name])
        return described

    def close(self) -> None:
        """Ends the work and frees the model; a run that is not done is cancelled."""
        self.batcher.close(0)
        self.model.close()
