"""The TCP sockets between the servers: ZeroMQ PUB and SUB, as C++ services have them, without authentication.

Both ends name the other one's connections and losses of connection in the log. Heartbeats, which C++ peers
answer too, detect a peer that hangs, or a cut network, within 1.4 s.
"""

from __future__ import annotations

import time

import zmq

from stddaq.closing import Closing
from stddaq.daemon.log import event, logger
from stddaq.dataplane.connections import (
    connection_counts,
    new_subscriptions,
    open_socket,
    watch_connections,
    watch_for_hanging_peers,
)
from stddaq.errors import EndpointError
from stddaq.text import bind_error_text

# Bytes that wait on each side of a connection to a receiver that is slow or hangs; more are dropped.
MAX_QUEUED_BYTES = 256 * 2**20
MAX_QUEUED_MESSAGES = 1000
MIN_QUEUED_MESSAGES = 2
CLOSE_TIMEOUT_MS = 1000


class _NetworkSocket(Closing):
    """A socket, its context, and the monitor of its connections.

    Attributes:
        monitor: becomes readable when `check` has something to log.
    """

    def __init__(self, kind: int, address: str, peer: str) -> None:
        self.address, self._peer = address, peer
        self._context = zmq.Context()
        self.socket = open_socket(self._context, kind)
        watch_for_hanging_peers(self.socket)
        self.monitor = watch_connections(self.socket)
        self.n_connected = 0

    def check(self) -> None:
        """Log connections and losses of connection since the last call. 1 us if there are none."""
        for n_connected in connection_counts(self.monitor):
            lost, self.n_connected = n_connected < self.n_connected, n_connected
            if lost:
                logger.warning(
                    "%s: a %s has disconnected, %d connected", self.address, self._peer, n_connected
                )
            else:
                event("%s: a %s has connected, %d connected", self.address, self._peer, n_connected)

    def _fail(self, error: zmq.ZMQError, action: str) -> EndpointError:
        self._context.destroy(linger=0)
        reason = bind_error_text(error)
        return EndpointError(f"{self.address}: cannot be {action}: {reason}")

    def close(self) -> None:
        """Deliver messages on their way, for up to a second, and disconnect."""
        self.socket.disable_monitor()
        self._context.destroy(linger=CLOSE_TIMEOUT_MS)


class NetworkPublisher(_NetworkSocket):
    """Binds PUB for receivers on other servers.

    Attributes:
        n_subscribers: as of the last `count_subscribers`.
    """

    def __init__(self, address: str, message_bytes: int, most: int = MAX_QUEUED_MESSAGES) -> None:
        """Queue at most `most` messages of this size for each receiver. Raise `EndpointError`."""
        # To subscribers an XPUB is a PUB; it also receives the subscriptions.
        super().__init__(zmq.XPUB, address, "receiver")
        self.n_subscribers = 0
        self.socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self.socket.sndhwm = _queue_limit(message_bytes, most)
        # A number per message, from the clock so that none is used again after a restart.
        self._message = time.time_ns() // 1000
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            raise self._fail(error, "bound") from error

    def count_subscribers(self) -> int:
        """Read the subscriptions that have arrived, and return how many there are."""
        self.n_subscribers += new_subscriptions(self.socket)
        return self.n_subscribers

    def next_message(self) -> int:
        """Return the running number of the next message."""
        self._message += 1
        return self._message


class NetworkSubscriber(_NetworkSocket):
    """Connects SUB to the publisher on another server."""

    def __init__(self, address: str, message_bytes: int, most: int = MAX_QUEUED_MESSAGES) -> None:
        """Queue at most `most` messages of this size. The publisher may start later.

        Raise `EndpointError` for an address that cannot be used.
        """
        super().__init__(zmq.SUB, address, "sender")
        self.socket.rcvhwm = _queue_limit(message_bytes, most)
        self.socket.subscribe(b"")
        try:
            self.socket.connect(address)
        except zmq.ZMQError as error:
            raise self._fail(error, "connected to") from error


def _queue_limit(message_bytes: int, most: int) -> int:
    """Return how many messages of this size may wait."""
    return min(max(MAX_QUEUED_BYTES // max(1, message_bytes), MIN_QUEUED_MESSAGES), most)
