"""Images as Blosc2 chunks: bare in ring buffers, as std_daq has them, and as frames in HDF5 files.

A chunk is what `blosc2_compress_ctx` of C-Blosc2 makes, with its own header of 16 or 32 bytes. HDF5's filter
32026 stores a frame instead: a chunk between a header and a trailer, in which only two numbers depend on the
chunk. The library makes those once, because making each frame would copy every image several times.
"""

from __future__ import annotations

import struct
from typing import Any, cast

import blosc2
import numpy as np

from stddaq.errors import CompressionError
from stddaq.text import mismatch
from stddaq.wire.compression import Buffer

# Chunk header (little-endian), see
# https://github.com/Blosc/c-blosc2/blob/main/README_CHUNK_FORMAT.rst
_CHUNK_HEADER = struct.Struct("<4B3i")
# Offsets in a frame (big-endian), see
# https://github.com/Blosc/c-blosc2/blob/main/README_CFRAME_FORMAT.rst
_HEADER_LENGTH = struct.Struct(">i"), 11
_FRAME_LENGTH = struct.Struct(">Q"), 16
_CHUNK_LENGTH = struct.Struct(">q"), 39


class ChunkCompressor:
    """Compresses images as std_daq does: LZ4 after a bit shuffle, elements as large as a pixel."""

    def __init__(self, itemsize: int, level: int, codec: blosc2.Codec = blosc2.Codec.LZ4) -> None:
        """`level` 0 to 9."""
        self._parameters = _parameters(itemsize, level, codec)

    def compress(self, array: np.ndarray) -> bytes:
        """Return the chunk of an array: up to 32 bytes larger, if compression does not make it smaller.

        Release the GIL.
        """
        return cast(bytes, blosc2.compress2(array, cparams=self._parameters))


def decompress_chunk_into(chunk: Buffer, array: np.ndarray) -> None:
    """Decode a chunk of any codec into `array`, C-contiguous, of exactly the size of the data.

    Release the GIL. Raise `CompressionError`; the array then has undefined content.
    """
    check_chunk(chunk, array.nbytes)
    decompress: Any = blosc2.decompress2  # Its annotations lack the options.
    try:
        decompress(chunk, dst=array.reshape(-1).view(np.uint8), nthreads=1)
    except (RuntimeError, ValueError) as error:
        raise CompressionError(mismatch("Blosc2 chunk", "a valid one", str(error))) from error


def check_chunk(chunk: Buffer, n_bytes: int) -> None:
    """Raise `CompressionError` unless the header of a chunk fits its size and `n_bytes` of data. 1 us."""
    found = memoryview(chunk).nbytes
    if found < _CHUNK_HEADER.size:
        raise CompressionError(mismatch("Blosc2 chunk", f"{_CHUNK_HEADER.size} bytes of header", str(found)))
    *_versions_and_flags, n_data, _n_block, n_chunk = _CHUNK_HEADER.unpack_from(chunk)
    if n_data != n_bytes:
        raise CompressionError(mismatch("Blosc2 chunk", f"{n_bytes} bytes of data", str(n_data)))
    if n_chunk != found:
        raise CompressionError(mismatch("Blosc2 chunk", f"the {found} bytes announced for it", str(n_chunk)))


class FrameMaker:
    """Makes the frames that HDF5's filter 32026 decodes from chunks, which stay as they are."""

    def __init__(self, n_bytes: int, itemsize: int) -> None:
        """For images of `n_bytes` with elements of `itemsize` bytes."""
        self._n_bytes = n_bytes
        # Only a chunk with data is in the frame as it is: for one value everywhere the frame has a flag.
        data = np.random.default_rng(0).bytes(n_bytes)
        options: Any = {"contiguous": True, "data": data, "cparams": _parameters(itemsize, 1)}
        frame = blosc2.SChunk(chunksize=n_bytes, **options).to_cframe()
        begin = _read(_HEADER_LENGTH, frame)
        end = begin + _read(_CHUNK_LENGTH, frame)
        self._header, self._trailer = frame[:begin], frame[end:]

    def frame(self, chunk: Buffer) -> bytes:
        """Return the frame of a chunk. Raise `CompressionError` if its header does not fit."""
        check_chunk(chunk, self._n_bytes)
        header, n_bytes = bytearray(self._header), memoryview(chunk).nbytes
        _write(_FRAME_LENGTH, header, len(header) + n_bytes + len(self._trailer))
        _write(_CHUNK_LENGTH, header, n_bytes)
        return b"".join((header, chunk, self._trailer))


def _parameters(itemsize: int, level: int, codec: blosc2.Codec = blosc2.Codec.LZ4) -> Any:
    blosc2.set_releasegil(True)
    return blosc2.CParams(
        codec=codec,
        clevel=level,
        typesize=itemsize,
        filters=[*[blosc2.Filter.NOFILTER] * 5, blosc2.Filter.BITSHUFFLE],
        nthreads=1,
    )


def _read(field: tuple[struct.Struct, int], frame: bytes) -> int:
    layout, offset = field
    return layout.unpack_from(frame, offset)[0]


def _write(field: tuple[struct.Struct, int], frame: bytearray, value: int) -> None:
    layout, offset = field
    layout.pack_into(frame, offset, value)
