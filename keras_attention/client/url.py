"""The client of a URL."""

from typing import Any
from urllib.parse import unquote, urlsplit

from keras_attention.client.base import Client
from keras_attention.client.grpc_client import GrpcClient
from keras_attention.client.rest_client import RestClient

FORMS = "http://localhost:8501/v1/models/en-de, or grpc://localhost:8500/en-de"


def connect(url: str, **options: Any) -> Client:
    """Makes a client of the model at a URL.

    Args:
        url: URL in TF Serving's form, http://HOST:PORT/v1/models/NAME or https://…, optionally with /versions/N at the
            end and without v1/models. For gRPC, grpc://HOST:PORT/NAME.
        **options: Arguments of `RestClient` or `GrpcClient`.

    Returns:
        The client.

    Raises:
        ValueError: If the URL has another form.

    Example:
        >>> client = connect("http://localhost:8501/v1/models/en-de/versions/3", retries=0)
        >>> client.url, client.model, client.version
        ('http://localhost:8501', 'en-de', 3)
    """
    parts = urlsplit(url)
    path, _, version = parts.path.strip("/").removesuffix(":predict").partition("/versions/")
    prefix, _, model = path.rpartition("/")
    prefix = prefix.removesuffix("v1/models").strip("/")
    known = parts.scheme in ("http", "https", "grpc") and parts.netloc and model
    if not known or parts.query or parts.fragment or (version and not version.isdecimal()):
        raise ValueError(f"url must name a server and a model: {FORMS}. Received: url={url!r}")
    options = {"model": unquote(model), "version": int(version) if version else None, **options}
    if parts.scheme == "grpc":
        return GrpcClient(parts.netloc, **options)
    return RestClient("/".join(part for part in (f"{parts.scheme}://{parts.netloc}", prefix) if part), **options)
