"""The ImageBuffer API: the images that `std_buffer_writer` has stored, as numpy arrays by id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stddaq.client.buffer_files import BufferFiles, DamagedImageError, camera_directory, empty_image
from stddaq.client.buffer_index import (
    BATCH_IDS,
    LARGE_BATCH_IDS,
    BufferIndex,
    DamagedRecordError,
    ImageBufferError,
    ImageBufferUnreachableError,
    parse_record,
)
from stddaq.client.buffer_offsets import OffsetCheck
from stddaq.closing import Closing
from stddaq.text import mismatch
from stddaq.wire.image_buffer import MAX_ID, BufferedMetadata, ImageMetadata

__all__ = [
    "BufferedImage",
    "DamagedImageError",
    "DamagedRecordError",
    "ImageBuffer",
    "ImageBufferError",
    "ImageBufferUnreachableError",
    "NotStoredError",
]


# An image is read again when it was replaced meanwhile.
MAX_ATTEMPTS = 10


class NotStoredError(ImageBufferError, LookupError):
    """The buffer does not have an image: it was never stored, or it has expired."""


@dataclass(frozen=True, slots=True)
class BufferedImage:
    """One stored image.

    Attributes:
        image_id: the detector's id.
        pixels: array of shape (height, width).
        metadata: the message of the image, with the detector's own fields (`metadata.gf.scan_id`).
    """

    image_id: int
    pixels: np.ndarray
    metadata: ImageMetadata


class ImageBuffer(Closing):
    """The stored images of one camera.

    Use it as a context manager::

        with ImageBuffer("/data/buffer", "tcp://127.0.0.1:6379", "CAM1") as images:
            newest = images[images.newest()]
            for image in images.iterate(first=1000, last=1999):
                print(image.image_id, image.pixels.mean())
    """

    def __init__(self, root: str | Path, address: str, camera: str) -> None:
        """`root`: directory of the camera, or the one that contains it. `address`: the database.

        Raise `ImageBufferError` for a wrong address. The first question connects.
        """
        self._index = BufferIndex(address, camera)
        self._offsets = OffsetCheck(self._index)
        self._files = BufferFiles(camera_directory(Path(root), camera))

    def newest(self) -> int:
        """Return the highest stored id. Raise `NotStoredError` if the buffer is empty."""
        newest = self._index.newest()
        if newest is None:
            raise NotStoredError(mismatch(f"camera {self._index.camera}", "stored images", "none"))
        return newest

    def ids(self, first: int = 0, last: int = MAX_ID) -> list[int]:
        """Return the stored ids from `first` to `last`, inclusive, in order."""
        return [image_id for image_id, _ in self._stored(first, last)]

    def __getitem__(self, image_id: int) -> BufferedImage:
        """Return an image. Raise `NotStoredError`, `DamagedImageError` or `DamagedRecordError`."""
        return self._read(self._record(image_id))

    def _record(self, image_id: int) -> BufferedMetadata:
        record = self._index.record(image_id)
        if record is None:
            raise NotStoredError(mismatch(f"image {image_id}", "a stored image", "none, or an expired one"))
        return record

    def iterate(self, first: int = 0, last: int = MAX_ID) -> Iterator[BufferedImage]:
        """Yield the images from `first` to `last` that are stored when their turn comes, in order.

        Raise `DamagedImageError` or `DamagedRecordError` at a damaged image.
        """
        for image_id, value in self._stored(first, last):
            try:
                image = self._read(parse_record(value, image_id))
            except NotStoredError:
                continue
            yield image

    def __iter__(self) -> Iterator[BufferedImage]:
        return self.iterate()

    def _stored(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        limit = BATCH_IDS
        while ids := self._index.ids(first, last, limit):
            values = self._index.values(ids)
            yield from ((i, value) for i, value in zip(ids, values, strict=True) if value is not None)
            first, limit = ids[-1] + 1, LARGE_BATCH_IDS if not any(values) else BATCH_IDS

    def _read(self, record: BufferedMetadata) -> BufferedImage:
        image_id = record.metadata.image_id
        for _ in range(MAX_ATTEMPTS):
            pixels = empty_image(record.metadata)
            try:
                self._offsets.check(record)
                self._files.read_into(record, pixels)
            except DamagedImageError:
                # The writer may have removed or replaced it after its record was read.
                present = self._record(image_id)
                if present == record:
                    raise
                record = present
            else:
                return BufferedImage(image_id, pixels, record.metadata)
        expected = f"an image that is not replaced while it is read {MAX_ATTEMPTS} times"
        advice = "several writers may store images of this id"
        raise DamagedImageError(mismatch(f"image {image_id}", expected, "another one each time", advice))

    def close(self) -> None:
        """Disconnect, and close the files."""
        self._files.close()
        self._index.close()
