"""The ports of a server, reserved before the model is loaded."""

import errno
import socket

OF_THIS_MACHINE = "host must be a name or an address of this machine, such as 127.0.0.1"
RULES = {
    errno.EADDRINUSE: "{} must be free; stop the program that listens there, or give another, 0 for any free one",
    errno.EACCES: "{} must be one that this user may open; give one above 1023",
    errno.EADDRNOTAVAIL: OF_THIS_MACHINE,
    errno.EAFNOSUPPORT: OF_THIS_MACHINE,
}


def reserve(host: str, *, rest_port: int, grpc_port: int) -> list[socket.socket]:
    """Returns a socket bound to each port, 0 for any free one; connections are refused until `listen` opens it."""
    if not host.strip():  # to the system it would mean all addresses
        raise ValueError(f"{OF_THIS_MACHINE}, or 0.0.0.0 to let other machines in. Received: host={host!r}")
    ports = {"rest_port": rest_port, "grpc_port": grpc_port}
    for name, port in ports.items():
        if not 0 <= port <= 65535:
            raise ValueError(f"{name} must be from 0, for any free one, to 65535. Received: {name}={port}")
    if rest_port == grpc_port != 0:
        raise ValueError(f"rest_port and grpc_port must differ. Received: rest_port={rest_port}, grpc_port={grpc_port}")
    opened: list[socket.socket] = []
    try:
        for name, port in ports.items():
            opened.append(_bound(host, name, port))
    except OSError:
        for each in opened:
            each.close()
        raise
    return opened


def listen(bound: socket.socket, host: str, name: str, backlog: int) -> None:
    """Opens a reserved port, given by the argument `name`; raises OSError if another program has opened it."""
    try:
        bound.listen(backlog)
    except OSError as error:
        raise _refused(host, name, bound.getsockname()[1], error) from error


def _bound(host: str, name: str, port: int) -> socket.socket:
    bound = None
    try:
        wanted = socket.AF_INET6 if ":" in host else socket.AF_INET
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, wanted, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that has just ended is free
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        return bound
    except OSError as error:
        if bound is not None:
            bound.close()
        raise _refused(host, name, port, error) from error


def _refused(host: str, name: str, port: int, error: OSError) -> OSError:
    other = OF_THIS_MACHINE if isinstance(error, socket.gaierror) else "{} must be one to listen on"
    rule = RULES.get(error.errno or 0, other).format(name)
    return OSError(f"{rule} ({error.strerror}). Received: {name}={port}, host={host!r}")
