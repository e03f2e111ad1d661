"""Compressed images as the chunks of raw files: what HDF5's filters decode, checked before it is stored.

HDF5 stores the bytes that it is given. If they are not what the filter expects, the file is written without
an error and cannot be read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from stddaq.wire.compressed_image import decompress_image_into
from stddaq.wire.compression import Buffer, check_bitshuffle_header
from stddaq.wire.std_daq import image_metadata_pb2 as pb

if TYPE_CHECKING:
    from stddaq.wire.blosc2_chunk import FrameMaker

# Registered HDF5 filters with the options that describe what std_daq's compressors make: LZ4 inside
# bitshuffle; and Blosc2 with level 5, bit shuffle, LZ4 after four values that the filter fills in.
FILTERS: dict[int, tuple[int, tuple[int, ...]]] = {
    pb.h5bitshuffle_lz4: (32008, (0, 2)),
    pb.blosc2: (32026, (0, 0, 0, 0, 5, 2, 1)),
}


class ChunkMaker:
    """Makes the chunks of one raw file from compressed images."""

    def __init__(self, compression: int, image_shape: tuple[int, int], dtype: np.dtype) -> None:
        """`compression` is an `ImageMetadataCompression`, not `none`."""
        self._compression, self._shape, self._dtype = compression, image_shape, dtype
        self._image_bytes = image_shape[0] * image_shape[1] * dtype.itemsize
        self._is_first = True

    def chunk(self, image: memoryview) -> Buffer:
        """Return the chunk to store. Raise `CompressionError` for an image that HDF5 could not read.

        The first image is decoded; of the others only the header is checked, which takes 1 us.
        """
        if self._is_first:
            self._decode(bytes(image))
            self._is_first = False
        if self._compression == pb.blosc2:
            return _frame_maker(self._image_bytes, self._dtype.itemsize).frame(image)
        check_bitshuffle_header(image, self._image_bytes, self._dtype.itemsize)
        return image

    def _decode(self, image: bytes) -> None:
        pixels = np.empty(self._shape, self._dtype)
        decompress_image_into(self._compression, image, pixels)


def prepare_chunks(compression: int, image_bytes: int, itemsize: int) -> None:
    """Load what the chunks of a compression need, which takes a second for Blosc2."""
    if compression == pb.blosc2:
        _frame_maker(image_bytes, itemsize)


@lru_cache(maxsize=1)
def _frame_maker(image_bytes: int, itemsize: int) -> FrameMaker:
    from stddaq.wire.blosc2_chunk import FrameMaker

    return FrameMaker(image_bytes, itemsize)
