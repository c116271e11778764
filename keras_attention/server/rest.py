"""TF Serving's REST API, the health check, the metrics and the translation page."""

import asyncio
import importlib.resources
import json
from typing import Any

from google.protobuf import json_format
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from keras_attention.server import json_tensors
from keras_attention.server.errors import RequestError
from keras_attention.server.service import Service
from keras_attention.server.signature import Arrays, Signature

# Bodies that are too large are read up to this many times the limit: a caller reads no response while it writes.
READ_FACTOR = 16
# The page loads nothing, sends requests only to this server and cannot be in a frame.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def rest_app(service: Service, page: bool = False) -> Starlette:
    """Returns the application of TF Serving's REST API, with `page` the translation page at `/`."""
    # https://www.tensorflow.org/tfx/serving/api_rest
    handlers = _Handlers(service)
    model = "/v1/models/{name}"
    routes = [
        Route("/healthz", handlers.health),
        Route("/monitoring/prometheus/metrics", handlers.metrics),
    ]
    for prefix in (model, model + "/versions/{version}"):
        routes.append(Route(prefix + ":predict", handlers.predict, methods=["POST"]))
        routes.append(Route(prefix + "/metadata", handlers.metadata))
        routes.append(Route(prefix, handlers.status))
    if page:
        routes.append(Route("/", handlers.page))
    errors: dict[Any, Any] = {RequestError: _refuse, HTTPException: _no_such_path, Exception: _broken}
    return Starlette(routes=routes, exception_handlers=errors)


class _Handlers:
    def __init__(self, service: Service):
        self._service = service

    async def health(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def page(self, request: Request) -> Response:
        return HTMLResponse(page_text(self._service), headers={"Content-Security-Policy": PAGE_POLICY})

    async def status(self, request: Request) -> Response:
        self._check_model(request)
        return _json(_as_dict(self._service.status()))

    async def metadata(self, request: Request) -> Response:
        self._check_model(request)
        model = self._service.model
        spec = {"name": model.name, "signature_name": "", "version": str(model.version)}
        signatures = _as_dict(self._service.signature_map())
        return _json({"model_spec": spec, "metadata": {"signature_def": signatures}})

    async def predict(self, request: Request) -> Response:
        with self._service.metrics.request("rest"):
            self._check_model(request)
            try:
                async with asyncio.timeout(self._service.limits.deadline):
                    return await self._predict(request)
            except TimeoutError as error:
                deadline = self._service.limits.deadline
                raise RequestError("DEADLINE_EXCEEDED", f"No answer within {deadline:g} seconds") from error
            except ClientDisconnect as error:
                raise RequestError("CANCELLED", "The client is gone") from error
            except asyncio.CancelledError as error:  # by uvicorn, of requests that still run when it ends
                raise RequestError("UNAVAILABLE", "The server is shutting down") from error

    async def _predict(self, request: Request) -> Response:
        body = await _read_body(request, self._service.limits.request_bytes)
        limit = self._service.limits.request_rows
        wanted = await run_in_threadpool(json_tensors.read_request, body, self._service.model.signature, limit)
        future = asyncio.wrap_future(self._service.submit(wanted.signature, wanted.inputs))
        outputs = await _unless_disconnected(request, future)
        content = await run_in_threadpool(json_tensors.write_response, outputs, wanted.by_row)
        return Response(content, media_type="application/json")

    def _check_model(self, request: Request) -> None:
        name = request.path_params["name"]
        if ":" in name:  # an unknown action, or one of another method
            raise HTTPException(404)
        self._service.check_model(name, request.path_params.get("version"))


async def _read_body(request: Request, limit: int) -> bytes:
    """Reads a body; of one that is too large the rest is read and dropped, so that the caller reads the error."""
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        elif size > READ_FACTOR * limit:
            break
    if size > limit:
        message = f"A request may have {limit} bytes; send fewer texts at a time. Received: more"
        raise RequestError("INVALID_ARGUMENT", message, http_status=413)
    return bytes(body)


async def _unless_disconnected(request: Request, outputs: asyncio.Future) -> Arrays:
    """Waits for the outputs while the client is connected."""
    disconnected = asyncio.ensure_future(request.receive())  # after the body, only the end of the connection comes
    try:
        await asyncio.wait([outputs, disconnected], return_when=asyncio.FIRST_COMPLETED)
        if outputs.done():
            return outputs.result()
        raise ClientDisconnect
    finally:
        disconnected.cancel()
        outputs.cancel()


def page_text(service: Service) -> str:
    """Returns the HTML of the translation page, which loads nothing else."""
    text = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    # "<" is escaped, so that a name cannot end the script that contains it.
    signatures = service.model.signatures
    about = {"model": service.model.name, "signatures": sorted(signatures), "heads": _heads(signatures)}
    return text.replace("/* ABOUT */ null", json.dumps(about).replace("<", "\\u003c"))


def _heads(signatures: dict[str, Signature]) -> dict[str, list[int | None]] | None:
    """Returns the numbers of layers and heads for each kind of attention of an export with `inspect`, else None."""
    inputs = signatures["inspect"].inputs if "inspect" in signatures else {}
    kinds = ("encoder", "decoder", "cross")
    if not {"source", "window", "scale", *(f"{kind}_head_mask" for kind in kinds)} <= set(inputs):
        return None
    return {kind: inputs[f"{kind}_head_mask"].shape.as_list()[1:] for kind in kinds}


async def _refuse(request: Request, error: RequestError) -> Response:
    return _json({"error": error.message}, error.http_status)


async def _no_such_path(request: Request, error: HTTPException) -> Response:
    path = request.url.path[:200]
    if path.startswith("/v1/"):
        return _json({"error": f"Malformed request: {request.method} {path}"}, 400)
    return _json({"error": f"{error.detail}: {request.method} {path}"}, error.status_code)


async def _broken(request: Request, error: Exception) -> Response:
    return _json({"error": f"The server failed: {type(error).__name__}; its log says more"}, 500)


def _as_dict(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(document, indent=1), status, media_type="application/json")
