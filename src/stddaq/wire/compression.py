"""Compressed blobs as std_daq sends and stores them: bitshuffle with LZ4, and LZ4 alone.

The codec is the library that hdf5plugin ships for HDF5's filter 32008. It is called without the GIL and from
buffer to buffer, so that threads compress in parallel and fill slots of the ring buffer in place. The codec
trusts the lengths in a blob, so a blob from a peer is checked first.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stddaq.errors import CompressionError, StdDaqError
from stddaq.text import mismatch

Buffer = bytes | bytearray | memoryview
ByteOrder = Literal["little", "big"]

# bitshuffle's default: blocks of 8192 bytes, but at least 128 elements.
_TARGET_BLOCK_BYTES = 8192
_SMALLEST_BLOCK = 128
# A block has a multiple of 8 elements.
_BLOCK_MULTIPLE = 8
MAX_BLOCK_BYTES = 2**30
# C-Blosc2 compresses less than 2 GiB at once, see BLOSC2_MAX_BUFFERSIZE.
MAX_BLOSC2_BYTES = 2**31 - 1 - 32
# The most that LZ4 compresses at once.
_MAX_LZ4_BYTES = 0x7E000000
_HEADER = struct.Struct(">qi")
_BLOCK_LENGTH = struct.Struct(">I")


class CodecError(StdDaqError):
    """The codec cannot be loaded from hdf5plugin; its wheels contain it."""


class _Codec:
    """The functions of the shared library."""

    def __init__(self) -> None:
        # Importing hdf5plugin would load h5py and HDF5 into services that need neither.
        package = importlib.util.find_spec("hdf5plugin")
        assert package is not None
        assert package.origin is not None
        path = Path(package.origin).with_name("plugins") / "libh5bshuf.so"
        try:
            library = ctypes.CDLL(str(path))
            self.compress = _function(library.bshuf_compress_lz4, ctypes.c_int64, "ppnnn")
            self.decompress = _function(library.bshuf_decompress_lz4, ctypes.c_int64, "ppnnn")
            self.bound = _function(library.bshuf_compress_lz4_bound, ctypes.c_size_t, "nnn")
            self.lz4_compress = _function(library.LZ4_compress_fast, ctypes.c_int, "ppiii")
            self.lz4_decompress = _function(library.LZ4_decompress_safe, ctypes.c_int, "ppii")
            self.lz4_bound = _function(library.LZ4_compressBound, ctypes.c_int, "i")
        except (OSError, AttributeError) as error:
            raise CodecError(
                mismatch(str(path), "bitshuffle and LZ4 as in the wheels of hdf5plugin", str(error))
            ) from error


def _function(function: Any, result: type, arguments: str) -> Callable[..., int]:
    """Declare the types of a C function: p pointer, n size_t, i int."""
    kinds = {"p": ctypes.c_void_p, "n": ctypes.c_size_t, "i": ctypes.c_int}
    function.restype, function.argtypes = result, [kinds[kind] for kind in arguments]
    return function


@cache
def _codec() -> _Codec:
    return _Codec()


def default_block_bytes(itemsize: int) -> int:
    """Return the default block size, in bytes, for elements of `itemsize` bytes."""
    elements = _TARGET_BLOCK_BYTES // itemsize // _BLOCK_MULTIPLE * _BLOCK_MULTIPLE
    return max(elements, _SMALLEST_BLOCK) * itemsize


def bitshuffle_lz4_bound(n_bytes: int, itemsize: int, block_bytes: int = 0) -> int:
    """Return the most bytes that a bitshuffle_lz4 blob of `n_bytes` of data can have.

    Raise `CompressionError` if the block size is not valid.
    """
    block = _block_elements(block_bytes or default_block_bytes(itemsize), itemsize)
    return _HEADER.size + _codec().bound(n_bytes // itemsize, itemsize, block)


def compress_bitshuffle_lz4(array: np.ndarray, block_bytes: int = 0) -> memoryview:
    """Return the bitshuffle_lz4 blob of an array of any shape and type, as HDF5's filter 32008 stores it.

    The blob has the number of uncompressed bytes (int64 BE), the block size in bytes (int32 BE), and for each
    block its length (uint32 BE) and LZ4 data; up to seven elements at the end are not compressed.
    `block_bytes` is a multiple of eight elements, or 0 for bitshuffle's default (8192). Raise
    `CompressionError` if it is neither.
    """
    blob = np.empty(bitshuffle_lz4_bound(array.nbytes, array.itemsize, block_bytes), np.uint8)
    return blob.data[: compress_bitshuffle_lz4_into(array, blob, block_bytes)]


def compress_bitshuffle_lz4_into(array: np.ndarray, blob: np.ndarray, block_bytes: int = 0) -> int:
    """Write the blob of `array` into `blob`, uint8, of at least `bitshuffle_lz4_bound` bytes.

    Return the number of bytes used. Release the GIL. Raise `CompressionError`.
    """
    array = np.ascontiguousarray(array)
    itemsize = array.itemsize
    block_bytes = block_bytes or default_block_bytes(itemsize)
    block = _block_elements(block_bytes, itemsize)
    needed = bitshuffle_lz4_bound(array.nbytes, itemsize, block_bytes)
    if blob.nbytes < needed or not blob.flags.c_contiguous:
        raise CompressionError(mismatch("buffer", f"{needed} contiguous bytes for a blob", str(blob.nbytes)))
    _HEADER.pack_into(blob.data, 0, array.nbytes, block_bytes)
    target = blob.ctypes.data + _HEADER.size
    n = _codec().compress(array.ctypes.data, target, array.size, itemsize, block)
    if n < 0:
        raise CompressionError(f"bitshuffle failed with {n} on {array.nbytes} bytes")
    return _HEADER.size + n


def compress_bitshuffle_lz4_within(array: np.ndarray, room: np.ndarray, block_bytes: int = 0) -> int | None:
    """Write the blob of `array` into `room`, uint8, which may be smaller than `bitshuffle_lz4_bound`.

    Return the number of bytes used, or None if the blob does not fit; `room` then has undefined content.
    Release the GIL. Raise `CompressionError`.

    The codec does not check for the end of its output. So only as many blocks are compressed straight into
    `room` as certainly fit: nearly all of an image, if `room` is as large as the image. The remaining blocks
    are, too, if the first ones became smaller, and else go through a temporary buffer.
    """
    array = np.ascontiguousarray(array)
    itemsize, size = array.itemsize, array.size
    block_bytes = block_bytes or default_block_bytes(itemsize)
    block = _block_elements(block_bytes, itemsize)
    if room.nbytes < _HEADER.size:
        return None
    _HEADER.pack_into(room.data, 0, array.nbytes, block_bytes)
    end, codec = _HEADER.size, _codec()
    source, target = array.ctypes.data, _address(room)
    n_certain = (room.nbytes - end) // codec.bound(block, itemsize, block) * block
    for first, n in ((0, min(n_certain, size)), (n_certain, size - n_certain)):
        if n <= 0:
            continue
        bound = codec.bound(n, itemsize, block)
        fits = bound <= room.nbytes - end
        aside = None if fits else np.empty(bound, np.uint8)
        into = target + end if aside is None else aside.ctypes.data
        n_bytes = codec.compress(source + first * itemsize, into, n, itemsize, block)
        if n_bytes < 0:
            raise CompressionError(f"bitshuffle failed with {n_bytes} on {array.nbytes} bytes")
        if aside is not None:
            if n_bytes > room.nbytes - end:
                return None
            room[end : end + n_bytes] = aside[:n_bytes]
        end += n_bytes
    return end


def decompress_bitshuffle_lz4(blob: Buffer, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the array of `shape` and `dtype` in a bitshuffle_lz4 blob. Raise `CompressionError`."""
    array = np.empty(shape, dtype)
    decompress_bitshuffle_lz4_into(blob, array)
    return array


def decompress_bitshuffle_lz4_into(blob: Buffer, array: np.ndarray) -> None:
    """Decode a bitshuffle_lz4 blob into `array`, C-contiguous, of exactly the size of the data.

    Release the GIL. Raise `CompressionError`; the array then has undefined content.
    """
    data = np.frombuffer(blob, np.uint8)
    itemsize = array.itemsize
    block = _checked_blocks(data, array.nbytes, itemsize)
    source = data.ctypes.data + _HEADER.size
    n = _codec().decompress(source, _address(array), array.size, itemsize, block)
    if n < 0:
        raise CompressionError(mismatch("bitshuffle_lz4 blob", "valid LZ4 data", f"error {n} of bitshuffle"))


def check_bitshuffle_lz4(blob: Buffer, n_bytes: int, itemsize: int) -> None:
    """Raise `CompressionError` unless the lengths in a blob fit `n_bytes` of data. 0.1 us per block."""
    _checked_blocks(np.frombuffer(blob, np.uint8), n_bytes, itemsize)


def check_bitshuffle_header(blob: Buffer, n_bytes: int, itemsize: int) -> int:
    """Return the elements per block, after the header of a blob with `n_bytes` of data. 1 us.

    Raise `CompressionError` if it does not fit. A block size of 0 is bitshuffle's default.
    """
    size = memoryview(blob).nbytes
    if size < _HEADER.size:
        raise CompressionError(mismatch("bitshuffle_lz4 blob", "12 bytes of header", f"{size} bytes"))
    found, block_bytes = _HEADER.unpack_from(blob)
    if found != n_bytes:
        raise CompressionError(mismatch("bitshuffle_lz4 blob", f"{n_bytes} bytes of data", str(found)))
    return _block_elements(block_bytes or default_block_bytes(itemsize), itemsize)


def _checked_blocks(data: np.ndarray, n_bytes: int, itemsize: int) -> int:
    """Return the elements per block. Check the lengths of all blocks, because the codec does not."""
    block = check_bitshuffle_header(data.data, n_bytes, itemsize)
    n_elements = n_bytes // itemsize
    n_blocks = n_elements // block + (n_elements % block >= _BLOCK_MULTIPLE)
    view, position, end = data.data, _HEADER.size, data.size
    length_at = _BLOCK_LENGTH.unpack_from
    for _ in range(n_blocks):
        position += 4
        if position > end:
            break
        position += length_at(view, position - 4)[0]
    position += n_elements % _BLOCK_MULTIPLE * itemsize
    if position > end:
        raise CompressionError(mismatch("bitshuffle_lz4 blob", f"{position} bytes for its blocks", str(end)))
    return block


def _block_elements(block_bytes: int, itemsize: int) -> int:
    block, rest = divmod(block_bytes, itemsize)
    if rest or block % _BLOCK_MULTIPLE or not 0 < block_bytes <= MAX_BLOCK_BYTES:
        raise CompressionError(
            mismatch(
                "bytes per bitshuffle block",
                f"a multiple of {_BLOCK_MULTIPLE * itemsize} (8 elements) up to {MAX_BLOCK_BYTES}",
                str(block_bytes),
            )
        )
    return block


def compress_lz4(array: np.ndarray, byte_order: ByteOrder = "little", acceleration: int = 1) -> memoryview:
    """Return the lz4 blob of `array`: uint32 uncompressed bytes in `byte_order`, then one LZ4 block.

    A higher `acceleration` takes less time for data that LZ4 hardly compresses, and finds fewer matches.
    Raise `CompressionError` for more than 2 113 929 216 bytes, the limit of LZ4.
    """
    array = np.ascontiguousarray(array)
    if array.nbytes > _MAX_LZ4_BYTES:
        raise CompressionError(mismatch("array", f"up to {_MAX_LZ4_BYTES} bytes for lz4", str(array.nbytes)))
    codec = _codec()
    blob = np.empty(4 + codec.lz4_bound(array.nbytes), np.uint8)
    blob[:4] = np.frombuffer(array.nbytes.to_bytes(4, byte_order), np.uint8)
    n = codec.lz4_compress(array.ctypes.data, blob.ctypes.data + 4, array.nbytes, blob.size - 4, acceleration)
    if n <= 0:
        raise CompressionError(f"LZ4 failed with {n} on {array.nbytes} bytes")
    return blob.data[: 4 + n]


def decompress_lz4_into(blob: Buffer, array: np.ndarray, byte_order: ByteOrder = "little") -> None:
    """Decode an lz4 blob into `array`, C-contiguous, of exactly the size of the data.

    Release the GIL. Raise `CompressionError`; the array then has undefined content.
    """
    data = np.frombuffer(blob, np.uint8)
    check_lz4(blob, array.nbytes, byte_order)
    n = _codec().lz4_decompress(data.ctypes.data + 4, _address(array), data.size - 4, array.nbytes)
    if n != array.nbytes:
        raise CompressionError(mismatch("lz4 blob", "valid LZ4 data", f"{n} from LZ4"))


def check_lz4(blob: Buffer, n_bytes: int, byte_order: ByteOrder = "little") -> None:
    """Raise `CompressionError` unless the header of an lz4 blob announces `n_bytes` of data."""
    head = bytes(memoryview(blob)[:4])
    found = int.from_bytes(head, byte_order)
    if len(head) < 4 or found != n_bytes or n_bytes > _MAX_LZ4_BYTES:
        raise CompressionError(mismatch("lz4 blob", f"{n_bytes} bytes of data", str(found)))


def _address(array: np.ndarray) -> int:
    """Return where the codec may write. The caller has compared the array's size with the blob's."""
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise CompressionError(mismatch("array", "a contiguous and writable one", "another"))
    return array.ctypes.data
