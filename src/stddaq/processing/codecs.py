"""The two compressions of std_daq: bitshuffle with LZ4, and Blosc2.

A codec is called with an image and room for its compressed bytes, in any thread, and releases the GIL. It
returns the number of compressed bytes, or None if the room does not suffice.
"""

from __future__ import annotations

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.errors import CompressionError
from stddaq.text import mismatch
from stddaq.wire.blosc2_chunk import ChunkCompressor
from stddaq.wire.compression import MAX_BLOSC2_BYTES, bitshuffle_lz4_bound, compress_bitshuffle_lz4_within


class BitshuffleLz4:
    """Makes h5bitshuffle-lz4 blobs of images."""

    def __init__(self, config: DetectorConfig, block_bytes: int) -> None:
        """`block_bytes` 0 is the default of the library. Raise `CompressionError` for an invalid size."""
        # Raises the error at the start instead of with the first image.
        bitshuffle_lz4_bound(config.image_bytes, config.dtype.itemsize, block_bytes)
        self._block_bytes = block_bytes

    def __call__(self, pixels: np.ndarray, room: np.ndarray) -> int | None:
        """Compress an image into `room`. Return the bytes used, or None if they do not suffice."""
        return compress_bitshuffle_lz4_within(pixels, room, self._block_bytes)


class Blosc2:
    """Makes Blosc2 chunks of images."""

    def __init__(self, config: DetectorConfig, level: int) -> None:
        """`level` 0 to 9. Raise `CompressionError` for images that are too large for Blosc2."""
        if config.image_bytes > MAX_BLOSC2_BYTES:
            raise CompressionError(
                mismatch("image", f"up to {MAX_BLOSC2_BYTES} bytes", str(config.image_bytes))
            )
        self._compressor = ChunkCompressor(config.dtype.itemsize, level)

    def __call__(self, pixels: np.ndarray, room: np.ndarray) -> int | None:
        """Compress an image into `room`. Return the bytes used, or None if they do not suffice."""
        chunk = self._compressor.compress(pixels)
        if len(chunk) > room.nbytes:
            return None
        # numpy releases the GIL while it copies.
        np.copyto(room[: len(chunk)], np.frombuffer(chunk, np.uint8))
        return len(chunk)
