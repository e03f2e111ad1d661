"""What stages publish: new images in a ring buffer of their own, compressed or not, or metadata only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.dataplane.image import Image
from stddaq.dataplane.metadata import COMPRESSION_OF_SUFFIX, UNDEFINED, ImageMetadata, dtype_code
from stddaq.dataplane.metadata_publisher import MetadataPublisher
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.wire.std_daq import image_metadata_pb2 as pb

ProcessImage = Callable[[Image, np.ndarray], None]
KeepImage = Callable[[Image], bool]
# Compresses an image (height, width) into uint8 (n,); the bytes used, or None when that is too little room.
Compress = Callable[[np.ndarray, np.ndarray], int | None]


class _ImageOutput:
    """A ring buffer and the metadata stream of its images."""

    looks_at_pixels = True
    status_of_failed: int | None = UNDEFINED

    def __init__(self, config: DetectorConfig, suffix: str) -> None:
        """`config` describes the images that are published. Raises `EndpointError` and `GeometryError`."""
        self._stream = MetadataPublisher(config, suffix)
        try:
            self.ring = RingBuffer(config, suffix)
        except BaseException:
            self._stream.close()
            raise
        self.n_slots = config.n_slots
        self._height, self._width = config.image_shape
        self._dtype = dtype_code(config.dtype)

    def _announce(self, metadata: ImageMetadata, size: int, compression: int) -> None:
        """Announce the image that `size` bytes of its slot hold."""
        metadata.height, metadata.width = self._height, self._width
        metadata.dtype = self._dtype  # pyright: ignore[reportAttributeAccessIssue]
        metadata.size = size
        metadata.compression = compression  # pyright: ignore[reportAttributeAccessIssue]
        metadata.sequence = self.ring.commit(metadata.image_id)
        metadata.number = 0
        self._stream.send(metadata)

    def pairs(self) -> dict[str, object]:
        """See `Output`."""
        return {"n_subscribers": self._stream.n_subscribers}

    def close(self) -> None:
        """See `Output`."""
        self._stream.close()
        self.ring.close()


class ImageOutput(_ImageOutput):
    """Images that a function makes, uncompressed."""

    def __init__(self, config: DetectorConfig, suffix: str, process: ProcessImage) -> None:
        super().__init__(config, suffix)
        self._image_bytes = config.image_bytes
        self._process = process

    def make(self, image: Image) -> int:
        """See `Output`."""
        self.ring.begin(image.image_id)
        self._process(image, self.ring.image(image.image_id))
        return self._image_bytes

    def blank(self, image: Image) -> int:
        """See `Output`."""
        self.ring.begin(image.image_id)
        self.ring.image(image.image_id).fill(0)
        return self._image_bytes

    def publish(self, metadata: ImageMetadata, made: int) -> None:
        """See `Output`."""
        self._announce(metadata, made, pb.none)


class CompressedOutput(_ImageOutput):
    """The images of the source, compressed.

    One that compression does not make smaller than its slot stays as it is, and says so.
    """

    def __init__(self, config: DetectorConfig, suffix: str, compress: Compress) -> None:
        """`suffix` is that of a compression."""
        super().__init__(config, suffix)
        self._compression, self._image_bytes = COMPRESSION_OF_SUFFIX[suffix], config.image_bytes
        self._compress = compress
        room = np.empty(config.image_bytes, np.uint8)
        self._blank = room[: self._make(np.zeros(config.image_shape, config.dtype), room)[0]].copy()
        self._n_bytes = self._n_images = self._n_uncompressed = 0

    def make(self, image: Image) -> tuple[int, int]:
        """See `Output`."""
        return self._make(image.pixels, self._open(image))

    def blank(self, image: Image) -> tuple[int, int]:
        """See `Output`."""
        size = len(self._blank)
        self._open(image)[:size] = self._blank
        return size, self._compression if size < self._image_bytes else pb.none

    def _make(self, pixels: np.ndarray, slot: np.ndarray) -> tuple[int, int]:
        """Fill the slot. Bytes used, and the compression."""
        # Room for less than the image, or it is not worth it.
        size = self._compress(pixels, slot[: self._image_bytes - 1])
        if size is None:
            np.copyto(slot, pixels.reshape(-1).view(np.uint8))
            return self._image_bytes, pb.none
        return size, self._compression

    def _open(self, image: Image) -> np.ndarray:
        return np.frombuffer(self.ring.begin(image.image_id), np.uint8)

    def publish(self, metadata: ImageMetadata, made: tuple[int, int]) -> None:
        """See `Output`."""
        size, compression = made
        self._n_images += 1
        self._n_bytes += size
        self._n_uncompressed += compression == pb.none
        self._announce(metadata, size, compression)

    def pairs(self) -> dict[str, object]:
        """See `Output`."""
        n_bytes = self._n_images * self._image_bytes
        pairs = super().pairs() | {
            "compression_ratio": n_bytes / self._n_bytes if self._n_bytes else 0.0,
            "n_uncompressed_images": self._n_uncompressed,
        }
        self._n_bytes = self._n_images = self._n_uncompressed = 0
        return pairs


class FilterOutput:
    """The metadata of some images of the source; a context manager.

    Messages keep the `sequence` of the ring buffer, by which readers check the slot, and get a `number` of
    their own, by which they notice a message that was lost.
    """

    status_of_failed: int | None = None

    def __init__(
        self, config: DetectorConfig, suffix: str, keep: KeepImage, looks_at_pixels: bool = True
    ) -> None:
        """Raises `EndpointError`."""
        self._stream = MetadataPublisher(config, suffix)
        self.n_slots, self.looks_at_pixels = config.n_slots, looks_at_pixels
        self._keep = keep
        self._number = 0
        self._n_passed = 0

    def make(self, image: Image) -> bool:
        """See `Output`."""
        return bool(self._keep(image))

    def blank(self, image: Image) -> bool:
        """See `Output`: what cannot be judged is passed on."""
        del image
        return True

    def publish(self, metadata: ImageMetadata, made: bool) -> None:
        """See `Output`."""
        if not made:
            return
        self._number += 1
        metadata.number = self._number
        self._stream.send(metadata)
        self._n_passed += 1

    def pairs(self) -> dict[str, object]:
        """See `Output`."""
        pairs: dict[str, object] = {
            "n_subscribers": self._stream.n_subscribers,
            "n_passed_images": self._n_passed,
        }
        self._n_passed = 0
        return pairs

    def close(self) -> None:
        """See `Output`."""
        self._stream.close()
