"""Clients of live streams: numpy images with their ids, from array-1.0 and from bsread.

A thread receives all the time, so the stream never waits for its user. A slow user gets the newest images and
the number of dropped ones. The synchronous and the asyncio client share this thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import zmq

from stddaq.client.ownership import Ownership
from stddaq.closing import Closing
from stddaq.dataplane import connections
from stddaq.errors import StdDaqError
from stddaq.text import mismatch, shown_text
from stddaq.wire import array10
from stddaq.wire.bsread import BsreadError, MessageDecoder, decode_timestamp, decode_value

# Images that wait for the user, in bytes; one image always fits.
MAX_WAITING_BYTES = 256 * 2**20
MAX_IMAGE_BYTES = 2**32 - 1
MAX_HEADER_BYTES = 2**20


class LiveStreamError(StdDaqError):
    """Base of the errors of live-stream clients."""


class LiveStreamTimeoutError(LiveStreamError, TimeoutError):
    """No image arrived in time. The client stays usable."""


@dataclass(frozen=True, slots=True)
class LiveImage:
    """One image of a live stream.

    Attributes:
        image_id: the detector's id (bsread: pulse id).
        pixels: array of shape (height, width).
        protocol: `array-1.0` or `bsread`.
        status: of a damaged image, such as `missing_packets`; None for good images and for streams without
            it.
        timestamp_ns: ns since 1970; None with array-1.0, which has none.
        name: name of the bsread channel; None with array-1.0.
        n_bytes: bytes received, with headers.
    """

    image_id: int
    pixels: np.ndarray
    protocol: str
    status: str | None
    timestamp_ns: int | None
    name: str | None
    n_bytes: int


class _Decoder:
    """Decodes messages of both protocols."""

    def __init__(self) -> None:
        self._bsread = MessageDecoder()

    def decode(self, parts: Sequence[memoryview]) -> LiveImage:
        """Return the image of a message. Raise `StdDaqError` when there is none."""
        n_bytes = sum(part.nbytes for part in parts)
        if _htype(parts[0]).startswith("bsr_m-"):
            return self._decode_bsread(parts, n_bytes)
        message = array10.decode(parts)
        return LiveImage(message.image_id, message.pixels, array10.HTYPE, message.status, None, None, n_bytes)

    def _decode_bsread(self, parts: Sequence[memoryview], n_bytes: int) -> LiveImage:
        message = self._bsread.decode(parts)
        for channel, value, timestamp in zip(
            message.channels, message.values, message.timestamps, strict=True
        ):
            if len(channel.shape) != 2 or not memoryview(value).nbytes:
                continue
            pixels = decode_value(channel, value, MAX_IMAGE_BYTES)
            assert pixels is not None
            sec, ns = decode_timestamp(channel, timestamp)
            # This key is stddaq's own; another program may use its name for a value of any type.
            status = json.loads(bytes(parts[0])).get("status")
            status = status if isinstance(status, str) else None
            pulse_id = message.header.pulse_id
            return LiveImage(pulse_id, pixels, "bsread", status, sec * 10**9 + ns, channel.name, n_bytes)
        raise BsreadError("data_header", "found no channel of two dimensions with a value")


def _htype(header: memoryview) -> str:
    try:
        content = json.loads(bytes(header[:MAX_HEADER_BYTES]))
        return str(content["htype"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LiveStreamError(mismatch("message", "array-1.0 or bsread", "another format")) from error


class _Receiver:
    """The thread that receives, and the messages that wait for the user."""

    def __init__(self, address: str, notify: Callable[[], None] | None = None) -> None:
        """Connect. The thread calls `notify` for every message."""
        self.address = address
        self.n_dropped = 0
        self.is_connected = False
        self._notify = notify
        self._waiting: deque[list[memoryview]] = deque()
        self._n_waiting_bytes = 0
        self._news = threading.Condition()
        self._context = zmq.Context()
        self._socket = connections.open_socket(self._context, zmq.SUB)
        # The thread receives at once, so the socket queues only messages since its last poll.
        self._socket.maxmsgsize = MAX_IMAGE_BYTES
        self._socket.subscribe(b"")
        self._monitor = connections.watch_connections(self._socket)
        self._stop, self._stopped = socket.socketpair()
        try:
            self._socket.connect(_reachable(address))
        except (zmq.ZMQError, UnicodeError) as error:
            self._release()
            raise LiveStreamError(
                mismatch("address of the live stream", "tcp://HOST:PORT", repr(shown_text(address)))
            ) from error
        self._thread = threading.Thread(target=self._receive, name=f"live stream {address}", daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        try:
            self._receive_until_stopped()
        finally:
            self._release()

    def _receive_until_stopped(self) -> None:
        poller = zmq.Poller()
        for source in (self._socket, self._monitor, self._stopped.fileno()):
            poller.register(source, zmq.POLLIN)
        while self._stopped.fileno() not in (ready := dict(poller.poll())):
            for connected in connections.connection_changes(self._monitor):
                self.is_connected = connected
            if self._socket in ready:
                frames = self._socket.recv_multipart(copy=False)
                self._put([memoryview(frame.buffer) for frame in frames])

    def _put(self, parts: list[memoryview]) -> None:
        with self._news:
            self._n_waiting_bytes += _size(parts)
            self._waiting.append(parts)
            self._drop_while_over(MAX_WAITING_BYTES)
            self._news.notify()
        if self._notify is not None:
            self._notify()

    def _drop_while_over(self, n_bytes: int) -> None:
        while self._n_waiting_bytes > n_bytes and len(self._waiting) > 1:
            self._n_waiting_bytes -= _size(self._waiting.popleft())
            self.n_dropped += 1

    def take(self, timeout: float | None, newest: bool = False) -> list[memoryview] | None:
        """Return the oldest waiting message, or drop all but the newest and return that.

        Return None when none arrives within `timeout` seconds.
        """
        with self._news:
            if not self._news.wait_for(lambda: bool(self._waiting), timeout):
                return None
            if newest:
                self._drop_while_over(0)
            parts = self._waiting.popleft()
            self._n_waiting_bytes -= _size(parts)
            return parts

    def stop(self) -> None:
        """Make the thread disconnect and end. Do not wait for it. Any thread may call this."""
        with contextlib.suppress(OSError):  # It has ended already.
            self._stop.send(b"x")

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def _release(self) -> None:
        self._socket.disable_monitor()
        self._context.destroy(linger=0)
        self._stop.close()
        self._stopped.close()


def _size(parts: list[memoryview]) -> int:
    return sum(part.nbytes for part in parts)


def _reachable(address: str) -> str:
    """Return an address to connect to on this host for one to bind, such as `tcp://*:20000`."""
    for everywhere in ("tcp://*:", "tcp://0.0.0.0:"):
        if address.startswith(everywhere):
            return f"tcp://127.0.0.1:{address.removeprefix(everywhere)}"
    return address


class _Counts:
    """The part that both clients share: receiver, decoder and counters.

    Attributes:
        n_received: images that the user received.
        n_skipped: ids between them that were not received: because of the stream's schedule, of drops on the
            way, or of drops in this client.
        n_malformed: messages without a valid image.
        problem: why the last of those was not valid.
    """

    def __init__(self, address: str) -> None:
        """`address` is `tcp://host:port`; the host `*` is this one."""
        self.address = address
        self.n_received = self.n_skipped = self.n_malformed = 0
        self.problem: str | None = None
        self._decoder = _Decoder()
        # The thread that decodes for an asyncio task continues after the task is cancelled.
        self._guard = threading.Lock()
        self._receiver: _Receiver | None = None
        self._ownership: Ownership | None = None
        self._last_id: int | None = None

    @property
    def n_dropped(self) -> int:
        """Images that were received but dropped because the user was too slow."""
        return 0 if self._receiver is None else self._receiver.n_dropped

    @property
    def is_connected(self) -> bool:
        """Whether a live stream is connected."""
        return self._receiver is not None and self._receiver.is_connected

    def _open_receiver(self) -> _Receiver:
        if self._receiver is None or self._ownership is None:
            raise LiveStreamError(f"{self.address}: this client is not connected")
        self._ownership.check()
        return self._receiver

    def _own(self, receiver: _Receiver) -> None:
        self._receiver = receiver
        self._ownership = Ownership(self, self.address, receiver.stop)

    def _disown(self) -> _Receiver | None:
        receiver, ownership = self._receiver, self._ownership
        self._receiver = self._ownership = None
        if ownership is not None:
            ownership.release()
        return receiver

    def _decode(self, parts: Sequence[memoryview]) -> LiveImage | None:
        """Return the image of a message; None when it has none."""
        with self._guard:
            return self._decode_next(parts)

    def _decode_next(self, parts: Sequence[memoryview]) -> LiveImage | None:
        try:
            image = self._decoder.decode(parts)
        except StdDaqError as error:
            self.n_malformed += 1
            self.problem = str(error)
            return None
        if self._last_id is not None and image.image_id > self._last_id + 1:
            self.n_skipped += image.image_id - self._last_id - 1
        self._last_id = image.image_id
        self.n_received += 1
        return image

    def _timeout(self, timeout: float) -> LiveStreamTimeoutError:
        if self.problem is not None and not self.n_received:
            got, advice = f"a message without one ({self.problem})", ""
        elif self.is_connected:
            got, advice = "none over the connection", "is the detector running?"
        else:
            got, advice = "no connection", "is std_live_stream running?"
        return LiveStreamTimeoutError(mismatch(self.address, f"an image within {timeout:g} s", got, advice))


def _wake(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # The loop has ended before the client was closed.
        loop.call_soon_threadsafe(news.set)


class LiveStreamClient(_Counts, Closing):
    """A client of a live stream.

    Use it as a context manager, and iterate over it::

        with LiveStreamClient("tcp://127.0.0.1:20000") as stream:
            for image in stream:
                print(image.image_id, image.pixels.mean())
    """

    def connect(self) -> Self:
        """Connect and subscribe, without waiting for the stream. Raise `LiveStreamError`."""
        if self._receiver is None:
            self._own(_Receiver(self.address))
        return self

    def close(self) -> None:
        """Disconnect, and drop the images that wait."""
        if (receiver := self._disown()) is not None:
            receiver.join()

    def receive(self, timeout: float | None = None, *, newest: bool = False) -> LiveImage:
        """Return the next image. `timeout` is in seconds; None: no limit.

        With `newest`, images that arrived before the newest are dropped without decoding them.
        Raise `LiveStreamTimeoutError`.
        """
        receiver = self._open_receiver()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            parts = receiver.take(left, newest)
            if parts is None:
                raise self._timeout(timeout or 0.0)
            if (image := self._decode(parts)) is not None:
                return image

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LiveImage:
        return self.receive()

    def __enter__(self) -> Self:
        return self.connect()


class AsyncLiveStreamClient(_Counts):
    """The client for asyncio: `async with`, `async for`. One task uses it at a time."""

    def __init__(self, address: str) -> None:
        """`address` is `tcp://host:port`; the host `*` is this one."""
        super().__init__(address)
        self._news = asyncio.Event()

    async def connect(self) -> Self:
        """Connect and subscribe, without waiting for the stream. Raise `LiveStreamError`."""
        if self._receiver is None:
            loop, news = asyncio.get_running_loop(), self._news
            self._own(_Receiver(self.address, lambda: _wake(loop, news)))
        return self

    async def close(self) -> None:
        """Disconnect, and drop the images that wait."""
        if (receiver := self._disown()) is not None:
            await asyncio.to_thread(receiver.join)

    async def receive(self, timeout: float | None = None) -> LiveImage:
        """Return the next image. `timeout` is in seconds; None: no limit.

        Raise `LiveStreamTimeoutError`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            receiver = self._open_receiver()
            self._news.clear()
            parts = receiver.take(0)
            # A compressed image takes milliseconds.
            if parts is not None:
                if (image := await asyncio.to_thread(self._decode, parts)) is not None:
                    return image
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except TimeoutError:
                raise self._timeout(timeout or 0.0) from None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LiveImage:
        return await self.receive()

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
