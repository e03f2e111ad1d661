"""The events of the services, received from `stddaq up` and kept for browsers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import zmq

from stddaq.daemon.log import logger
from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.ipc_sockets import CHECK_PERIOD_S, Connection
from stddaq.errors import EndpointError
from stddaq.wire.events import LEVELS, Event, Level, parse_event

KEPT = 2000
# Events that wait for a browser that does not read; older ones are dropped and counted.
MAX_WAITING = 500
READ_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event of a detector, numbered by this service."""

    seq: int
    detector: str
    event: Event


class Watcher:
    """The events that one browser has not received yet.

    Attributes:
        n_dropped: events that it will not receive.
    """

    def __init__(self, events: Sequence[KeptEvent]) -> None:
        self._waiting = deque(events, maxlen=MAX_WAITING)
        self.n_dropped, self.arrived = 0, asyncio.Event()
        if events:
            self.arrived.set()

    def put(self, event: KeptEvent) -> None:
        """Add an event."""
        self.n_dropped += len(self._waiting) == MAX_WAITING
        self._waiting.append(event)
        self.arrived.set()

    def take(self) -> list[KeptEvent]:
        """Return all events that wait."""
        found = list(self._waiting)
        self._waiting.clear()
        self.arrived.clear()
        return found


class Events:
    """The last events of all detectors.

    Attributes:
        n_dropped: events that did not arrive here, known from their numbers.
    """

    def __init__(self) -> None:
        self.n_dropped = 0
        self._kept: deque[KeptEvent] = deque(maxlen=KEPT)
        self._n, self._watchers = 0, set[Watcher]()

    def note(self, detector: str, event: Event) -> None:
        """Keep an event and pass it to all watchers."""
        self._n += 1
        kept = KeptEvent(self._n, detector, event)
        self._kept.append(kept)
        for watcher in self._watchers:
            watcher.put(kept)

    def since(self, seq: int, level: Level, limit: int) -> list[KeptEvent]:
        """Return the newest `limit` events after `seq` that are at least as severe as `level`."""
        lowest = LEVELS.index(level)
        found = [e for e in self._kept if e.seq > seq and LEVELS.index(e.event.level) >= lowest]
        return found[-limit:]

    @contextmanager
    def watching(self, since: int) -> Iterator[Watcher]:
        """Return a watcher of the events after `since`; of all if `since` is of an earlier start."""
        watcher = Watcher(self.since(since if since <= self._n else 0, "debug", MAX_WAITING))
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    async def follow(self, detector: str) -> None:
        """Receive the events of a detector. Does not return."""
        context = zmq.Context()
        zmq_socket = connections.open_socket(context, zmq.SUB)
        zmq_socket.subscribe(b"")
        try:
            await self._receive(detector, Connection(zmq_socket, endpoints.events(detector)))
        except (EndpointError, zmq.ZMQError) as error:
            logger.warning("no events of %s: %s", detector, error)
        finally:
            # The connection has sockets of its own in it.
            context.destroy(linger=0)

    async def _receive(self, detector: str, connection: Connection) -> None:
        numbers = Numbers()
        while True:
            connection.check()
            while messages := connection.receive(READ_AT_ONCE):
                for message in messages:
                    self._take(detector, message, numbers)
                await asyncio.sleep(0)
            await asyncio.sleep(min(0.2, CHECK_PERIOD_S))

    def _take(self, detector: str, message: bytes, numbers: Numbers) -> None:
        try:
            event = parse_event(message)
        except (ValueError, TypeError, RecursionError) as error:
            logger.warning("an event of %s is not valid: %s", detector, error)
            return
        n_dropped = numbers.n_dropped_before(event)
        if n_dropped is not None:
            self.n_dropped += n_dropped
            self.note(detector, event)


class Numbers:
    """The numbers of the events of one detector."""

    def __init__(self) -> None:
        self._epoch = self._seq = 0

    def n_dropped_before(self, event: Event) -> int | None:
        """Return how many events are missing before this one; None if it has been received already."""
        if event.epoch != self._epoch:
            self._epoch, self._seq = event.epoch, event.seq
            return 0
        if event.seq <= self._seq:
            return None
        n_dropped = event.seq - self._seq - 1
        self._seq = event.seq
        return n_dropped
