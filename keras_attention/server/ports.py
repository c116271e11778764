"""The ports of a server, reserved before the work that takes time."""

import errno
import socket

OF_THIS_MACHINE = "host must be a name or an address of this machine, such as 127.0.0.1"
RULES = {
    errno.EADDRINUSE: "{} must be free; end what listens there, or give another, 0 for any free one",
    errno.EACCES: "{} must be one that this user may open; give one above 1023",
    errno.EADDRNOTAVAIL: OF_THIS_MACHINE,
    errno.EAFNOSUPPORT: OF_THIS_MACHINE,
}


def reserve(host: str, *, rest_port: int, grpc_port: int) -> list[socket.socket]:
    """Reserves the ports of a server: until it listens, a caller's connection is refused.

    Args:
        host: Where it is to listen.
        rest_port: The port of REST; 0 is any free one.
        grpc_port: The port of gRPC; 0 is any free one.

    Returns:
        A socket for each.

    Raises:
        ValueError: If the host is empty, a port is out of range, or both are the same.
        OSError: If a port is taken or not allowed, or the host is not this machine.
    """
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
    """Opens a reserved port.

    Args:
        bound: Its socket.
        host: Where the server listens.
        name: The argument that gave the port.
        backlog: Connections that may wait until they are taken.

    Raises:
        OSError: If another program opened the port in the meantime.
    """
    try:
        bound.listen(backlog)
    except OSError as error:
        raise _refused(host, name, bound.getsockname()[1], error) from error


def _bound(host: str, name: str, port: int) -> socket.socket:
    found = None
    try:
        wanted = socket.AF_INET6 if ":" in host else socket.AF_INET
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, wanted, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that ended just now is in the way
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind(address)
        return found
    except OSError as error:
        if found is not None:
            found.close()
        raise _refused(host, name, port, error) from error


def _refused(host: str, name: str, port: int, error: OSError) -> OSError:
    other = OF_THIS_MACHINE if isinstance(error, socket.gaierror) else "{} must be one to listen on"
    rule = RULES.get(error.errno or 0, other).format(name)
    return OSError(f"{rule} ({error.strerror}). Received: {name}={port}, host={host!r}")
