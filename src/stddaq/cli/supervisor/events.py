"""Publishes the lines of all services for the page of `stddaq-rest`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque

import zmq

from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.wire.events import event_of

# New subscribers receive the last lines, because services print before `stddaq-rest` has started.
BACKLOG = 500
# Messages that wait for a subscriber that does not read; the next ones are dropped.
MAX_QUEUED = 2000
CHECK_S = 0.25


class EventPublisher:
    """The events of one `stddaq up`. Publishing never blocks."""

    def __init__(self, detector_name: str) -> None:
        """Bind the endpoint. Raise `EndpointError`."""
        self._context = zmq.Context()
        self._socket = connections.open_socket(self._context, zmq.XPUB)
        self._socket.sndhwm = MAX_QUEUED
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        try:
            self._binding = Binding(self._socket, endpoints.events(detector_name))
        except BaseException:
            self._socket.close(0)
            raise
        self._epoch, self._seq = time.time_ns(), 0
        self._recent: deque[bytes] = deque(maxlen=BACKLOG)

    def publish(self, line: str, service: str, instance_id: str = "") -> None:
        """Publish a line of a service."""
        self._seq += 1
        message = event_of(line, self._epoch, self._seq, service, instance_id).encode()
        self._recent.append(message)
        self._send(message)

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(zmq.Again):
            self._socket.send(message, zmq.NOBLOCK)

    async def serve(self) -> None:
        """Send the last lines to new subscribers; others ignore what they have. Does not return."""
        while True:
            self._binding.check()
            if self._has_new_subscriber():
                for message in tuple(self._recent):
                    self._send(message)
            await asyncio.sleep(CHECK_S)

    def _has_new_subscriber(self) -> bool:
        found = False
        with contextlib.suppress(zmq.Again):
            while True:
                found |= self._socket.recv(zmq.NOBLOCK).startswith(b"\x01")
        return found

    def close(self) -> None:
        """Remove the endpoint."""
        self._binding.close()
        self._context.term()
