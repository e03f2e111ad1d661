"""Publishes the lines of all services for the page of `stddaq-rest`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque

import zmq

from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.wire.events import Level, event_of

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
        # A subscriber receives nothing before the last lines, which it would ignore after a newer one.
        self._socket.setsockopt(zmq.XPUB_MANUAL, 1)
        try:
            self._binding = Binding(self._socket, endpoints.events(detector_name))
        except BaseException:
            self._socket.close(0)
            raise
        self._epoch, self._seq = time.time_ns(), 0
        self._recent: deque[bytes] = deque(maxlen=BACKLOG)

    def publish(self, line: str, service: str, instance_id: str = "", level: Level = "info") -> None:
        """Publish a line of a service. `level`: of a line that does not have its own."""
        self._seq += 1
        message = event_of(line, self._epoch, self._seq, service, instance_id, level).encode()
        self._recent.append(message)
        self._send(message)

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(zmq.Again):
            self._socket.send(message, zmq.NOBLOCK)

    async def serve(self) -> None:
        """Send the last lines to new subscribers; others ignore what they have. Does not return."""
        while True:
            self._binding.check()
            if self._accepts_subscribers():
                for message in tuple(self._recent):
                    self._send(message)
            await asyncio.sleep(CHECK_S)

    def _accepts_subscribers(self) -> bool:
        """Take the subscriptions and their ends. Return whether there is a new subscriber."""
        found = False
        with contextlib.suppress(zmq.Again):
            while True:
                message = self._socket.recv(zmq.NOBLOCK)
                if message[:1] == b"\x01":
                    found = True
                    self._socket.setsockopt(zmq.SUBSCRIBE, message[1:])
                elif message[:1] == b"\x00":
                    self._socket.setsockopt(zmq.UNSUBSCRIBE, message[1:])
        return found

    def close(self) -> None:
        """Remove the endpoint."""
        self._binding.close()
        self._context.term()
