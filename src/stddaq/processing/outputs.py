"""The outputs of stages: new images in their own ring buffer, compressed or not, or metadata only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period
from stddaq.dataplane.image import Image
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import COMPRESSION_OF_SUFFIX, UNDEFINED, ImageMetadata
from stddaq.dataplane.metadata_publisher import MetadataPublisher
from stddaq.wire.pixel_checksum import NO_CHECKSUM, pixel_checksum
from stddaq.wire.std_daq import image_metadata_pb2 as pb

ProcessImage = Callable[[Image, np.ndarray], None]
KeepImage = Callable[[Image], bool]
# Compresses an image (height, width) into uint8 (n,). Returns the bytes used, or None if they do not suffice.
Compress = Callable[[np.ndarray, np.ndarray], int | None]

Made = TypeVar("Made")


class StageOutput(Protocol[Made]):
    """Makes the output image of an image, and publishes it.

    Attributes:
        n_slots: images whose ids differ by less than this have different output slots.
        looks_at_pixels: whether `make` may read them, so that overwritten images matter.
        status_of_failed: status of an image whose `make` has failed; None keeps the status of the source.
    """

    n_slots: int
    looks_at_pixels: bool
    status_of_failed: int | None

    def make(self, image: Image) -> Made:
        """Return the output of an image. Runs in any thread."""
        ...

    def blank(self, image: Image) -> Made:
        """Return the output of an image that was overwritten or that `make` failed on. Runs in any thread."""
        ...

    def publish(self, metadata: ImageMetadata, made: Made) -> None:
        """Publish the next image, in the order of the source. Adapts `metadata`, that of the source."""
        ...

    def attend(self) -> None:
        """Do what is due at least once a second."""

    def register(self, registry: Registry) -> None:
        """Add its own counters to those of the service."""
        ...

    def pairs(self, period: Period) -> dict[str, object]:
        """Return its part of the statistics line."""
        ...

    def close(self) -> None:
        """Deliver pending announcements, then release sockets and memory."""
        ...


class _RingStageOutput(StageOutput[Made]):
    """A ring buffer and the metadata stream of its images."""

    looks_at_pixels = True
    status_of_failed: int | None = UNDEFINED

    def __init__(self, config: DetectorConfig, suffix: str) -> None:
        """`config` describes the published images. Raise `EndpointError` and `GeometryError`."""
        self._publisher = ImagePublisher(config, suffix)
        self.n_slots = self._publisher.n_slots

    def register(self, registry: Registry) -> None:
        del registry  # The stage counts everything that all outputs have in common.

    def attend(self) -> None:
        self._publisher.count_subscribers()

    def pairs(self, period: Period) -> dict[str, object]:
        del period
        return {"n_subscribers": self._publisher.count_subscribers()}

    def close(self) -> None:
        self._publisher.close()


class ProcessedOutput(_RingStageOutput[int]):
    """Images that a function makes, uncompressed. `make` returns their checksum."""

    def __init__(self, config: DetectorConfig, suffix: str, process: ProcessImage) -> None:
        super().__init__(config, suffix)
        self._image_bytes, self._has_checksums = config.image_bytes, config.image_checksums
        self._process = process

    def make(self, image: Image) -> int:
        slot = self._publisher.begin(image.image_id)
        self._process(image, slot)
        return pixel_checksum(slot) if self._has_checksums else NO_CHECKSUM

    def blank(self, image: Image) -> int:
        self._publisher.begin(image.image_id).fill(0)
        return NO_CHECKSUM

    def publish(self, metadata: ImageMetadata, made: int) -> None:
        metadata.checksum = made
        self._publisher.commit_processed(metadata, self._image_bytes, pb.none)


class CompressedOutput(_RingStageOutput[tuple[int, int, int]]):
    """The images of the source, compressed. `make` returns size in bytes, compression, and checksum.

    The checksum is that of the source, of the uncompressed pixels. An image that compression does not make
    smaller is published uncompressed, and its metadata says so.
    """

    def __init__(self, config: DetectorConfig, suffix: str, compress: Compress) -> None:
        """`suffix` names the compression."""
        super().__init__(config, suffix)
        self._compression, self._image_bytes = COMPRESSION_OF_SUFFIX[suffix], config.image_bytes
        self._compress = compress
        room = np.empty(config.image_bytes, np.uint8)
        self._blank = room[: self._make(np.zeros(config.image_shape, config.dtype), room)[0]].copy()
        self._n_images = self._n_uncompressed = self._n_compressed_bytes = 0

    def make(self, image: Image) -> tuple[int, int, int]:
        made = self._make(image.pixels, self._publisher.begin_bytes(image.image_id))
        return *made, image.metadata.checksum

    def blank(self, image: Image) -> tuple[int, int, int]:
        size = len(self._blank)
        self._publisher.begin_bytes(image.image_id)[:size] = self._blank
        return size, self._compression if size < self._image_bytes else pb.none, NO_CHECKSUM

    def _make(self, pixels: np.ndarray, slot: np.ndarray) -> tuple[int, int]:
        """Fill the slot. Return the bytes used and the compression."""
        # The blob must be smaller than the image.
        size = self._compress(pixels, slot[: self._image_bytes - 1])
        if size is None:
            np.copyto(slot, pixels.reshape(-1).view(np.uint8))
            return self._image_bytes, pb.none
        return size, self._compression

    def publish(self, metadata: ImageMetadata, made: tuple[int, int, int]) -> None:
        size, compression, metadata.checksum = made
        self._n_images += 1
        self._n_compressed_bytes += size
        self._n_uncompressed += compression == pb.none
        self._publisher.commit_processed(metadata, size, compression)

    def register(self, registry: Registry) -> None:
        registry.add(metrics.IMAGES_UNCOMPRESSED, lambda: self._n_uncompressed)
        registry.add(metrics.COMPRESSED_BYTES, lambda: self._n_compressed_bytes)
        registry.add(metrics.UNCOMPRESSED_BYTES, lambda: self._n_images * self._image_bytes)

    def pairs(self, period: Period) -> dict[str, object]:
        n_bytes = period.count(metrics.COMPRESSED_BYTES)
        return super().pairs(period) | {
            "compression_ratio": period.count(metrics.UNCOMPRESSED_BYTES) / n_bytes if n_bytes else 0.0,
            "n_uncompressed_images": period.count(metrics.IMAGES_UNCOMPRESSED),
        }


class FilterOutput(StageOutput[bool]):
    """The metadata of some images of the source. `make` returns whether the image is one of them.

    Messages keep the `sequence` of the ring buffer, with which readers check the slot, and get a `number` of
    this stream, with which they notice dropped messages.
    """

    status_of_failed: int | None = None

    def __init__(
        self, config: DetectorConfig, suffix: str, keep: KeepImage, looks_at_pixels: bool = True
    ) -> None:
        """Raise `EndpointError`."""
        self._stream = MetadataPublisher(config, suffix)
        self.n_slots, self.looks_at_pixels = config.n_slots, looks_at_pixels
        self._keep = keep
        self._n_passed = 0

    def make(self, image: Image) -> bool:
        return bool(self._keep(image))

    def blank(self, image: Image) -> bool:
        del image
        return True  # Overwritten and failed images are forwarded, so that readers notice them.

    def publish(self, metadata: ImageMetadata, made: bool) -> None:
        if not made:
            return
        self._n_passed += 1
        metadata.number = self._n_passed
        self._stream.send(metadata)

    def register(self, registry: Registry) -> None:
        registry.add(metrics.IMAGES_PASSED, lambda: self._n_passed)

    def attend(self) -> None:
        self._stream.count_subscribers()

    def pairs(self, period: Period) -> dict[str, object]:
        return {
            "n_subscribers": self._stream.count_subscribers(),
            "n_passed_images": period.count(metrics.IMAGES_PASSED),
        }

    def close(self) -> None:
        self._stream.close()
