"""Binding and connecting ipc endpoints, with the checks that libzmq does not make.

libzmq removes the file of a running service when another one binds there, and never notices that its own file
was removed: peers that start later do not find the service. A `Binding` refuses the first and mends the
second. A lock shows who has the endpoint even without the file.

libzmq treats a connection that is refused by permission like one to a service that is still to start. A
`Connection` distinguishes the two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import zmq

from stddaq.daemon.forced_exit import before_forced_exit
from stddaq.daemon.log import logger
from stddaq.dataplane import connections
from stddaq.dataplane.local_peers import (
    BIND_CHECK_TIMEOUT_S,
    holder_of,
    path_of,
    permission_problem,
    process_at,
    untrusted,
    untrusted_binder,
)
from stddaq.errors import EndpointError
from stddaq.wire.default_addresses import IPC_DIRECTORY_VARIABLE, ipc_directory

# How often a service checks whether its socket files and segments exist.
CHECK_PERIOD_S = 1.0
# Refused services wait here, because the lock accepts no connections; they need its process id only.
_LOCK_BACKLOG = 128


class Binding:
    """An ipc endpoint that a socket is bound to."""

    def __init__(self, zmq_socket: zmq.Socket, endpoint: str) -> None:
        """Bind, unless another running service has the endpoint. Raise `EndpointError`."""
        self.endpoint = endpoint
        self._socket, self._path = zmq_socket, path_of(endpoint)
        self._check_at, self._problem = 0.0, ""
        self._lock = _lock(endpoint)
        try:
            self._bind()
        except BaseException:
            self._lock.close()
            raise
        self._revoke_clean_up = before_forced_exit(self._remove_file)

    def _bind(self) -> None:
        try:
            holder = holder_of(self._path, BIND_CHECK_TIMEOUT_S)
            if holder is None:
                self._socket.bind(self.endpoint)
                self._inode = _inode(self._path)
        except (OSError, zmq.ZMQError) as error:
            raise EndpointError(f"{self.endpoint}: cannot be bound: {error.strerror}") from error
        if holder is not None:
            raise EndpointError(_taken(self.endpoint, holder))

    def check(self) -> None:
        """Bind again if the socket file was removed or replaced. Call it at least once a second; 0.1 us.

        Connections are not interrupted.
        """
        now = time.monotonic()
        if now < self._check_at:
            return
        self._check_at = now + CHECK_PERIOD_S
        try:
            if _inode(self._path) == self._inode:
                return
            self._bind()
        except OSError as error:
            problem = str(error)
            if problem != self._problem:
                logger.error("the ipc socket was removed, and cannot be bound again: %s", problem)
            self._problem = problem
            return
        self._problem = ""
        logger.warning("the ipc socket %s was removed, bound again", self._path)

    def close(self) -> None:
        """Close the socket and remove its file, which ZeroMQ does not.

        Messages on their way are still delivered, within the socket's linger time.
        """
        # The file first: while the lock is held, no other service binds there and owns the file.
        with contextlib.suppress(OSError):
            self._remove_file()
        self._revoke_clean_up()
        self._socket.close()
        self._lock.close()

    def _remove_file(self) -> None:
        if _inode(self._path) == self._inode:
            self._path.unlink()


class Connection:
    """An ipc endpoint that a socket is connected to, or will be when a trusted service binds there.

    Attributes:
        monitor: of the connections of the socket.
        problem: why this process does not connect, or may not; empty otherwise.
    """

    def __init__(self, zmq_socket: zmq.Socket, endpoint: str, *, lost_too: bool = False) -> None:
        """Connect. `lost_too`: see `connections.untrusted_process`."""
        self.endpoint = endpoint
        self.monitor = connections.watch_connections(zmq_socket)
        self.problem = ""
        self._socket, self._lost_too, self._is_connected = zmq_socket, lost_too, False
        self._check_at = self._connect_at = 0.0
        self.check()

    def check(self) -> None:
        """Check whether to connect, and log a new problem. Call it once a second; 0.1 us."""
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + CHECK_PERIOD_S
            self.check_now()

    def check_now(self) -> str:
        """Check regardless of the time. Return the problem. 10 us."""
        if self.refuse_stranger():
            return self.problem
        problem, refusal = self.problem, untrusted_binder(self.endpoint)
        self._connect(not refusal and time.monotonic() >= self._connect_at)
        self.problem = refusal or permission_problem(self.endpoint)
        if self.problem and self.problem != problem:
            logger.error("%s", self.problem)
        return self.problem

    def receive(self, limit: int, before: Sequence[bytes] = ()) -> list[bytes]:
        """Return the messages that have arrived, at most `limit`, and none of an untrusted process.

        They follow those of `before`, which were received elsewhere since the last call. 2 us, and 0.4 us for
        each.
        """
        messages, receive = list(before), self._socket.recv
        with contextlib.suppress(zmq.Again):
            for _ in range(limit):
                messages.append(receive(zmq.NOBLOCK))
        # After the messages, because libzmq reports a connection before it receives from it.
        return [] if self.refuse_stranger() else messages

    def refuse_stranger(self) -> bool:
        """Disconnect from an untrusted process, until `check` finds another one there. Return whether it did.

        libzmq connects to it milliseconds after the trusted one has left, which is too soon for `check`.
        2 us.
        """
        process = connections.untrusted_process(self.monitor, lost_too=self._lost_too)
        if process:
            self._connect(False)
            connections.forget(self.monitor)
            # Until libzmq has ended the old connection: it would make both, if that one was being renewed.
            self._connect_at = time.monotonic() + CHECK_PERIOD_S
            self.problem = untrusted(self.endpoint, process)
            logger.error("%s", self.problem)
        return bool(process)

    def _connect(self, wanted: bool) -> None:
        if wanted != self._is_connected:
            self._is_connected = wanted
            (self._socket.connect if wanted else self._socket.disconnect)(self.endpoint)


def remove_unused_sockets(detector_name: str) -> None:
    """Remove the socket files of a detector that killed services left."""
    # Not at the top: services do not remove those of others.
    import glob

    for path in ipc_directory().glob(f"{glob.escape(detector_name)}-*"):
        with contextlib.suppress(OSError):
            # A service that binds there at this moment notices it, and binds again.
            if path.is_socket() and holder_of(path, BIND_CHECK_TIMEOUT_S) is None:
                path.unlink()


def _lock(endpoint: str) -> socket.socket:
    """Take the lock of an endpoint, which ends with the process. Raise `EndpointError`."""
    path = path_of(endpoint)
    try:
        directory = path.parent.stat()
    except OSError as error:
        raise EndpointError(f"{endpoint}: cannot be bound: {error.strerror}") from error
    # An abstract address has no file that could be removed. The directory is part of it, because its path may
    # name another one in a container.
    name = os.fsencode(path.name)
    begin = f"\0stddaq-{directory.st_dev:x}-{directory.st_ino:x}-{zlib.crc32(name):08x}-".encode()
    # It holds 108 bytes; the checksum is that of a name which is cut.
    address = (begin + name)[:108]
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        lock.bind(address)
        lock.listen(_LOCK_BACKLOG)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            lock.close()
            raise EndpointError(f"{endpoint}: cannot be bound: {error.strerror}") from error
        holder = "another process"
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0)
            probe.connect(address)
            holder = process_at(probe)
        lock.close()
        raise EndpointError(_taken(endpoint, holder)) from error
    return lock


def _taken(endpoint: str, holder: str) -> str:
    return (
        f"{endpoint}: another running service is bound there, {holder}; stop it, or change detector_name, "
        f"or set {IPC_DIRECTORY_VARIABLE} to run a separate deployment"
    )


def _inode(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file from a later one of its name; None without a file. Raise `OSError`."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
