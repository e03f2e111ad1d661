"""One replay: requests images from the reader, one by one, and sends each to the consumer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any, cast

import zmq
import zmq.asyncio
from google.protobuf.message import DecodeError

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import replay_requests
from stddaq.dataplane.local_peers import permission_problem, untrusted_binder
from stddaq.dataplane.metadata import ImageMetadata, is_good, taken_ns
from stddaq.dataplane.ring_reader import RingReader
from stddaq.errors import ConfigError, StdDaqError
from stddaq.text import bind_error_text, mismatch
from stddaq.wire.array10 import HeaderMaker
from stddaq.wire.image_buffer import MAX_ID
from stddaq.wire.replay_messages import StartReplay
from stddaq.wire.std_daq import image_buffer_pb2
from stddaq.wire.std_daq import image_metadata_pb2 as pb

READER_TIMEOUT_S = 1.8
# How often a replay looks for new images, and whether it was stopped.
POLL_PERIOD_S = 0.1
# Messages for consumers that wait, as in the C++ service.
CONSUMER_QUEUE = 100
CLOSE_TIMEOUT_MS = 200
# First and last id of a request for no image, after which the reader keeps none.
NO_IDS = (1, 0)

Response = image_buffer_pb2.NextImageResponse


class ReplayError(StdDaqError, RuntimeError):
    """A replay cannot go on."""


class ReaderLink(Closing):
    """The connection to `std_buffer_reader`."""

    def __init__(self, config: DetectorConfig, driver: int) -> None:
        """`driver` is a number that no other driver of the reader has, also after a restart."""
        self._endpoint = replay_requests(config.detector_name)
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._driver = driver

    async def request(self, first: int, last: int, *, is_new: bool) -> Response:
        """Return the answer to the request for the next image from `first` to `last`. Raise `ReplayError`."""
        request = image_buffer_pb2.RequestNextImage(
            image_id=first, new_request=is_new, last_image_id=last, driver=self._driver
        )
        is_answered, connection = False, self._socket or self._connect()
        try:
            async with asyncio.timeout(READER_TIMEOUT_S):
                await connection.send(request.SerializeToString())
                answer = await connection.recv()
            is_answered = True
            return Response.FromString(answer)
        except TimeoutError as error:
            expected = f"an answer of std_buffer_reader within {READER_TIMEOUT_S:g} s"
            raise ReplayError(mismatch(self._endpoint, expected, "none", "is it running?")) from error
        except DecodeError as error:
            raise ReplayError(mismatch(self._endpoint, "a NextImageResponse", "another message")) from error
        finally:
            # A request that is not answered blocks its socket.
            if not is_answered:
                self.disconnect()

    async def release(self) -> None:
        """End the lease of the images that were requested, if the reader has answered so far.

        Without this, images of a replay that was stopped would be kept for as long as it could go on.
        """
        if self._socket is not None:
            with contextlib.suppress(ReplayError):  # The lease expires.
                await self.request(*NO_IDS, is_new=False)

    def _connect(self) -> zmq.asyncio.Socket:
        if problem := untrusted_binder(self._endpoint) or permission_problem(self._endpoint):
            raise ReplayError(problem)
        self._socket = _asynchronous(self._context, zmq.REQ)
        self._socket.connect(self._endpoint)
        return self._socket

    def disconnect(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def close(self) -> None:
        self.disconnect()
        self._context.destroy(linger=0)


class Consumers(Closing):
    """The PUSH socket of the replayed images.

    Attributes:
        endpoint: where it is bound.
    """

    def __init__(self, config: DetectorConfig, address: str) -> None:
        """Raise `ConfigError` when the address cannot be bound."""
        self._headers = HeaderMaker(config.image_shape, config.pixel_type)
        self._context = zmq.asyncio.Context()
        self._socket = _asynchronous(self._context, zmq.PUSH)
        self._socket.sndhwm = CONSUMER_QUEUE
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            reason = bind_error_text(error)
            raise ConfigError(f"--stream_address {address}: cannot be bound: {reason}") from error
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT)

    async def wait(self) -> bool:
        """Wait a moment. Return whether a consumer takes an image."""
        if int(self._socket.get(zmq.EVENTS)) & zmq.POLLOUT:
            return True
        socket: Any = self._socket  # Its annotations lack the arguments.
        return bool(await socket.poll(int(POLL_PERIOD_S * 1000), zmq.POLLOUT))

    def send(self, metadata: ImageMetadata, pixels: bytes) -> None:
        """Send an image, after `wait`."""
        status = None if is_good(metadata) else pb.ImageMetadataStatus.Name(metadata.status)
        parts = [self._headers.header(metadata.image_id, status), pixels]
        # Not the method of asyncio: no wait is left.
        plain: Any = zmq.Socket.shadow(self._socket)
        plain.send_multipart(parts, zmq.NOBLOCK, copy=False)

    def close(self) -> None:
        """Deliver images on their way, for a moment."""
        self._context.destroy(linger=CLOSE_TIMEOUT_MS)


def _asynchronous(context: zmq.asyncio.Context, kind: int) -> zmq.asyncio.Socket:
    return cast(zmq.asyncio.Socket, open_socket(context, kind))


@dataclass(slots=True)
class ReplayAccount:
    """What a replay has done."""

    first_id: int | None = None
    last_id: int | None = None
    n_sent: int = 0
    n_skipped: int = 0
    """Ids whose images have expired."""
    n_damaged: int = 0
    """Stored images that could not be read."""
    n_overwritten: int = 0
    """Images whose slots were reused before they were copied: another replay used the reader."""


class Replay:
    """A replay that is carried out.

    Attributes:
        account: what it has done so far.
        stopped: set to end it.
        running: cleared while it is paused.
    """

    def __init__(self, start: StartReplay, link: ReaderLink, ring: RingReader, consumers: Consumers) -> None:
        self.start = start
        self.account = ReplayAccount()
        self.stopped, self.running = asyncio.Event(), asyncio.Event()
        self.running.set()
        self._link, self._ring, self._consumers = link, ring, consumers
        self._paced_at = self._next_at = 0.0
        self._taken_ns = 0

    async def carry_out(self) -> None:
        """Return when all images are sent, or it was stopped. Raise `ReplayError` and `GeometryError`."""
        self._ring.refresh()
        try:
            await self._request_and_send()
        finally:
            await self._link.release()

    async def _request_and_send(self) -> None:
        start, account = self.start, self.account
        first, last, is_new = start.start_image_id, start.end_image_id, True
        while first <= (MAX_ID if last is None else last) and await self._is_due():
            answer = await self._link.request(first, MAX_ID if last is None else last, is_new=is_new)
            if last is None and not start.follow and answer.HasField("newest_image_id"):
                last = max(answer.newest_image_id, answer.ack.image_id)
            is_new = False
            account.n_skipped += answer.n_skipped
            account.n_damaged += answer.n_damaged
            kind = answer.WhichOneof("action")
            if kind == "ack":
                await self._send(answer.ack)
                first = answer.ack.image_id + 1
            elif kind == "searching":
                first = answer.searching.image_id
            elif kind == "no_image":
                if not start.follow:
                    return
                await self._pause(POLL_PERIOD_S)
            elif kind == "failure":
                raise ReplayError(answer.failure.reason)
            else:
                raise ReplayError(mismatch("answer of the reader", "an image or none", "neither"))

    async def _is_due(self) -> bool:
        """Wait until the next image may be requested. Return False if the replay was stopped."""
        await self._while_paused()
        await self._pause(self._next_at - time.monotonic())
        now, interval = time.monotonic(), self.start.interval_s
        # A late image does not delay those after it: only `delay` is a promise of the distance.
        since = max(self._next_at, now - interval) if self.start.rate and self._next_at else now
        self._next_at = since + interval
        return not self.stopped.is_set()

    async def _while_paused(self) -> None:
        while not (self.running.is_set() or self.stopped.is_set()):
            await self._pause(POLL_PERIOD_S)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not after `stopped`."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        except TimeoutError:
            pass

    async def _send(self, ack: image_buffer_pb2.AckResponse) -> None:
        metadata, account = ack.metadata, self.account
        if metadata.image_id != ack.image_id or not metadata.sequence:
            expected = "the metadata of the image, as std_buffer_reader of stddaq sends it"
            raise ReplayError(mismatch("answer of the reader", expected, "none"))
        pixels = self._pixels(metadata)
        if pixels is None:
            account.n_overwritten += 1
            return
        if self.start.as_recorded:
            await self._pace(metadata)
        # It was requested before the pause.
        await self._while_paused()
        while not self.stopped.is_set():
            if await self._consumers.wait():
                self._consumers.send(metadata, pixels)
                account.n_sent += 1
                account.first_id = metadata.image_id if account.first_id is None else account.first_id
                account.last_id = metadata.image_id
                return

    def _pixels(self, metadata: ImageMetadata) -> bytes | None:
        """Return a copy of the pixels; None if the slot has another image."""
        ring = self._ring
        if not ring.has_cursor_for(metadata):
            ring.refresh()
        if not (ring.has_cursor_for(metadata) and ring.holds(metadata)):
            return None
        pixels = bytes(ring.ring.slot(metadata.image_id)[: metadata.size])
        return pixels if ring.holds(metadata) else None

    async def _pace(self, metadata: ImageMetadata) -> None:
        """Wait as long as there was between this image and the one before it."""
        taken = taken_ns(metadata)
        if not taken:
            got = "none; give rate or delay instead"
            raise ReplayError(mismatch(f"image {metadata.image_id}", "a timestamp for as_recorded", got))
        if self._taken_ns:
            due = self._paced_at + max(0, taken - self._taken_ns) * 1e-9
            await self._pause(due - time.monotonic())
            self._paced_at = max(due, time.monotonic() - POLL_PERIOD_S)
        else:
            self._paced_at = time.monotonic()
        self._taken_ns = taken
