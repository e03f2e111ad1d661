"""The producer's end of the data plane: pixels into a slot of the ring buffer, then the announcement.

Every source (simulator, replay, camera receiver) publishes through `ImagePublisher`. It owns the writing side
of the ring buffer and the bound socket of the metadata stream; it never waits for a consumer, and nothing but
one `ImageMetadata` per image goes out.
"""

from __future__ import annotations

import os
import time
from types import TracebackType

import numpy as np
import zmq

from stddaq.config import DetectorConfig
from stddaq.errors import SourceError
from stddaq.wire.endpoints import bind, metadata_stream, open_socket, unbind
from stddaq.wire.metadata import GOOD_IMAGE, ImageMetadata, dtype_code
from stddaq.wire.ring_buffer import SHM_DIRECTORY, RingBuffer

# How long `close` waits for announcements that are still on their way to subscribers.
DELIVERY_LINGER_MS = 1000


class ImagePublisher:
    """Publishes the uncompressed images of one detector.

    Costs about 4 us per image and the copy of its pixels. Attributes:
        metadata: the message of the next announcement, reused. Set the detector's own fields in it
            (`metadata.gf`, `.jf`, `.eg`, `.pco`) before an image is committed; the rest is set here.
        socket: XPUB socket of the metadata stream; becomes readable when subscribers come or go.
        n_published: images published so far.
        n_slots: slots of the ring buffer.
    """

    def __init__(self, config: DetectorConfig, suffix: str = "image") -> None:
        """Bind the metadata stream and attach to the ring buffer of `suffix`.

        Raises `EndpointError` when another service publishes there, `GeometryError` when the ring buffer
        exists with another geometry.
        """
        self.endpoint = metadata_stream(config.detector_name, suffix)
        self.metadata = ImageMetadata(
            height=config.image_pixel_height,
            width=config.image_pixel_width,
            size=config.image_bytes,
            dtype=dtype_code(config.dtype),  # pyright: ignore[reportArgumentType]
        )
        self.n_published = 0
        self._n_subscribers = 0
        self._context = zmq.Context()
        # To subscribers an XPUB is a PUB; it also tells us of subscriptions, which a PUB keeps to itself.
        self.socket = open_socket(self._context, zmq.XPUB)
        self.socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        try:
            bind(self.socket, self.endpoint)
        except BaseException:
            self._context.destroy()
            raise
        try:
            self._ring = RingBuffer(config, suffix)
        except BaseException:
            self._leave_stream()
            raise
        geometry = self._ring.geometry
        self.n_slots = geometry.n_slots
        used = self._ring.memory[: geometry.n_slots * geometry.image_bytes]
        self._slots = np.frombuffer(used, config.dtype).reshape(geometry.n_slots, *config.image_shape)
        self._is_reserved = bytearray(geometry.n_slots)

    @property
    def n_subscribers(self) -> int:
        """Subscriptions that the stream has now; images published from now on are sent to all of them."""
        while True:
            try:
                message = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return self._n_subscribers
            # First byte 1: subscribed, 0: unsubscribed or gone. Anything else is a peer's own message.
            if message[:1] == b"\1":
                self._n_subscribers += 1
            elif message[:1] == b"\0":
                self._n_subscribers -= 1

    def wait_for_subscribers(self, count: int, timeout: float) -> bool:
        """Wait, up to `timeout` seconds, for `count` subscriptions. Returns whether they are there."""
        deadline = time.monotonic() + timeout
        while self.n_subscribers < count:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self.socket.poll(max(1, int(remaining * 1000))):
                return self.n_subscribers >= count
        return True

    def begin(self, image_id: int) -> np.ndarray:
        """Open the slot of image `image_id`: an array (height, width) of the pixel type to fill in place.

        Readers do not trust the slot until `commit`. Raises `SourceError` when there is no memory for it.
        """
        slot = image_id % self.n_slots
        if not self._is_reserved[slot]:
            self.reserve(slot)
        self._ring.begin(image_id)
        return self._slots[slot]

    def commit(self, image_id: int, status: int = GOOD_IMAGE) -> int:
        """Announce the image that was put into its slot since `begin`. Returns its sequence number."""
        metadata = self.metadata
        metadata.sequence = sequence = self._ring.commit(image_id)
        metadata.image_id = image_id
        metadata.status = status  # pyright: ignore[reportAttributeAccessIssue]
        self.socket.send(metadata.SerializeToString())
        self.n_published += 1
        return sequence

    def publish(self, image_id: int, pixels: np.ndarray, status: int = GOOD_IMAGE) -> int:
        """Copy `pixels`, shape (height, width) of the pixel type, into the slot and announce the image.

        Returns its sequence number. Raises `SourceError` for pixels of another shape or type.
        """
        if pixels.shape != self._slots.shape[1:] or pixels.dtype != self._slots.dtype:
            height, width = self._slots.shape[1:]
            raise SourceError(
                f"image {image_id}: found shape {pixels.shape} of {pixels.dtype}, "
                f"allowed is ({height}, {width}) of {self._slots.dtype}"
            )
        np.copyto(self.begin(image_id), pixels)
        return self.commit(image_id, status)

    def reserve(self, slot: int) -> None:
        """Get the memory of a slot. `begin` does it when a slot is used first, and takes longer then.

        Raises `SourceError` when there is none.
        """
        # Writing to a slot that the full shared memory has no page for would kill the process (SIGBUS).
        path = SHM_DIRECTORY / self._ring.name
        size = self._ring.geometry.image_bytes
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(fd, slot * size, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise SourceError(
                f"shared memory {path}: no room for slot {slot} of {self.n_slots} slots of {size} bytes: "
                f"{error.strerror}; the ring buffer needs {self.n_slots * size} bytes"
            ) from error
        self._is_reserved[slot] = True

    def close(self) -> None:
        """Deliver what is on its way, up to a second; release the socket and the ring buffer."""
        self._leave_stream()
        del self._slots
        self._ring.close()

    def _leave_stream(self) -> None:
        self.socket.linger = DELIVERY_LINGER_MS
        unbind(self.socket, self.endpoint)
        self._context.term()

    def __enter__(self) -> ImagePublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
