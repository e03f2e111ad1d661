"""The publishing end of the data plane: pixels into a slot of the ring buffer, then the announcement.

Every source, and every processing stage that has its own ring buffer, publishes through `ImagePublisher`. It
owns the writing side of the ring buffer and the bound socket of the metadata stream; it never waits for a
subscriber, and sends only one `ImageMetadata` per image.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.metrics import Registry
from stddaq.dataplane.metadata import GOOD_IMAGE, ID_MISSMATCH, ImageMetadata, dtype_code
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.dataplane.ring_publisher import RingPublisher
from stddaq.errors import SourceError
from stddaq.text import mismatch
from stddaq.wire.pixel_checksum import NO_CHECKSUM, copy_with_checksum, pixel_checksum


class ImagePublisher(RingPublisher):
    """Publishes the images of one detector.

    Costs about 4 us per image and the copy of its pixels; with `image_checksums` of the configuration also
    the checksum, 12 us for 512 KiB that were just written.

    Attributes:
        metadata: the message of the next announcement, reused. Set the detector's own fields in it
            (`metadata.gf`, `.jf`, `.eg`, `.pco`) before an image is committed; the rest is set here.
        n_slots: slots of the ring buffer.
        n_published: announcements so far.
    """

    def __init__(self, config: DetectorConfig, suffix: str = "image", n_parts: int = 0) -> None:
        """Bind the metadata stream and attach to the ring buffer of `suffix`.

        `n_parts`: services that write parts of an image, each with `RingBuffer.begin_part`.
        Raise `EndpointError` and `GeometryError` like `RingPublisher`.
        """
        self._height, self._width = config.image_shape
        self._dtype = dtype_code(config.pixel_type)
        self.metadata = ImageMetadata(
            height=self._height,
            width=self._width,
            size=config.image_bytes,
            dtype=self._dtype,  # pyright: ignore[reportArgumentType]
        )
        self.n_slots, self.n_published = config.n_slots, 0
        self._has_checksums = config.image_checksums
        self._source, self._image_bytes = suffix, config.image_bytes
        super().__init__(config, suffix, n_parts=n_parts)

    def register(self, registry: Registry) -> None:
        """Add the counts of published images to those of the service."""
        source, image_bytes = self._source, self._image_bytes
        registry.add(metrics.IMAGES_PUBLISHED, lambda: self.n_published, source=source)
        registry.add(metrics.IMAGE_BYTES_PUBLISHED, lambda: self.n_published * image_bytes, source=source)

    def _use(self, ring: RingBuffer) -> None:
        slots = np.frombuffer(ring.memory[: self.n_slots * ring.geometry.image_bytes], ring.dtype)
        self._slots = slots.reshape(self.n_slots, *ring.shape)
        super()._use(ring)

    def begin(self, image_id: int) -> np.ndarray:
        """Open the slot of image `image_id`: an array (height, width) of the pixel type to fill in place.

        Readers do not trust the slot until `commit`.
        """
        self._ring.begin(image_id)
        return self._slots[image_id % self.n_slots]

    def begin_bytes(self, image_id: int) -> np.ndarray:
        """Open the slot of image `image_id` like `begin`: an array of bytes, for a compressed image."""
        self._ring.begin(image_id)
        return self._slot_bytes[image_id % self.n_slots]

    def commit(self, image_id: int, status: int = GOOD_IMAGE) -> int:
        """Announce the image put into its slot since `begin`. Return its sequence number."""
        if self._has_checksums:
            self.metadata.checksum = pixel_checksum(self._slots[image_id % self.n_slots])
        return self._commit(image_id, status)

    def _commit(self, image_id: int, status: int) -> int:
        metadata = self.metadata
        metadata.sequence = sequence = self._ring.commit(image_id)
        metadata.image_id = image_id
        metadata.status = status  # pyright: ignore[reportAttributeAccessIssue]
        self._stream.send(metadata)
        self.n_published += 1
        return sequence

    def commit_processed(self, metadata: ImageMetadata, size: int, compression: int) -> int:
        """Announce the image put into its slot since `begin`, with the message of the image it was made from.

        It is in the first `size` bytes of the slot. `metadata` keeps its id, status, checksum and detector
        fields; the others are replaced. Return the sequence number.
        """
        metadata.height, metadata.width = self._height, self._width
        metadata.dtype = self._dtype  # pyright: ignore[reportAttributeAccessIssue]
        metadata.size = size
        metadata.compression = compression  # pyright: ignore[reportAttributeAccessIssue]
        metadata.sequence = sequence = self._ring.commit(metadata.image_id)
        metadata.number = 0
        self._stream.send(metadata)
        self.n_published += 1
        return sequence

    def commit_parts(self, image_id: int, marks: Sequence[tuple[int, int]], status: int = GOOD_IMAGE) -> int:
        """Announce an image that other services have written, each a part with its mark. Return its status.

        That is `ID_MISSMATCH` if one of them has started another image in the slot. Without `marks`, of
        services that make none, readers judge the slot by the announced ids.
        """
        metadata = self.metadata
        metadata.image_id, metadata.checksum = image_id, NO_CHECKSUM
        metadata.status = status  # pyright: ignore[reportAttributeAccessIssue]
        return self.announce_parts(metadata, marks)

    def announce_parts(self, metadata: ImageMetadata, marks: Sequence[tuple[int, int]]) -> int:
        """Announce an image like `commit_parts`, with a message that has everything but the numbers.

        It keeps the checksum that its source has computed.
        """
        metadata.sequence = 0
        # Before the marks are compared: they say whether these are the pixels of this image.
        if self._has_checksums and marks and not metadata.checksum:
            metadata.checksum = pixel_checksum(self._slots[metadata.image_id % self.n_slots])
        if marks:
            metadata.sequence, is_intact = self._ring.commit_parts(metadata.image_id, marks)
            if not is_intact:
                metadata.status = ID_MISSMATCH
        self._stream.send(metadata)
        self.n_published += 1
        return metadata.status

    def blank_part(self, image_id: int) -> int:
        """Fill the slot of an image that has one part with zeros. Return the mark of this."""
        mark = secrets.randbits(62)
        self._ring.begin_part(image_id, 0, mark)[:] = 0
        return mark

    def mark(self, image_id: int, part: int) -> int:
        """Return the mark that a writer of parts has left in the slot of an image; 0: none."""
        return self._ring.mark(image_id, part)

    def pixels(self, image_id: int) -> np.ndarray:
        """Return the slot of an image, for pixels that no other service writes."""
        return self._slots[image_id % self.n_slots]

    def publish(self, image_id: int, pixels: np.ndarray, status: int = GOOD_IMAGE) -> int:
        """Copy `pixels`, shape (height, width) of the pixel type, into the slot and announce the image.

        Return its sequence number. Raise `SourceError` for pixels of another shape or type.
        """
        if pixels.shape != self._slots.shape[1:] or pixels.dtype != self._slots.dtype:
            height, width = self._slots.shape[1:]
            raise SourceError(
                mismatch(
                    f"image {image_id}",
                    f"shape ({height}, {width}) of {self._slots.dtype}",
                    f"{pixels.shape} of {pixels.dtype}",
                )
            )
        slot = self.begin(image_id)
        if self._has_checksums:
            self.metadata.checksum = copy_with_checksum(pixels, slot)
        else:
            np.copyto(slot, pixels)
        return self._commit(image_id, status)

    def close(self) -> None:
        del self._slots
        super().close()
