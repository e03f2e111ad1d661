"""ZeroMQ sockets with the project's limits, and the connections that they have."""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import zmq

from stddaq.dataplane.local_peers import peer_of, untrusted_peer_of

# Messages that a sender queues for a peer. The images of a peer this late are overwritten in the ring anyway.
QUEUE_LIMIT = 100_000
# Messages that a receiver queues, about 200 MB; only a defect fills it. libzmq 4.3.5 aborts the process when
# a connection breaks whose receiver had stopped at its limit: https://github.com/zeromq/libzmq/issues/3937
RECEIVE_LIMIT = 1_000_000
# A peer that hangs as a whole process (SIGSTOP, a dead host) is detected within the sum of the two.
HEARTBEAT_INTERVAL_MS = 400
HEARTBEAT_TIMEOUT_MS = 1000
MAX_COUNTS = 1000
MAX_SUBSCRIPTIONS_READ = 1000
# First frame of a message of a monitor, see zmq_socket_monitor(3): an event and a descriptor.
_MONITOR_EVENT = struct.Struct("=Hi")


def open_socket(context: zmq.Context, kind: int) -> zmq.Socket:
    """Return a socket with the project's limits: bounded queues, no linger, quick reconnects."""
    zmq_socket = context.socket(kind)
    zmq_socket.linger = 0
    zmq_socket.sndhwm = QUEUE_LIMIT
    zmq_socket.rcvhwm = RECEIVE_LIMIT
    zmq_socket.reconnect_ivl = 20
    zmq_socket.reconnect_ivl_max = 200
    return zmq_socket


def has_message(zmq_socket: zmq.Socket) -> bool:
    """Return whether a message has arrived at a socket. With cold caches 30 us; `zmq.Again` takes 95 us."""
    return bool(zmq.zmq_poll([(zmq_socket, zmq.POLLIN)], 0))


def watch_for_hanging_peers(zmq_socket: zmq.Socket) -> None:
    """Close the connection to a peer that hangs. Call it before `bind` or `connect`.

    Only for sockets that send: a receiver at its limit does not read the answers to its heartbeats, and
    would close a healthy connection.
    """
    zmq_socket.heartbeat_ivl = HEARTBEAT_INTERVAL_MS
    zmq_socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS


@dataclass(slots=True)
class _Connections:
    """Descriptors of the connections of a socket: established with a peer, and started."""

    established: set[int] = field(default_factory=set)
    started: list[int] = field(default_factory=list)
    n_unnamed: int = 0
    """Established, but the event of their start is still to come, from another thread of the context."""
    counts: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_COUNTS))
    """After each change that `connection_counts` has not yielded yet; many services never call it."""
    n_yielded: int = 0
    """The last count that it has yielded."""
    trusted: set[int] = field(default_factory=set)
    """Those that `untrusted_process` has looked at."""
    n_forgotten: int = 0
    """Started before `forget`; their handshake may still be reported."""
    has_lost_unseen: bool = False
    """One was established and lost between two looks of `untrusted_process`."""

    @property
    def count(self) -> int:
        """Established connections."""
        return len(self.established) + self.n_unnamed


# Connections that close before the ZMTP handshake (as of a `Binding` that checks) are not counted as peers.
_connections: WeakKeyDictionary[zmq.Socket, _Connections] = WeakKeyDictionary()


def watch_connections(zmq_socket: zmq.Socket) -> zmq.Socket:
    """Return a monitor of the socket's connections; `connection_changes` reads it."""
    monitor = zmq_socket.get_monitor_socket(
        zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
    )
    _connections[monitor] = _Connections()
    return monitor


def connection_changes(monitor: zmq.Socket) -> Iterator[bool]:
    """Yield what happened since the last call: True for a new connection, False for a lost one. 1 us if none.

    When one of several is lost, True follows for those that are left; `connection_counts` yields how many.
    """
    before = _connections[monitor].n_yielded
    for now in connection_counts(monitor):
        is_lost, before = now < before, now
        if is_lost:
            yield False
        if now or not is_lost:
            yield True


def new_subscriptions(socket: zmq.Socket) -> int:
    """Read what subscribers have sent to an XPUB socket. Return by how many their number has grown.

    It reads `MAX_SUBSCRIPTIONS_READ` messages at most, so a peer that sends them without end delays nothing
    else.
    """
    n_more = 0
    for _ in range(MAX_SUBSCRIPTIONS_READ):
        try:
            message = socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            break
        # 1: a subscription, 0: its end; a topic follows if the images are not wanted. Anything else is a
        # message of the peer's own.
        n_more += {b"\1": 1, b"\0": -1}.get(message, 0)
    return n_more


def connection_counts(monitor: zmq.Socket) -> Iterator[int]:
    """Yield the number of connections after each one that was established or lost since the last call."""
    _read_events(monitor)
    known = _connections[monitor]
    while known.counts:
        known.n_yielded = known.counts.popleft()
        yield known.n_yielded


def _read_events(monitor: zmq.Socket) -> None:
    known = _connections[monitor]
    while has_message(monitor):
        # pyzmq's own decoder imports asyncio, a tenth of a writer's start.
        event, descriptor = _MONITOR_EVENT.unpack(monitor.recv_multipart(zmq.NOBLOCK)[0])
        if event in (zmq.EVENT_ACCEPTED, zmq.EVENT_CONNECTED):
            if known.n_unnamed:
                known.n_unnamed -= 1
                known.established.add(descriptor)
            else:
                known.started.append(descriptor)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            # The event does not name the connection: the latest, because a handshake takes less than 1 ms.
            if known.started:
                known.established.add(known.started.pop())
            elif known.n_forgotten:
                known.n_forgotten -= 1
                continue
            else:
                known.n_unnamed += 1
            known.counts.append(known.count)
        elif descriptor in known.established:
            known.established.remove(descriptor)
            known.has_lost_unseen |= descriptor not in known.trusted
            known.trusted.discard(descriptor)
            known.counts.append(known.count)
        elif descriptor in known.started:
            known.started.remove(descriptor)


def untrusted_process(monitor: zmq.Socket, *, lost_too: bool) -> str:
    """Return a process of another user that an ipc socket is connected to, in words; empty if none. 2 us.

    The connections are those of now: those of all messages that the socket has received. With `lost_too`, one
    that was established and lost since the last call counts: nothing tells who has sent its messages.
    """
    _read_events(monitor)
    known = _connections[monitor]
    is_lost, known.has_lost_unseen = known.has_lost_unseen, False
    for descriptor in {*known.established, *known.started} - known.trusted:
        with contextlib.suppress(OSError):  # Just disconnected.
            if process := untrusted_peer_of(descriptor):
                return process
            known.trusted.add(descriptor)
    return "a process that has disconnected" if is_lost and lost_too else ""


def forget(monitor: zmq.Socket) -> None:
    """Note that the socket was disconnected: libzmq does not report the end of its connections then."""
    known = _connections[monitor]
    known.n_forgotten += len(known.started)
    known.established.clear()
    known.started.clear()
    known.trusted.clear()
    known.n_unnamed, known.has_lost_unseen = 0, False
    known.counts.append(0)


def connected_processes(monitor: zmq.Socket) -> list[str]:
    """Return the processes that are connected to an ipc socket, in words, as of the last count."""
    found: list[str] = []
    for descriptor in _connections[monitor].established:
        with contextlib.suppress(OSError):  # Just disconnected.
            found.append(peer_of(descriptor))
    return sorted(found)
