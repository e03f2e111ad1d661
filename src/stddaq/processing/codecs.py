"""The two compressions of std_daq, as HDF5's filters 32008 (bitshuffle) and 32026 (Blosc2) read them.

A codec is called with an image and room for its compressed bytes, in any thread, and releases the GIL. It
returns the number of compressed bytes, or None if the room does not suffice.
"""

from __future__ import annotations

import struct
from typing import Any, cast

import blosc2
import numpy as np

from stddaq.config import DetectorConfig
from stddaq.wire.compression import bitshuffle_lz4_bound, compress_bitshuffle_lz4_within

# Offsets in a Blosc2 frame (big-endian), see
# https://github.com/Blosc/c-blosc2/blob/main/README_CFRAME_FORMAT.rst
_FRAME_LENGTH = struct.Struct(">Q"), 16
_CHUNK_LENGTH = struct.Struct(">q"), 39
_HEADER_LENGTH = struct.Struct(">i"), 11


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
    """Makes Blosc2 frames of one chunk with the defaults of the C library: shuffle and BloscLZ."""

    def __init__(self, config: DetectorConfig, level: int) -> None:
        """`level` 0 to 9."""
        blosc2.set_releasegil(True)
        # The annotations of the library lack these.
        self._parameters: Any = blosc2.CParams(
            codec=blosc2.Codec.BLOSCLZ,
            clevel=level,
            typesize=config.dtype.itemsize,
            filters=[blosc2.Filter.SHUFFLE],
            nthreads=1,
        )
        # Only two numbers in a frame depend on the image. So the library makes one frame, here; making each
        # would copy every image twice.
        noise = np.random.default_rng(0).bytes(config.image_bytes)
        options: Any = {"contiguous": True, "data": noise, "cparams": self._parameters}
        frame = blosc2.SChunk(chunksize=config.image_bytes, **options).to_cframe()
        begin = _read(_HEADER_LENGTH, frame)
        end = begin + _read(_CHUNK_LENGTH, frame)
        self._header, self._trailer = frame[:begin], frame[end:]

    def __call__(self, pixels: np.ndarray, room: np.ndarray) -> int | None:
        """Compress an image into `room`. Return the bytes used, or None if they do not suffice."""
        chunk = cast(bytes, blosc2.compress2(pixels, cparams=self._parameters))
        size = len(self._header) + len(chunk) + len(self._trailer)
        if size > room.nbytes:
            return None
        header = bytearray(self._header)
        _write(_FRAME_LENGTH, header, size)
        _write(_CHUNK_LENGTH, header, len(chunk))
        end = 0
        for piece in (header, chunk, self._trailer):
            begin, end = end, end + len(piece)
            # numpy releases the GIL while it copies.
            np.copyto(room[begin:end], np.frombuffer(piece, np.uint8))
        return size


def _read(field: tuple[struct.Struct, int], frame: bytes) -> int:
    layout, offset = field
    return layout.unpack_from(frame, offset)[0]


def _write(field: tuple[struct.Struct, int], frame: bytearray, value: int) -> None:
    layout, offset = field
    layout.pack_into(frame, offset, value)
