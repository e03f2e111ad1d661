"""Names of the ipc sockets, and binding them without taking them from a service that is alive.

The directory is /tmp by the std_daq contract; the environment variable STDDAQ_IPC_DIR moves it, for
several deployments side by side.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import zmq

from stddaq.errors import EndpointError

IPC_DIRECTORY_VARIABLE = "STDDAQ_IPC_DIR"
# sun_path holds 108 bytes with its terminating zero.
MAX_PATH_BYTES = 107
# Messages that a sender queues for a peer. One that is so far behind has lost its images in the ring anyway.
QUEUE_LIMIT = 100_000
# Messages that a receiver queues, about 200 MB. Larger than what can gather by any means short of a defect:
# libzmq 4.3.5 aborts the process when a connection breaks whose receiver had stopped reading at its limit:
# https://github.com/zeromq/libzmq/issues/3937, https://github.com/zeromq/libzmq/issues/4767
RECEIVE_LIMIT = 1_000_000
# A peer that hangs as a whole process (SIGSTOP, a dead host) is found within their sum.
HEARTBEAT_INTERVAL_MS = 400
HEARTBEAT_TIMEOUT_MS = 1000
# First frame of a message of a monitor, see zmq_socket_monitor(3): what happened, to which descriptor.
_MONITOR_EVENT = struct.Struct("=Hi")


def ipc_directory() -> Path:
    """Where the ipc sockets of this deployment are."""
    return Path(os.environ.get(IPC_DIRECTORY_VARIABLE) or "/tmp")


def ipc_endpoint(name: str) -> str:
    """The ZeroMQ endpoint of the ipc socket `name`. Raises `EndpointError` when the path is too long."""
    path = ipc_directory() / name
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise EndpointError(
            f"ipc socket {path}: found a path of {len(os.fsencode(path))} bytes, "
            f"allowed are {MAX_PATH_BYTES}; "
            f"shorten detector_name or {IPC_DIRECTORY_VARIABLE}"
        )
    return f"ipc://{path}"


def metadata_stream(detector_name: str, suffix: str) -> str:
    """Where the producer of `suffix` publishes one `ImageMetadata` per image."""
    return ipc_endpoint(f"{detector_name}-{suffix}")


def driver_to_writer(detector_name: str, writer: int | str) -> str:
    """Where the driver pushes `WriterAction` to a writer: its number, or `meta`."""
    return ipc_endpoint(f"{detector_name}-driver-{writer}")


def writer_to_driver(detector_name: str, writer: int | str) -> str:
    """Where a writer, its number or `meta`, pushes `WriterResponse` to the driver."""
    return ipc_endpoint(f"{detector_name}-writer-{writer}")


def software_trigger(detector_name: str) -> str:
    """Where a simulator takes software triggers (REP, JSON)."""
    return ipc_endpoint(f"{detector_name}-trigger")


def bind(zmq_socket: zmq.Socket, endpoint: str) -> None:
    """Bind an ipc endpoint, unless a living process listens there.

    ZeroMQ itself would remove the other's socket file and take over, unnoticed by both.
    Raises `EndpointError`.
    """
    path = endpoint.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            pass  # Nobody, or the file that a killed service left behind.
        except OSError as error:
            raise EndpointError(f"{endpoint}: cannot be bound: {error.strerror}") from error
        else:
            raise EndpointError(
                f"{endpoint}: another running service is bound there; stop it, or change detector_name, "
                f"or set {IPC_DIRECTORY_VARIABLE} for a deployment of its own"
            )
    try:
        zmq_socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise EndpointError(f"{endpoint}: cannot be bound: {error.strerror}") from error


def unbind(zmq_socket: zmq.Socket, endpoint: str) -> None:
    """Close a socket that `bind` has bound, and remove its file, which ZeroMQ leaves behind.

    What is already on its way is still delivered, for as long as the socket lingers.
    """
    # The file first: as long as the socket listens, nobody else binds there whose file this could be.
    Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
    zmq_socket.close()


def somebody_listens(endpoint: str) -> bool:
    """Whether a process accepts connections at an ipc endpoint."""
    path = endpoint.removeprefix("ipc://")
    if not Path(path).exists():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.1)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


@dataclass(slots=True)
class _Connections:
    """Descriptors of the connections of a socket: with a peer, and on their way to one."""

    made: set[int] = field(default_factory=set)
    begun: list[int] = field(default_factory=list)
    n_unnamed: int = 0
    """Made, but their beginning is yet to be told: by another thread, if the context has several."""

    @property
    def count(self) -> int:
        """Connections with a peer."""
        return len(self.made) + self.n_unnamed


# Whoever knocks and goes away again (our own `bind`, a stranger) is no peer, and its going no loss of one.
_connections: WeakKeyDictionary[zmq.Socket, _Connections] = WeakKeyDictionary()


def watch_connection(zmq_socket: zmq.Socket) -> zmq.Socket:
    """A monitor of the socket's connections; `connection_changes` reads it."""
    monitor = zmq_socket.get_monitor_socket(
        zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
    )
    _connections[monitor] = _Connections()
    return monitor


def connection_changes(monitor: zmq.Socket) -> Iterator[bool]:
    """What happened since the last call: True for a connection made, False for one lost. 1 us if nothing.

    When one of several is lost, True follows for those that are left; `connection_counts` says how many.
    """
    before = _connections[monitor].count
    for now in connection_counts(monitor):
        is_lost, before = now < before, now
        if is_lost:
            yield False
        if now or not is_lost:
            yield True


def connection_counts(monitor: zmq.Socket) -> Iterator[int]:
    """How many connections there are, after each that was made or lost since the last call."""
    while cast(int, monitor.get(zmq.EVENTS)) & zmq.POLLIN:
        # pyzmq's own decoder brings asyncio with it, a tenth of a writer's start.
        event, descriptor = _MONITOR_EVENT.unpack(monitor.recv_multipart(zmq.NOBLOCK)[0])
        known = _connections[monitor]
        if event in (zmq.EVENT_ACCEPTED, zmq.EVENT_CONNECTED):
            if known.n_unnamed:
                known.n_unnamed -= 1
                known.made.add(descriptor)
            else:
                known.begun.append(descriptor)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            # It does not say of which: the latest, for a handshake takes less than a millisecond.
            if known.begun:
                known.made.add(known.begun.pop())
            else:
                known.n_unnamed += 1
            yield known.count
        elif descriptor in known.made:
            known.made.remove(descriptor)
            yield known.count
        elif descriptor in known.begun:
            known.begun.remove(descriptor)


def open_socket(context: zmq.Context, kind: int) -> zmq.Socket:
    """A socket with the project's limits: bounded queues, no lingering, quick reconnects."""
    zmq_socket = context.socket(kind)
    zmq_socket.linger = 0
    zmq_socket.sndhwm = QUEUE_LIMIT
    zmq_socket.rcvhwm = RECEIVE_LIMIT
    zmq_socket.reconnect_ivl = 20
    zmq_socket.reconnect_ivl_max = 200
    return zmq_socket


def watch_for_hanging_peers(zmq_socket: zmq.Socket) -> None:
    """Drop the connection to a peer that hangs. Call it before `bind` or `connect`.

    Only for sockets that send: a receiver at its limit does not read the answers to its heartbeats, and
    would drop a healthy connection.
    """
    zmq_socket.heartbeat_ivl = HEARTBEAT_INTERVAL_MS
    zmq_socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS
