"""The client over REST. It needs only Python's standard library."""

import base64
import http.client
import json
import ssl
from typing import Any
from urllib.parse import quote, urlsplit

from keras_attention.client.base import Client
from keras_attention.client.retries import ServingError

# The server is busy, and the same request may succeed later.
BUSY = (429, 503)


class RestClient(Client):
    """Client over REST of a translator that TF Serving or `keras-attention serve` serves.

    Args:
        url: URL of the server, such as "http://localhost:8501".
        model: Name of the model on the server.
        version: Version of the model; the newest by default.
        timeout: Timeout of a request in seconds.
        retries: Maximum number of retries of a request when the server is unavailable or busy.
        batch_size: Maximum number of texts of a request.

    Raises:
        ValueError: If `url` is not the URL of a server, or another argument is out of its range.

    Example:
        >>> client = RestClient("http://localhost:8501", model="en-de", retries=0)
        >>> client.translate([])
        []

    Source: https://www.tensorflow.org/tfx/serving/api_rest
    """

    def __init__(
        self,
        url: str,
        model: str = "en-de",
        version: int | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        batch_size: int = 32,
    ):
        super().__init__(model, version, timeout, retries, batch_size)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"url must be a server's, such as http://localhost:8501. Received: url={url!r}")
        self.url = url.rstrip("/")
        self._server = (parts.scheme, parts.hostname, parts.port)
        versions = "" if version is None else f"/versions/{version}"
        self._path = f"{parts.path.rstrip('/')}/v1/models/{quote(model, safe='')}{versions}"

    def _predict(self, signature: str, inputs: dict[str, list[bytes]]) -> dict[str, list]:
        columns = {name: [_to_json(text) for text in texts] for name, texts in inputs.items()}
        response = self._send("POST", ":predict", {"signature_name": signature, "inputs": columns})
        outputs = response.get("outputs")
        if not isinstance(outputs, dict) or not all(isinstance(values, list) for values in outputs.values()):
            raise ServingError(f"{self._url()} gave no outputs by name. Received: {str(response)[:200]}")
        return outputs

    def _status(self) -> dict[int, str]:
        response = self._send("GET", "")
        try:
            return {int(each["version"]): each["state"] for each in response["model_version_status"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ServingError(f"{self._url()} gave no status. Received: {str(response)[:200]}") from error

    def _send(self, method: str, action: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends one request and returns the JSON of the response."""
        body = None if document is None else json.dumps(document).encode()
        status, content = self._exchange(method, action, body)
        try:
            response = json.loads(content)
        except ValueError:
            response = None
        if status != 200:
            has_message = isinstance(response, dict) and "error" in response
            message = response["error"] if has_message else content.decode("utf-8", "replace")
            raise ServingError(
                f"{self._url(action)} answered {status}: {message[:1000]}{_hint(status)}", status in BUSY
            )
        if not isinstance(response, dict):
            raise ServingError(f"{self._url(action)} gave no JSON; is it a model server? Received: {content[:200]!r}")
        return response

    def _exchange(self, method: str, action: str, body: bytes | None) -> tuple[int, bytes]:
        """Sends a request over a connection of its own, so that threads can share a client."""
        scheme, host, port = self._server
        secure = {"context": ssl.create_default_context()} if scheme == "https" else {}
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(host, port, timeout=self.timeout, **secure)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, self._path + action, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except TimeoutError as error:
            message = f"{self._url(action)} gave no answer within timeout={self.timeout:g} seconds; allow more"
            raise ServingError(f"{message}, or send fewer texts at a time: batch_size={self.batch_size}") from error
        except ConnectionError as error:
            message = f"{self._url(action)} cannot be reached ({error}). Is the server running there?"
            raise ServingError(message, passing=True) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(f"{self._url(action)} cannot be reached ({error!r}). Is the URL right?") from error
        finally:
            connection.close()

    def _url(self, action: str = "") -> str:
        scheme, host, port = self._server
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}{'' if port is None else f':{port}'}{self._path}{action}"


def _to_json(text: bytes) -> str | dict[str, str]:
    """Returns a string, or base64 of bytes that are invalid UTF-8."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(text).decode()}


def _hint(status: int) -> str:
    if status == 404:
        return ". Is that the model's name on the server?"
    if status == 413:
        return ". Use a smaller batch_size"
    return ""
