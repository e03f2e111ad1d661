"""The two compressions of std_daq, as HDF5's filters 32008 (bitshuffle) and 32026 (Blosc2) read them.

A codec is called with an image and the room for its compressed bytes, in any thread, and works without the
GIL. It returns how many bytes they are, or None when there are more than the room can take.
"""

from __future__ import annotations

import struct
from typing import Any, cast

import blosc2
import numpy as np

from stddaq.config import DetectorConfig
from stddaq.wire.compression import bitshuffle_lz4_bound, compress_bitshuffle_lz4_within

# Where a Blosc2 frame says its own length, and that of its chunk, both big-endian; see its format
# (README_CFRAME_FORMAT of C-Blosc2).
_FRAME_LENGTH = struct.Struct(">Q"), 16
_CHUNK_LENGTH = struct.Struct(">q"), 39
_HEADER_LENGTH = struct.Struct(">i"), 11


class BitshuffleLz4:
    """The h5bitshuffle-lz4 blob of an image."""

    def __init__(self, config: DetectorConfig, block_bytes: int) -> None:
        """`block_bytes` 0 is the library's own choice. Raises `CompressionError` for an impossible size."""
        # For its error: an impossible size is refused at the start, and not with the first image.
        bitshuffle_lz4_bound(config.image_bytes, config.dtype.itemsize, block_bytes)
        self._block_bytes = block_bytes

    def __call__(self, pixels: np.ndarray, room: np.ndarray) -> int | None:
        """Compress an image."""
        return compress_bitshuffle_lz4_within(pixels, room, self._block_bytes)


class Blosc2:
    """A Blosc2 frame of one chunk, which is the image: shuffle and BloscLZ, the defaults of the C library."""

    def __init__(self, config: DetectorConfig, level: int) -> None:
        """`level` 0 to 9."""
        blosc2.set_releasegil(True)
        # The library's own annotations do not know these.
        self._parameters: Any = blosc2.CParams(
            codec=blosc2.Codec.BLOSCLZ,
            clevel=level,
            typesize=config.dtype.itemsize,
            filters=[blosc2.Filter.SHUFFLE],
            nthreads=1,
        )
        # Only two numbers in the frame depend on the image. The library makes it once: each time would
        # copy the image twice.
        noise = np.random.default_rng(0).bytes(config.image_bytes)
        options: Any = {"contiguous": True, "data": noise, "cparams": self._parameters}
        frame = blosc2.SChunk(chunksize=config.image_bytes, **options).to_cframe()
        begin = _read(_HEADER_LENGTH, frame)
        end = begin + _read(_CHUNK_LENGTH, frame)
        self._header, self._trailer = frame[:begin], frame[end:]

    def __call__(self, pixels: np.ndarray, room: np.ndarray) -> int | None:
        """Compress an image."""
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
            # numpy copies without the GIL.
            np.copyto(room[begin:end], np.frombuffer(piece, np.uint8))
        return size


def _read(field: tuple[struct.Struct, int], frame: bytes) -> int:
    layout, offset = field
    return layout.unpack_from(frame, offset)[0]


def _write(field: tuple[struct.Struct, int], frame: bytearray, value: int) -> None:
    layout, offset = field
    layout.pack_into(frame, offset, value)
