"""The previews that this process receives from `std_preview`, each once for all browsers.

There is one subscription for each detector and reduction that a browser shows, and none without browsers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from stddaq.daemon.log import logger
from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.ipc_sockets import CHECK_PERIOD_S, Connection
from stddaq.errors import EndpointError
from stddaq.web.live.pace import Picture
from stddaq.wire.preview import TOPIC_BYTES, split, topic

Receive = Callable[[Picture], None]
# Time that a started preview service has to accept the connection.
_CONNECT_CHECKS = 2


class Feed:
    """The previews of one detector and reduction, from the first browser until the last has left."""

    def __init__(self, context: zmq.Context, detector: str, reducer: str) -> None:
        self.receivers: set[Receive] = set()
        self._detector = detector
        # It keeps the newest message only, so that a slow process never shows an old image.
        self._socket = connections.open_socket(context, zmq.SUB)
        self._socket.conflate = 1
        self._socket.subscribe(topic(reducer))
        self._connection = Connection(self._socket, endpoints.preview(detector))
        self._n_checks, self._loop = 0, asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._timer = self._loop.call_later(CHECK_PERIOD_S, self._check)

    def _read(self) -> None:
        # The descriptor reports only changes: read until nothing is left.
        while messages := self._connection.receive(16):
            try:
                header, payload = split(memoryview(messages[-1])[TOPIC_BYTES:])
            except ValueError as error:
                logger.warning("%s: %s", self._connection.endpoint, error)
                continue
            self._pass_on(Picture(header, payload))

    def _check(self) -> None:
        self._timer = self._loop.call_later(CHECK_PERIOD_S, self._check)
        self._n_checks += 1
        self._connection.check_now()
        self._read()
        if problem := self._problem():
            header = {"v": 1, "detector": self._detector, "error": problem, "code": "no_preview"}
            self._pass_on(Picture(header, memoryview(b"")))

    def _problem(self) -> str:
        if self._connection.problem:
            return self._connection.problem
        for _ in connections.connection_counts(self._connection.monitor):
            pass
        if self._n_checks >= _CONNECT_CHECKS and not connections.connected_processes(
            self._connection.monitor
        ):
            return "std_preview is not running; `stddaq up` starts it, or run `std_preview CONFIG`"
        return ""

    def _pass_on(self, picture: Picture) -> None:
        for receive in list(self.receivers):
            receive(picture)

    def close(self) -> None:
        """End the subscription."""
        self._timer.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.disable_monitor()
        self._socket.close()


class Previews:
    """All feeds of this process."""

    def __init__(self) -> None:
        self._context: zmq.Context | None = None
        self._feeds: dict[tuple[str, str], Feed] = {}

    @contextmanager
    def following(self, detector: str, reducer: str, receive: Receive) -> Iterator[None]:
        """Pass every preview to `receive`. Raise `EndpointError`."""
        key = (detector, reducer)
        feed = self._feeds.get(key)
        if feed is None:
            self._context = self._context or zmq.Context()
            try:
                feed = self._feeds[key] = Feed(self._context, *key)
            except zmq.ZMQError as error:
                raise EndpointError(f"{detector}: cannot receive previews: {error.strerror}") from error
        feed.receivers.add(receive)
        try:
            yield
        finally:
            feed.receivers.discard(receive)
            if not feed.receivers:
                feed.close()
                del self._feeds[key]
