"""The client over REST. It needs nothing but Python's standard library."""

import base64
import http.client
import json
import ssl
from typing import Any
from urllib.parse import quote, urlsplit

from keras_attention.client.base import Client
from keras_attention.client.retries import ServingError

# 429 and 503: the server is busy, the same request may do later.
PASSING = (429, 503)


class RestClient(Client):
    """Asks a translator that TF Serving, or `keras-attention serve`, serves over REST.

    Args:
        url: The server, such as "http://localhost:8501".
        model: The model's name on it.
        version: Its version; the newest by default.
        timeout: Seconds that the server has for one request.
        retries: How often a request is sent again when the server is away or busy.
        batch_size: The most texts of one request.

    Raises:
        ValueError: If the URL is none, or a number is out of its range.

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
        columns = {name: [_in_json(text) for text in texts] for name, texts in inputs.items()}
        answer = self._send("POST", ":predict", {"signature_name": signature, "inputs": columns})
        outputs = answer.get("outputs")
        if not isinstance(outputs, dict) or not all(isinstance(values, list) for values in outputs.values()):
            raise ServingError(f"{self._where()} gave no outputs by name. Received: {str(answer)[:200]}")
        return outputs

    def _status(self) -> dict[int, str]:
        answer = self._send("GET", "")
        try:
            return {int(each["version"]): each["state"] for each in answer["model_version_status"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ServingError(f"{self._where()} gave no status. Received: {str(answer)[:200]}") from error

    def _send(self, method: str, action: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends one request and reads the answer."""
        body = None if document is None else json.dumps(document).encode()
        status, answer = self._exchange(method, action, body)
        try:
            read = json.loads(answer)
        except ValueError:
            read = None
        if status != 200:
            said = read["error"] if isinstance(read, dict) and "error" in read else answer.decode("utf-8", "replace")
            raise ServingError(
                f"{self._where(action)} answered {status}: {said[:1000]}{_hint(status)}", status in PASSING
            )
        if not isinstance(read, dict):
            raise ServingError(f"{self._where(action)} gave no JSON; is it a model server? Received: {answer[:200]!r}")
        return read

    def _exchange(self, method: str, action: str, body: bytes | None) -> tuple[int, bytes]:
        """Each request has its own connection, so that threads can share a client."""
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
            message = f"{self._where(action)} gave no answer within timeout={self.timeout:g} seconds; allow more"
            raise ServingError(f"{message}, or send fewer texts at a time: batch_size={self.batch_size}") from error
        except ConnectionError as error:
            message = f"{self._where(action)} is not reached ({error}). Is the server running there?"
            raise ServingError(message, passing=True) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(f"{self._where(action)} is not reached ({error!r}). Is the URL right?") from error
        finally:
            connection.close()

    def _where(self, action: str = "") -> str:
        scheme, host, port = self._server
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}{'' if port is None else f':{port}'}{self._path}{action}"


def _in_json(text: bytes) -> str | dict[str, str]:
    """As a string, or in base64 where the bytes are no UTF-8."""
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
