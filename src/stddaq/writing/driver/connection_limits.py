"""The limit of WebSocket connections, which reserves descriptors for the writers and the files.

Connections to hosts that have disappeared are closed. Keepalive of TCP finds them while nothing is sent. But
while data, as a status, is unconfirmed, the kernel sends no probes, and repeats the data for a quarter of an
hour. A client that does not read confirms what it receives, and stays connected.

libzmq aborts the process when no descriptor is left for a connection that it accepts
(https://github.com/zeromq/libzmq/issues/1306), so the driver never uses up its descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import struct
from collections import Counter

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

from stddaq.daemon import log

MAX_CONNECTIONS = 1024
# The limit of one host, so that a faulty host leaves room for the others.
MAX_CONNECTIONS_OF_A_HOST = 512
RESERVED_DESCRIPTORS = 128
# asyncio accepts so many in one round of its loop. Those that are too many are closed two rounds later, so
# three times as many have descriptors, beside those that are kept.
ACCEPTED_AT_ONCE = 16
# A host that disappears is noticed after about two minutes.
KEEPALIVE_S, KEEPALIVE_PERIOD_S, KEEPALIVE_PROBES = 60, 15, 4
UNCONFIRMED_S, UNCONFIRMED_PERIOD_S = 120, 5
# struct tcp_info: retransmissions since data was confirmed, ms since anything was.
_RETRANSMISSIONS, _SILENCE_MS, _TCP_INFO_BYTES = 2, 56, 60


class ConnectionLimits:
    """Admits connections. When there are too many, the oldest without a WebSocket handshake is closed."""

    def __init__(self, limit: int | None = None, limit_of_a_host: int = MAX_CONNECTIONS_OF_A_HOST) -> None:
        """`limit` is by default `MAX_CONNECTIONS`, or what the limit of descriptors allows."""
        n_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        allowed = max(8, (n_descriptors - RESERVED_DESCRIPTORS) // 2)
        self._limit = limit or min(MAX_CONNECTIONS, allowed)
        self._limit_of_a_host = min(limit_of_a_host, max(4, self._limit * 3 // 4))
        # In the order of their arrival.
        self._hosts: dict[ServerConnection, str] = {}
        self._n_closed = 0

    def admit(self, connection: ServerConnection) -> None:
        """Count a new connection, and close one if there are too many."""
        _keep_alive(connection.transport)
        host = str((connection.transport.get_extra_info("peername") or ("",))[0])
        self._hosts[connection] = host
        of_host = [other for other, its_host in self._hosts.items() if its_host == host]
        if len(of_host) > self._limit_of_a_host:
            self._close_one(of_host)
        elif len(self._hosts) > self._limit:
            busiest, _ = Counter(self._hosts.values()).most_common(1)[0]
            self._close_one([other for other, its_host in self._hosts.items() if its_host == busiest])

    async def close_vanished(self) -> None:
        """Close connections whose host confirms nothing any more. Does not return."""
        while True:
            await asyncio.sleep(UNCONFIRMED_PERIOD_S)
            for connection in list(self._hosts):
                if _silence(connection.transport) > UNCONFIRMED_S:
                    connection.transport.abort()

    def forget(self, connection: ServerConnection) -> None:
        """Note that a connection was closed."""
        self._hosts.pop(connection, None)

    def _close_one(self, candidates: list[ServerConnection]) -> None:
        """Close the oldest that has not completed its handshake, else the newest."""
        # The newest connection has not had time to send its handshake.
        waiting = (other for other in candidates[:-1] if other.protocol.state is State.CONNECTING)
        closed = next(waiting, candidates[-1])
        host = self._hosts.pop(closed)
        closed.transport.abort()
        self._n_closed += 1
        if self._n_closed & (self._n_closed - 1) == 0:  # The first, second, fourth, ...
            log.logger.warning(
                "%d connections were closed because there are too many, the last one from %s; at most %d, "
                "%d of one host, are kept",
                self._n_closed,
                host,
                self._limit,
                self._limit_of_a_host,
            )


def _silence(transport: asyncio.BaseTransport) -> float:
    """Return for how many seconds the host has not confirmed data that was sent repeatedly."""
    try:
        connection = transport.get_extra_info("socket")
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (OSError, AttributeError):
        return 0.0
    return struct.unpack_from("=I", info, _SILENCE_MS)[0] / 1000 if info[_RETRANSMISSIONS] else 0.0


def _keep_alive(transport: asyncio.BaseTransport) -> None:
    connection = transport.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_PERIOD_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
