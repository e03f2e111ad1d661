"""One WebSocket client of the driver, which may read slowly."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from stddaq.writing.driver.requester import ANYONE, Requester
from stddaq.writing.driver.status import Client

# If the buffers of the connection hold more than this, messages wait here, where they can be merged.
MAX_UNSENT_BYTES = 64 * 2**10
# A client is disconnected when its replies and changes of state need more: those of hundreds of runs.
MAX_WAITING_BYTES = 4 * 2**20


class Connection(Protocol):
    """The part of a WebSocket connection that a session uses. No method waits."""

    def unsent_bytes(self) -> int:
        """Return how many bytes the client has not taken yet."""
        ...

    def write(self, message: str) -> None:
        """Send a text frame."""
        ...

    def abort(self) -> None:
        """Disconnect without a handshake."""
        ...


class Session(Client):
    """Sends messages at once while the client keeps up. Then replies and the newest of each state wait."""

    def __init__(self, connection: Connection, requester: Requester = ANYONE) -> None:
        self._connection, self.requester = connection, requester
        self._waiting: deque[tuple[object, str]] = deque()
        self._n_waiting_bytes = 0

    def send(self, message: str, state: object = None) -> None:
        self._flush()
        if not self._waiting and self._has_room():
            self._connection.write(message)
            return
        if self._waiting and state is not None and self._waiting[-1][0] == state:
            self._n_waiting_bytes -= len(self._waiting.pop()[1])
        self._waiting.append((state, message))
        self._n_waiting_bytes += len(message)
        if self._n_waiting_bytes > MAX_WAITING_BYTES:
            self._connection.abort()

    def _flush(self) -> None:
        # The next periodic status flushes again, so nothing waits for long.
        while self._waiting and self._has_room():
            _, message = self._waiting.popleft()
            self._n_waiting_bytes -= len(message)
            self._connection.write(message)

    def _has_room(self) -> bool:
        return self._connection.unsent_bytes() <= MAX_UNSENT_BYTES
