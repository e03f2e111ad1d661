"""The bsread messages that the camera receiver accepts, and the transfer of pixels to the ring buffer.

`ImageRules` rejects messages that do not fit the configuration. `RingFiller` puts the pixels of the others
into their slots, with one copy, and announces them in the order of its calls.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.wire.bsread import (
    BsreadError,
    Channel,
    MainHeader,
    Malformation,
    MessageDecoder,
    check_value,
    decode_timestamp,
    decode_value_into,
)
from stddaq.wire.compression import Buffer

# Valid bsread messages are rejected for these reasons, too: no image channel, wrong pixel type or shape,
# no value.
Rejection = Literal[Malformation, "channels", "type", "shape", "null"]
REJECTIONS: tuple[Rejection, ...] = get_args(Rejection)

# Smaller compressed images take less time to decode than to hand to another thread.
_WORTH_A_THREAD_BYTES = 2**20
MAX_THREADS = 4


class RejectedError(StdDaqError, ValueError):
    """A message is not an image of this detector. `kind` is the reason, for counters."""

    def __init__(self, kind: Rejection, message: str) -> None:
        super().__init__(message)
        self.kind: Rejection = kind


@dataclass(frozen=True, slots=True)
class CameraImage:
    """An accepted image, not yet decoded. `value` is its part of the message."""

    header: MainHeader
    channel: Channel
    value: Buffer

    @property
    def image_id(self) -> int:
        return self.header.pulse_id

    @property
    def taken_ns(self) -> int:
        """Time of the exposure, ns since 1970 by the camera's clock."""
        timestamp = self.header.global_timestamp
        return timestamp.sec * 10**9 + timestamp.ns


class ImageRules:
    """The checks that a message passes to be an image of this detector."""

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self._decoder = MessageDecoder()
        self._channels: tuple[Channel, ...] | None = None
        self._index = 0

    def accept(self, parts: Sequence[Buffer]) -> CameraImage:
        """Return the image in a message. Raise `RejectedError`. Costs about 10 us."""
        try:
            message = self._decoder.decode(parts)
            if message.channels is not self._channels:
                self._index = self._find_image(message.channels)
                self._channels = message.channels
            channel, value = message.channels[self._index], message.values[self._index]
            if not len(value):
                raise RejectedError("null", mismatch(f"image {message.header.pulse_id}", "a value", "null"))
            check_value(channel, value)
            decode_timestamp(channel, message.timestamps[self._index])
        except BsreadError as error:
            raise RejectedError(error.kind, str(error)) from error
        return CameraImage(message.header, channel, value)

    def _find_image(self, channels: Sequence[Channel]) -> int:
        """Return the index of the first channel with two dimensions; others hold temperatures, positions."""
        for index, channel in enumerate(channels):
            if len(channel.shape) == 2:
                self._check(channel)
                return index
        got = f"{len(channels)} channels without one"
        raise RejectedError("channels", mismatch("channels", "an image channel (x, y)", got))

    def _check(self, channel: Channel) -> None:
        height, width = self._config.image_shape
        if channel.shape != (width, height):
            expected = f"[{width}, {height}] (x, y)"
            raise RejectedError("shape", mismatch("shape", expected, f"{list(channel.shape)}"))
        if channel.dtype.newbyteorder("<") != self._config.dtype:
            raise RejectedError("type", mismatch("type", self._config.dtype.name, channel.type))


class RingFiller:
    """Puts images into the ring buffer and announces them. Threads decode large compressed images.

    `fileno` becomes readable when a thread has decoded an image; then call `settle`.
    """

    def __init__(
        self, config: DetectorConfig, publisher: ImagePublisher, reject: Callable[[Rejection, str], None]
    ) -> None:
        """`reject` is called for images whose compressed pixels are damaged."""
        self._publisher, self._reject = publisher, reject
        n_threads = min(MAX_THREADS, os.cpu_count() or 1)
        self._threads: ThreadPoolExecutor | None = None
        if config.image_bytes >= _WORTH_A_THREAD_BYTES:
            self._threads = ThreadPoolExecutor(n_threads, "decoder")
        self._limit = 2 * n_threads
        self._decoding: deque[tuple[CameraImage, Future[None]]] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._event

    def put(self, image: CameraImage) -> None:
        """Decode the next image into its slot, and announce it after all earlier ones.

        Raise `SourceError` if there is no memory for the slot.
        """
        if self._threads is None or image.channel.compression == "none":
            self._settle_all()
            slot = self._publisher.begin(image.image_id)
            try:
                decode_value_into(image.channel, image.value, slot)
            except BsreadError as error:
                self._reject(error.kind, f"image {image.image_id}: {error}")
            else:
                self._announce(image)
            return
        n_slots = self._publisher.n_slots
        if any((other.image_id - image.image_id) % n_slots == 0 for other, _ in self._decoding):
            self._settle_all()  # Ids that are far apart can share a slot.
        while len(self._decoding) >= self._limit:
            self._settle_first()
        slot = self._publisher.begin(image.image_id)
        done = self._threads.submit(decode_value_into, image.channel, image.value, slot)
        done.add_done_callback(self._wake)
        self._decoding.append((image, done))

    def _wake(self, done: Future[None]) -> None:
        del done
        os.eventfd_write(self._event, 1)

    def settle(self) -> None:
        """Announce the images that are decoded now, in order."""
        if self._threads is None:
            return
        with contextlib.suppress(BlockingIOError):  # No image was decoded since the last call.
            os.eventfd_read(self._event)
        while self._decoding and self._decoding[0][1].done():
            self._settle_first()

    def _settle_all(self) -> None:
        while self._decoding:
            self._settle_first()

    def _settle_first(self) -> None:
        image, done = self._decoding.popleft()
        try:
            done.result()
        except BsreadError as error:
            self._reject(error.kind, f"image {image.image_id}: {error}")
        else:
            self._announce(image)

    def _announce(self, image: CameraImage) -> None:
        fields, timestamp = self._publisher.metadata.pco, image.header.global_timestamp
        fields.global_timestamp_sec, fields.global_timestamp_ns = timestamp.sec, timestamp.ns
        fields.bsread_name = image.channel.name
        self._publisher.commit(image.image_id)

    def close(self) -> None:
        """Wait for images that are being decoded, announce them, and end the threads."""
        try:
            self._settle_all()
        finally:
            if self._threads is not None:
                self._threads.shutdown()
            os.close(self._event)
