"""One image of a source as a processing function receives it: its metadata, and its pixels in the ring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.errors import SourceError
from stddaq.text import mismatch

if TYPE_CHECKING:
    import numpy as np


class Image:
    """An image in the source's ring buffer; nothing is copied.

    The source may write the next image over it at any time. The service checks that after the processing
    function has returned, and then does not pass the result on as good.

    Attributes:
        metadata: as announced: `image_id`, `status`, the detector's own fields (`metadata.gf.scan_id`).
    """

    __slots__ = ("_ring", "metadata")

    def __init__(self, metadata: ImageMetadata, ring: RingBuffer) -> None:
        self.metadata, self._ring = metadata, ring

    @property
    def image_id(self) -> int:
        """The image's id."""
        return self.metadata.image_id

    @property
    def pixels(self) -> np.ndarray:
        """The image, (height, width) of the configuration's pixel type, read-only, not copied.

        Raises `SourceError` when the image is compressed.
        """
        if self.metadata.compression:
            raise SourceError(
                mismatch(f"image {self.image_id}", "pixels", "a compressed image", "read its `content`")
            )
        pixels = self._ring.image(self.metadata.image_id)
        pixels.flags.writeable = False
        return pixels

    @property
    def content(self) -> memoryview:
        """The bytes of the image, compressed or not, uint8, read-only, not copied."""
        slot = self._ring.slot(self.metadata.image_id)
        return slot[: self.metadata.size or len(slot)].toreadonly()
