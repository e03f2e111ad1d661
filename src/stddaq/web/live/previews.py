"""The previews that this process receives from `std_preview`, each once for all browsers.

There is one subscription for each stream and view that a browser shows, and none without browsers. What
browsers ask of images, numbers of regions and single images, is another one for each stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import zmq

from stddaq.config import DetectorConfig
from stddaq.config.services import previewed_streams
from stddaq.daemon.log import logger
from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.ipc_sockets import CHECK_PERIOD_S, Connection
from stddaq.dataplane.local_peers import path_of
from stddaq.dataplane.metadata import COMPRESSION_OF_SUFFIX, RING_OF_STREAM
from stddaq.errors import EndpointError
from stddaq.text import mismatch
from stddaq.text import shown as shown_text
from stddaq.web.errors import RequestInvalidError
from stddaq.web.live.pace import Picture
from stddaq.wire.preview import split
from stddaq.wire.preview_requests import WHOLE, Area, Content, Region, Still, View, frame_of, topic

Receive = Callable[[Picture], None]
_OTHER_STREAMS = (*RING_OF_STREAM, *COMPRESSION_OF_SUFFIX)
# Time that a started preview service has to accept the connection.
_CONNECT_CHECKS = 2
STILL_TIMEOUT_S = 10.0


class Shown(NamedTuple):
    """A stream of images that browsers show."""

    detector: str
    stream: str


class _Channel:
    """A socket to the preview service. `on_message` receives topic and picture."""

    def __init__(
        self,
        context: zmq.Context,
        shown: Shown,
        on_message: Callable[[bytes, Picture], None],
        *,
        newest: bool,
    ) -> None:
        """With `newest`, the socket keeps the newest message only."""
        self.shown, self._on_message = shown, on_message
        self.socket = connections.open_socket(context, zmq.SUB)
        self.socket.conflate = newest
        self._connection = Connection(self.socket, endpoints.preview(*shown))
        self._n_checks, self._loop = 0, asyncio.get_running_loop()
        self._loop.add_reader(self.socket.fileno(), self.read)
        self._timer = self._loop.call_later(CHECK_PERIOD_S, self._check)

    def read(self) -> None:
        """Pass on what has arrived. The descriptor reports only changes: read until nothing is left."""
        while messages := self._connection.receive(16):
            for message in messages:
                try:
                    request, frame = frame_of(memoryview(message))
                    header, payload = split(frame)
                except ValueError as error:
                    logger.warning("%s: %s", self._connection.endpoint, error)
                    continue
                self._on_message(request, Picture(header, payload))

    def _check(self) -> None:
        self._timer = self._loop.call_later(CHECK_PERIOD_S, self._check)
        self._n_checks += 1
        self._connection.check_now()
        self.read()
        if problem := self.problem():
            header = {"v": 1, "detector": self.shown.detector, "error": problem, "code": "no_preview"}
            self._on_message(b"", Picture(header, memoryview(b"")))

    def problem(self) -> str:
        """Return why nothing arrives; empty if that is not known."""
        if self._connection.problem:
            return self._connection.problem
        for _ in connections.connection_counts(self._connection.monitor):
            pass
        if self._n_checks >= _CONNECT_CHECKS and not connections.connected_processes(
            self._connection.monitor
        ):
            option = "" if self.shown.stream == "image" else f" -s {self.shown.stream}"
            command = f"std_preview{option}"
            return f"{command} is not running; `stddaq up` starts it, or run `{command} CONFIG`"
        return ""

    def close(self) -> None:
        """Withdraw all requests."""
        self._timer.cancel()
        self._loop.remove_reader(self.socket.fileno())
        self.socket.disable_monitor()
        self.socket.close()


class Feed:
    """The images of one view of a stream, from the first browser until the last has left."""

    def __init__(self, context: zmq.Context, shown: Shown, view: View) -> None:
        self.receivers: set[Receive] = set()
        # A slow process never shows an old image.
        self._channel = _Channel(context, shown, self._pass_on, newest=True)
        self._channel.socket.subscribe(topic(view))

    def _pass_on(self, _topic: bytes, picture: Picture) -> None:
        for receive in list(self.receivers):
            receive(picture)

    def close(self) -> None:
        """End the subscription."""
        self._channel.close()


class Requests:
    """Regions and single images of a stream, until nothing is wanted."""

    def __init__(self, context: zmq.Context, shown: Shown) -> None:
        self.n_users = 0
        self._channel = _Channel(context, shown, self._answer, newest=False)
        self._waiting: dict[bytes, asyncio.Future[Picture]] = {}

    @contextmanager
    def subscribed(self, request: Region | Still) -> Iterator[None]:
        """Keep up a request. ZeroMQ counts equal ones."""
        self._channel.socket.subscribe(topic(request))
        try:
            yield
        finally:
            self._channel.socket.unsubscribe(topic(request))

    async def still(self, request: Still) -> Picture:
        """Return the answer to a request. Raise `TimeoutError`."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting[topic(request)] = answer
        try:
            with self.subscribed(request):
                async with asyncio.timeout(STILL_TIMEOUT_S):
                    return await answer
        finally:
            del self._waiting[topic(request)]

    def _answer(self, request: bytes, picture: Picture) -> None:
        # A problem of the connection concerns all.
        for key in [request] if request else list(self._waiting):
            answer = self._waiting.get(key)
            if answer is not None and not answer.done():
                answer.set_result(picture)

    def close(self) -> None:
        """Withdraw all requests."""
        self._channel.close()


class Previews:
    """All feeds and requests of this process."""

    def __init__(self) -> None:
        self._context: zmq.Context | None = None
        self._feeds: dict[tuple[Shown, View], Feed] = {}
        self._requests: dict[Shown, Requests] = {}
        # Several services may ask one preview service.
        self._numbers = itertools.count(os.getpid() << 32)

    @contextmanager
    def following(self, shown: Shown, view: View, receive: Receive) -> Iterator[None]:
        """Pass every preview to `receive`. Raise `EndpointError`."""
        key = (shown, view)
        feed = self._feeds.get(key)
        if feed is None:
            with _opening(shown.detector):
                feed = self._feeds[key] = Feed(self._shared_context(), *key)
        feed.receivers.add(receive)
        try:
            yield
        finally:
            feed.receivers.discard(receive)
            if not feed.receivers:
                feed.close()
                del self._feeds[key]

    @contextmanager
    def measuring(self, shown: Shown, regions: list[Region]) -> Iterator[None]:
        """Have the numbers of regions in the headers. Raise `EndpointError`."""
        with self._requesting(shown) as requests, contextlib.ExitStack() as stack:
            for region in regions:
                stack.enter_context(requests.subscribed(region))
            yield

    async def still(self, shown: Shown, image: int, content: Content, area: Area = WHOLE) -> Picture:
        """Return an image that browsers were sent. Raise `EndpointError` and `TimeoutError`."""
        with self._requesting(shown) as requests:
            return await requests.still(Still(next(self._numbers), image, content, area))

    @contextmanager
    def _requesting(self, shown: Shown) -> Iterator[Requests]:
        requests = self._requests.get(shown)
        if requests is None:
            with _opening(shown.detector):
                requests = self._requests[shown] = Requests(self._shared_context(), shown)
        requests.n_users += 1
        try:
            yield requests
        finally:
            requests.n_users -= 1
            if not requests.n_users:
                requests.close()
                del self._requests[shown]

    def _shared_context(self) -> zmq.Context:
        self._context = self._context or zmq.Context()
        return self._context


@contextmanager
def _opening(detector: str) -> Iterator[None]:
    try:
        yield
    except zmq.ZMQError as error:
        raise EndpointError(f"{detector}: cannot receive previews: {error.strerror}") from error


def streams_of(config: DetectorConfig) -> list[str]:
    """Return the streams of a detector that the page can show: those of its configuration, and those whose
    preview service runs.
    """
    streams = previewed_streams(config)
    others = [name for name in _OTHER_STREAMS if name not in streams]
    return streams + [
        name for name in others if path_of(endpoints.preview(config.detector_name, name)).exists()
    ]


def shown_stream(config: DetectorConfig, stream: str) -> Shown:
    """Return a stream that a browser names. Raise `RequestInvalidError`."""
    streams = streams_of(config)
    if stream not in streams:
        raise RequestInvalidError(mismatch("source", " or ".join(streams), shown_text(stream)))
    return Shown(config.detector_name, stream)
