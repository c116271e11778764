"""The names and web pages that a server answers: no page of another site may read its answers.

A browser keeps a page from reading another server's answers. A site gets around this by DNS rebinding: it makes its own
name mean the other server's address. The request then still has the site's name in `Host`.
"""

import ipaddress
import json
import re
import socket
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from keras_attention.server.errors import RequestError

# Browsers do not guess the type of an answer, show it in no frame and give it to no other site.
SECURITY_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
}
# The ports that an URL need not name.
USUAL_PORTS = {"http": 80, "https": 443}


class Place(NamedTuple):
    """A host, as a plain name or address, and a port, None where none is given."""

    host: str
    port: int | None


class Hosts:
    """The names that a server answers to.

    These are loopback names and addresses (`localhost`, 127.0.0.1, [::1], …), the host on which the server listens, and
    the allowed ones. A server that listens on more than loopback also answers to every IP address and to the name of
    this machine: another site cannot take these for its own.

    Args:
        bound: Where the server listens.
        allowed: More names or addresses.

    Raises:
        ValueError: If one of these is not a name or an address.

    Example:
        >>> hosts = Hosts("127.0.0.1", allowed=["translate.example"])
        >>> hosts.knows("localhost"), hosts.knows("translate.example"), hosts.knows("other.example")
        (True, True, False)

    Source: https://www.rfc-editor.org/rfc/rfc9110#name-host-and-authority
    """

    def __init__(self, bound: str, allowed: Sequence[str] = ()):
        self._allowed = {_checked_name(name) for name in allowed}
        self._names = {*self._allowed, _plain(bound)}
        self._reachable = not _is_loopback(_plain(bound))
        if self._reachable:
            self._names.add(_plain(socket.gethostname()))

    def knows(self, host: str) -> bool:
        """Whether the server answers to a host.

        Args:
            host: A plain name or address, in lower case.

        Returns:
            Whether it does.
        """
        return host in self._names or _is_loopback(host) or (self._reachable and _address(host) is not None)

    def check(self, target: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Checks whom a request asks and which page sent it.

        Args:
            target: The target in the request's first line: a path or a whole URL.
            headers: The headers, their names in lower case.

        Raises:
            RequestError: If the request names another host or comes from another server's page.
        """
        named = _values(headers, b"host")
        if len(named) != 1:
            raise RequestError("INVALID_ARGUMENT", f"A request has one Host header. Received: {named!r:.200}")
        if not target.startswith(("/", "*")):
            named.append(_netloc(target).rpartition("@")[2])
        for text in named:
            place = read_place(text)
            if place is None:
                raise RequestError("INVALID_ARGUMENT", f"Host must be NAME or NAME:PORT. Received: Host={text!r:.200}")
            if not self.knows(place.host):
                rule = f"This server does not answer to this name; serve with --allowed-host {place.host[:200]}"
                raise RequestError("PERMISSION_DENIED", f"{rule} if it is to. Received: Host={text!r:.200}")
        self._check_origins(_values(headers, b"origin"), read_place(named[-1]))

    def _check_origins(self, origins: list[str], asked: Place | None) -> None:
        for origin in origins:
            usual, place = USUAL_PORTS.get(origin.partition(":")[0].lower()), read_place(_netloc(origin))
            known = usual and place and asked
            if known and (place.host in self._allowed or _with_port(place, usual) == _with_port(asked, usual)):
                continue
            message = f"This server answers no other server's pages. Received: Origin={origin!r:.200}"
            raise RequestError("PERMISSION_DENIED", message)


def guarded(app: Any, hosts: Hosts) -> Any:
    """Wraps an application so that it answers only known hosts, with the headers of `SECURITY_HEADERS`.

    Args:
        app: The ASGI application.
        hosts: The names it answers to.

    Returns:
        The ASGI application.
    """

    async def guarded_app(scope: Any, receive: Any, send: Any) -> None:
        async def send_secured(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [header for header in SECURITY_HEADERS.items() if header[0] not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        target = scope["raw_path"].decode("latin-1")
        try:
            hosts.check(target, scope["headers"])
        except RequestError as error:
            await _refuse(error, send_secured)
            return
        if not target.startswith(("/", "*")):  # a whole URL means its path
            path = urlsplit(target).path or "/"
            scope = {**scope, "path": unquote(path), "raw_path": path.encode()}
        await app(scope, receive, send_secured)

    return guarded_app


async def _refuse(error: RequestError, send: Any) -> None:
    body = json.dumps({"error": error.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))  # what is left of the request is not read
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def read_place(text: str) -> Place | None:
    """Reads a host and a port as URLs and the header `Host` write them.

    Args:
        text: Such as "localhost:8501" or "[::1]:8501".

    Returns:
        The place; None where the text is none.

    Example:
        >>> read_place("LocalHost.:8501"), read_place("[::1]"), read_place("a b")
        (Place(host='localhost', port=8501), Place(host='::1', port=None), None)
    """
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{0,5}))?", text.strip(" \t"), re.ASCII)
    if not found:
        return None
    in_brackets, name, port = found.groups()
    if in_brackets and _address(in_brackets) is None:
        return None
    host = _plain(in_brackets or name)
    return Place(host, int(port) if port else None) if host else None


def _checked_name(name: str) -> str:
    place = read_place(f"[{name}]" if ":" in name and not name.startswith("[") else name)
    if place is None or place.port is not None:
        rule = "allowed_hosts must be names or addresses, such as translate.example, without http:// and port"
        raise ValueError(f"{rule}. Received: allowed_hosts with {name!r}")
    return place.host


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:  # such as a bracket that is not closed
        return ""


def _plain(host: str) -> str:
    """Returns a name or an address in the one form in which they are compared."""
    host = host.lower().removesuffix(".")
    address = _address(host)
    return host if address is None else str(address)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])  # without the name of a network card
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return (host == "localhost" or host.endswith(".localhost")) if address is None else address.is_loopback


def _values(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in headers if name == wanted]


def _with_port(place: Place, usual: int) -> Place:
    return Place(place.host, place.port or usual)
