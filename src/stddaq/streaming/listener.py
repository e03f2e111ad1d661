"""The TCP side of a live stream: the listening socket, and the options of accepted connections."""

from __future__ import annotations

import os
import socket

from stddaq.errors import EndpointError
from stddaq.text import bind_error_text, mismatch

# A viewer whose host disappears is noticed after about a minute.
KEEPALIVE_S, KEEPALIVE_PROBES = 30, 4
_BACKLOG = 100


def listen(address: str) -> socket.socket:
    """Return a non-blocking socket that listens at `tcp://HOST:PORT`. Raise `EndpointError`."""
    host, port = _host_and_port(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            # As bytes: for text Python loads tables of international names, 0.3 MB.
            None if host == "*" else os.fsencode(host),
            port,
            type=socket.SOCK_STREAM,
            family=socket.AF_INET if host == "*" else socket.AF_UNSPEC,
            flags=socket.AI_PASSIVE,
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise EndpointError(f"{address}: cannot be bound: {bind_error_text(error)}") from error
    listener.setblocking(False)
    return listener


def _host_and_port(address: str) -> tuple[str, int]:
    scheme, _, place = address.partition("://")
    host, _, port = place.rpartition(":")
    if scheme != "tcp" or not host or not port.isdecimal() or int(port) > 65535:
        raise EndpointError(mismatch("stream_address", "tcp://HOST:PORT", address))
    return host.strip("[]"), int(port)


def prepare(connection: socket.socket) -> None:
    """Set the options of an accepted connection: non-blocking, without delay, with keepalive."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S // KEEPALIVE_PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
