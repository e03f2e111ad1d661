"""The viewer's end of a live stream: numpy images with their ids, from array-1.0 as from bsread.

A thread receives all the time, so that the stream never waits for its user; a user who is slow gets the
newest images, and a count of those that were left out. Sync and asyncio clients share it.
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
from stddaq.dataplane import connections
from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.wire import array10
from stddaq.wire.bsread import BsreadError, MessageDecoder, decode_timestamp, decode_value

# Images that wait for the user, in bytes; one image always fits.
MAX_WAITING_BYTES = 256 * 2**20
MAX_IMAGE_BYTES = 2**32 - 1
MAX_HEADER_BYTES = 2**20


class LiveStreamError(StdDaqError):
    """Base of the errors of live-stream clients."""


class LiveStreamTimeoutError(LiveStreamError, TimeoutError):
    """No image came in time. The client stays usable."""


@dataclass(frozen=True, slots=True)
class LiveImage:
    """One image of a live stream.

    Attributes:
        image_id: the id that the detector gave (bsread: pulse id).
        pixels: the image, (height, width).
        protocol: `array-1.0` or `bsread`.
        status: `missing_packets` or the like of an image that is damaged; None of a good one, and of
            streams that do not have it.
        timestamp_ns: when it was taken, ns since 1970; None with array-1.0, which has none.
        name: of the bsread channel; None with array-1.0.
        n_bytes: as received, with headers.
    """

    image_id: int
    pixels: np.ndarray
    protocol: str
    status: str | None
    timestamp_ns: int | None
    name: str | None
    n_bytes: int


class _Decoder:
    """Takes messages of either protocol apart."""

    def __init__(self) -> None:
        self._bsread = MessageDecoder()

    def decode(self, parts: Sequence[memoryview]) -> LiveImage:
        """The image of a message. Raises `StdDaqError` when there is none."""
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
            # A key of stddaq; another program may use the same name for a value of any type.
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
        raise LiveStreamError("found a message that is neither array-1.0 nor bsread") from error


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
        # The thread receives at once, so only what came since its last poll waits in the socket.
        self._socket.maxmsgsize = MAX_IMAGE_BYTES
        self._socket.subscribe(b"")
        self._monitor = connections.watch_connections(self._socket)
        self._stop, self._stopped = socket.socketpair()
        try:
            self._socket.connect(_reachable(address))
        except zmq.ZMQError as error:
            self._release()
            reason = error.strerror or str(error)
            raise LiveStreamError(mismatch(address, "tcp://HOST:PORT", reason)) from error
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
            while self._n_waiting_bytes > MAX_WAITING_BYTES and len(self._waiting) > 1:
                self._n_waiting_bytes -= _size(self._waiting.popleft())
                self.n_dropped += 1
            self._news.notify()
        if self._notify is not None:
            self._notify()

    def take(self, timeout: float | None) -> list[memoryview] | None:
        """The oldest message that waits, or None when none comes within `timeout` seconds."""
        with self._news:
            if not self._news.wait_for(lambda: bool(self._waiting), timeout):
                return None
            parts = self._waiting.popleft()
            self._n_waiting_bytes -= _size(parts)
            return parts

    def stop(self) -> None:
        """Let the thread disconnect and end, without waiting for it. Any thread may call it."""
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
    """An address as services bind it (`tcp://*:20000`) as one to connect to on this host."""
    for everywhere in ("tcp://*:", "tcp://0.0.0.0:"):
        if address.startswith(everywhere):
            return f"tcp://127.0.0.1:{address.removeprefix(everywhere)}"
    return address


class _Counts:
    """What the clients have in common: their counters.

    Attributes:
        n_received: images that the user has got.
        n_skipped: ids missing between them, for whatever reason: the schedule of the stream, drops on the
            way, images that this client has left out.
        n_malformed: messages without an image that can be understood.
        problem: what was wrong with the last of those.
    """

    def __init__(self, address: str) -> None:
        """`address` as `tcp://host:port`; `*` is this host."""
        self.address = address
        self.n_received = self.n_skipped = self.n_malformed = 0
        self.problem: str | None = None
        self._decoder = _Decoder()
        # An asyncio task that is cancelled leaves the thread that decodes for it behind.
        self._guard = threading.Lock()
        self._receiver: _Receiver | None = None
        self._ownership: Ownership | None = None
        self._last_id: int | None = None

    @property
    def n_dropped(self) -> int:
        """Images that came but were left out because the user was too slow."""
        return 0 if self._receiver is None else self._receiver.n_dropped

    @property
    def is_connected(self) -> bool:
        """Whether a live stream has answered at the address."""
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
        """The image of a message, None when there is none in it."""
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
            why = f"what comes is no image: {self.problem}"
        elif self.is_connected:
            why = "connected, but the stream sends nothing; is the detector running?"
        else:
            why = "no service answers; is std_live_stream running?"
        return LiveStreamTimeoutError(f"{self.address}: no image within {timeout:g} s: {why}")


def _wake(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # The loop has ended before the client was closed.
        loop.call_soon_threadsafe(news.set)


class LiveStreamClient(_Counts):
    """Receives a live stream. Use it as a context manager, and iterate over it:

    with LiveStreamClient("tcp://127.0.0.1:20000") as stream:
        for image in stream:
            print(image.image_id, image.pixels.mean())
    """

    def connect(self) -> Self:
        """Connect and subscribe, without waiting for the stream. Raises `LiveStreamError`."""
        if self._receiver is None:
            self._own(_Receiver(self.address))
        return self

    def close(self) -> None:
        """Disconnect; images that wait are given up."""
        if (receiver := self._disown()) is not None:
            receiver.join()

    def receive(self, timeout: float | None = None) -> LiveImage:
        """The next image, in the order in which they come; `timeout` in seconds, None: no limit.

        Raises `LiveStreamTimeoutError`.
        """
        receiver = self._open_receiver()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            parts = receiver.take(left)
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncLiveStreamClient(_Counts):
    """The same for asyncio: `async with`, `async for`; for one task at a time."""

    def __init__(self, address: str) -> None:
        """`address` as `tcp://host:port`; `*` is this host."""
        super().__init__(address)
        self._news = asyncio.Event()

    async def connect(self) -> Self:
        """Connect and subscribe, without waiting for the stream. Raises `LiveStreamError`."""
        if self._receiver is None:
            loop, news = asyncio.get_running_loop(), self._news
            self._own(_Receiver(self.address, lambda: _wake(loop, news)))
        return self

    async def close(self) -> None:
        """Disconnect; images that wait are given up."""
        if (receiver := self._disown()) is not None:
            await asyncio.to_thread(receiver.join)

    async def receive(self, timeout: float | None = None) -> LiveImage:
        """The next image, in the order in which they come; `timeout` in seconds, None: no limit.

        Raises `LiveStreamTimeoutError`.
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
