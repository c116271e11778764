"""Checks of the headers `Host` and `Origin`, so that web pages of other sites cannot read the responses.

A browser keeps a page from reading the responses of another server. A site evades this by DNS rebinding: it makes its
own name resolve to the address of the other server. The request then still has the site's name in `Host`.
"""

import ipaddress
import json
import re
import socket
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from keras_attention.server.errors import RequestError

# Browsers do not guess the type of a response, do not show it in a frame and do not give it to another site.
SECURITY_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
}
# The ports of URLs without a port.
DEFAULT_PORTS = {"http": 80, "https": 443}


class Authority(NamedTuple):
    """A normalized host name or address, and a port or None."""

    host: str
    port: int | None


class Hosts:
    """The hosts that requests to a server may name.

    These are loopback names and addresses (`localhost`, 127.0.0.1, [::1], …), the host on which the server listens, and
    the allowed ones. If the server listens on more than loopback, they are also all IP addresses and the name of this
    machine: another site cannot make these resolve to this server.

    Source: https://www.rfc-editor.org/rfc/rfc9110#name-host-and-authority
    """

    def __init__(self, bound: str, allowed: Sequence[str] = ()):
        self._allowed = {_checked_name(name) for name in allowed}
        self._names = {*self._allowed, _normalized(bound)}
        self._reachable = not _is_loopback(_normalized(bound))
        if self._reachable:
            self._names.add(_normalized(socket.gethostname()))

    def knows(self, host: str) -> bool:
        """Returns whether requests may name a host, a normalized name or address."""
        return host in self._names or _is_loopback(host) or (self._reachable and _address(host) is not None)

    def check(self, target: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Checks the target of a request, a path or an absolute URL, and its headers, with names in lower case."""
        named = _values(headers, b"host")
        if len(named) != 1:
            raise RequestError("INVALID_ARGUMENT", f"A request has one Host header. Received: {named!r:.200}")
        if not target.startswith(("/", "*")):
            named.append(_netloc(target).rpartition("@")[2])
        for text in named:
            authority = parse_authority(text)
            if authority is None:
                raise RequestError("INVALID_ARGUMENT", f"Host must be NAME or NAME:PORT. Received: Host={text!r:.200}")
            if not self.knows(authority.host):
                rule = f"This server does not answer to this name; serve with --allowed-host {authority.host[:200]}"
                raise RequestError("PERMISSION_DENIED", f"{rule} if it is to. Received: Host={text!r:.200}")
        self._check_origins(_values(headers, b"origin"), parse_authority(named[-1]))

    def _check_origins(self, origins: list[str], target: Authority | None) -> None:
        for origin in origins:
            default, page = DEFAULT_PORTS.get(origin.partition(":")[0].lower()), parse_authority(_netloc(origin))
            known = default and page and target
            if known and (page.host in self._allowed or _with_port(page, default) == _with_port(target, default)):
                continue
            message = f"This server answers no other server's pages. Received: Origin={origin!r:.200}"
            raise RequestError("PERMISSION_DENIED", message)


def guarded(app: Any, hosts: Hosts) -> Any:
    """Wraps an ASGI application so that it refuses requests to other hosts and adds `SECURITY_HEADERS`."""

    async def guarded_app(scope: Any, receive: Any, send: Any) -> None:
        async def send_secured(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                more = [header for header in SECURITY_HEADERS.items() if header[0] not in names]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        target = scope["raw_path"].decode("latin-1")
        try:
            hosts.check(target, scope["headers"])
        except RequestError as error:
            await _refuse(error, send_secured)
            return
        if not target.startswith(("/", "*")):  # an absolute URL stands for its path
            path = urlsplit(target).path or "/"
            scope = {**scope, "path": unquote(path), "raw_path": path.encode()}
        await app(scope, receive, send_secured)

    return guarded_app


async def _refuse(error: RequestError, send: Any) -> None:
    body = json.dumps({"error": error.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))  # the rest of the request is not read
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def parse_authority(text: str) -> Authority | None:
    """Parses HOST or HOST:PORT, as in URLs and in the header `Host`; returns None for any other text."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{0,5}))?", text.strip(" \t"), re.ASCII)
    if not match:
        return None
    in_brackets, name, port = match.groups()
    if in_brackets and _address(in_brackets) is None:
        return None
    host = _normalized(in_brackets or name)
    return Authority(host, int(port) if port else None) if host else None


def _checked_name(name: str) -> str:
    authority = parse_authority(f"[{name}]" if ":" in name and not name.startswith("[") else name)
    if authority is None or authority.port is not None:
        rule = "allowed_hosts must be names or addresses, such as translate.example, without http:// and port"
        raise ValueError(f"{rule}. Received: allowed_hosts with {name!r}")
    return authority.host


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:  # such as a bracket that is not closed
        return ""


def _normalized(host: str) -> str:
    """Returns a name or an address in the form in which they are compared."""
    host = host.lower().removesuffix(".")
    address = _address(host)
    return host if address is None else str(address)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])  # without the zone, a network interface
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return (host == "localhost" or host.endswith(".localhost")) if address is None else address.is_loopback


def _values(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in headers if name == wanted]


def _with_port(authority: Authority, default: int) -> Authority:
    return Authority(authority.host, authority.port or default)
