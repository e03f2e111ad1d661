"""Compressed blobs as std_daq sends and stores them: bitshuffle with LZ4, and LZ4 alone.

The codec is the one that hdf5plugin brings for HDF5's filter 32008, called without the GIL and from buffer to
buffer, so that threads compress in parallel and a ring-buffer slot is filled in place. A blob from a peer is
walked through before the codec sees it, which itself trusts the lengths in it.
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

from stddaq.errors import StdDaqError

Buffer = bytes | bytearray | memoryview
ByteOrder = Literal["little", "big"]

# bitshuffle's own default: blocks of 8192 bytes, but never of less than 128 elements.
_TARGET_BLOCK_BYTES = 8192
_SMALLEST_BLOCK = 128
# A block is a multiple of this many elements.
_BLOCK_MULTIPLE = 8
MAX_BLOCK_BYTES = 2**30
# Limit of LZ4 itself.
_MAX_LZ4_BYTES = 0x7E000000
_HEADER = struct.Struct(">qi")
_BLOCK_LENGTH = struct.Struct(">I")


class CompressionError(StdDaqError):
    """A blob cannot be decoded, or not be made as asked for."""


class CodecError(StdDaqError):
    """The library with the codec cannot be used; hdf5plugin is installed otherwise than by its wheel."""


class _Codec:
    """The functions of the shared library."""

    def __init__(self) -> None:
        # hdf5plugin itself, when imported, would bring h5py and HDF5 into services that need neither.
        package = importlib.util.find_spec("hdf5plugin")
        assert package is not None
        assert package.origin is not None
        path = Path(package.origin).with_name("plugins") / "libh5bshuf.so"
        try:
            library = ctypes.CDLL(str(path))
            self.compress = _function(library.bshuf_compress_lz4, ctypes.c_int64, "ppnnn")
            self.decompress = _function(library.bshuf_decompress_lz4, ctypes.c_int64, "ppnnn")
            self.bound = _function(library.bshuf_compress_lz4_bound, ctypes.c_size_t, "nnn")
            self.lz4_compress = _function(library.LZ4_compress_default, ctypes.c_int, "ppii")
            self.lz4_decompress = _function(library.LZ4_decompress_safe, ctypes.c_int, "ppii")
            self.lz4_bound = _function(library.LZ4_compressBound, ctypes.c_int, "i")
        except (OSError, AttributeError) as error:
            raise CodecError(
                f"{path}: found {error}, needed are bitshuffle and LZ4 as in the wheels of hdf5plugin"
            ) from error


def _function(function: Any, result: type, arguments: str) -> Callable[..., int]:
    """Declare a function of C: p pointer, n size_t, i int."""
    kinds = {"p": ctypes.c_void_p, "n": ctypes.c_size_t, "i": ctypes.c_int}
    function.restype, function.argtypes = result, [kinds[kind] for kind in arguments]
    return function


@cache
def _codec() -> _Codec:
    return _Codec()


def default_block_bytes(itemsize: int) -> int:
    """The block size, in bytes, of data whose elements have `itemsize` bytes."""
    elements = _TARGET_BLOCK_BYTES // itemsize // _BLOCK_MULTIPLE * _BLOCK_MULTIPLE
    return max(elements, _SMALLEST_BLOCK) * itemsize


def bitshuffle_lz4_bound(n_bytes: int, itemsize: int, block_bytes: int = 0) -> int:
    """The most bytes that a bitshuffle_lz4 blob of `n_bytes` of data can have.

    Raises `CompressionError` for a block size that is not possible.
    """
    block = _block_elements(block_bytes or default_block_bytes(itemsize), itemsize)
    return _HEADER.size + _codec().bound(n_bytes // itemsize, itemsize, block)


def compress_bitshuffle_lz4(array: np.ndarray, block_bytes: int = 0) -> memoryview:
    """The bitshuffle_lz4 blob of `array`, of any shape and type: what HDF5's filter 32008 stores.

    int64 BE uncompressed bytes, int32 BE block size in bytes, then per block uint32 BE length and LZ4 data;
    up to seven elements at the end as they are. `block_bytes` 0 is bitshuffle's default (8192); it must be a
    multiple of eight elements. Raises `CompressionError` when it is not.
    """
    blob = np.empty(bitshuffle_lz4_bound(array.nbytes, array.itemsize, block_bytes), np.uint8)
    return blob.data[: compress_bitshuffle_lz4_into(array, blob, block_bytes)]


def compress_bitshuffle_lz4_into(array: np.ndarray, blob: np.ndarray, block_bytes: int = 0) -> int:
    """The same, into `blob`, uint8, of at least `bitshuffle_lz4_bound` bytes. Returns the bytes used.

    The GIL is released. Raises `CompressionError`.
    """
    array = np.ascontiguousarray(array)
    itemsize = array.itemsize
    block_bytes = block_bytes or default_block_bytes(itemsize)
    block = _block_elements(block_bytes, itemsize)
    needed = bitshuffle_lz4_bound(array.nbytes, itemsize, block_bytes)
    if blob.nbytes < needed or not blob.flags.c_contiguous:
        raise CompressionError(f"found room for a blob of {blob.nbytes} bytes, needed are {needed}")
    _HEADER.pack_into(blob.data, 0, array.nbytes, block_bytes)
    target = blob.ctypes.data + _HEADER.size
    n = _codec().compress(array.ctypes.data, target, array.size, itemsize, block)
    if n < 0:
        raise CompressionError(f"bitshuffle failed with {n} on {array.nbytes} bytes")
    return _HEADER.size + n


def compress_bitshuffle_lz4_within(array: np.ndarray, room: np.ndarray, block_bytes: int = 0) -> int | None:
    """The same into `room`, uint8, that may be smaller; None when the blob is larger, then with any content.

    The codec does not look for the end of its output, so that only as many blocks go straight into `room` as
    are certain to fit, which are nearly all of an image when `room` is as large as the image; those behind
    them do, too, when the first became smaller. The GIL is released. Raises `CompressionError`.
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
    """The array of `shape` and `dtype` in a bitshuffle_lz4 blob. Raises `CompressionError`."""
    array = np.empty(shape, dtype)
    decompress_bitshuffle_lz4_into(blob, array)
    return array


def decompress_bitshuffle_lz4_into(blob: Buffer, array: np.ndarray) -> None:
    """Decode a blob into `array`, C-contiguous, of the very size that the blob holds.

    The GIL is released. Raises `CompressionError`; the array's content is then undefined.
    """
    data = np.frombuffer(blob, np.uint8)
    itemsize = array.itemsize
    block = _checked_blocks(data, array.nbytes, itemsize)
    source = data.ctypes.data + _HEADER.size
    n = _codec().decompress(source, _address(array), array.size, itemsize, block)
    if n < 0:
        raise CompressionError(f"found a bitshuffle_lz4 blob whose LZ4 data are damaged (bitshuffle: {n})")


def check_bitshuffle_lz4(blob: Buffer, n_bytes: int, itemsize: int) -> None:
    """Raise `CompressionError` unless the blob's headers are those of `n_bytes` of data. 0.1 us per block."""
    _checked_blocks(np.frombuffer(blob, np.uint8), n_bytes, itemsize)


def _checked_blocks(data: np.ndarray, n_bytes: int, itemsize: int) -> int:
    """Elements per block, after a walk over the lengths of all blocks, which the codec does not check."""
    if data.size < _HEADER.size:
        raise CompressionError(f"found a bitshuffle_lz4 blob of {data.size} bytes, its header has 12")
    found, block_bytes = _HEADER.unpack_from(data.data)
    if found != n_bytes:
        raise CompressionError(f"found a bitshuffle_lz4 blob of {found} bytes of data, allowed are {n_bytes}")
    block = _block_elements(block_bytes, itemsize)
    n_elements = n_bytes // itemsize
    n_blocks = n_elements // block + (n_elements % block >= _BLOCK_MULTIPLE)
    view, position, end = data.data, _HEADER.size, data.size
    length_at = _BLOCK_LENGTH.unpack_from
    for _ in range(n_blocks):
        if position + 4 > end:
            break
        position += 4 + length_at(view, position)[0]
    position += n_elements % _BLOCK_MULTIPLE * itemsize
    if position > end:
        raise CompressionError(f"found a bitshuffle_lz4 blob of {end} bytes, its blocks need {position}")
    return block


def _block_elements(block_bytes: int, itemsize: int) -> int:
    block, rest = divmod(block_bytes, itemsize)
    if rest or block % _BLOCK_MULTIPLE or not 0 < block_bytes <= MAX_BLOCK_BYTES:
        raise CompressionError(
            f"found bitshuffle blocks of {block_bytes} bytes, allowed are multiples of "
            f"{_BLOCK_MULTIPLE * itemsize} (8 elements) up to {MAX_BLOCK_BYTES}"
        )
    return block


def compress_lz4(array: np.ndarray, byte_order: ByteOrder = "little") -> memoryview:
    """The lz4 blob of `array`: uint32 uncompressed bytes in `byte_order`, then one LZ4 block.

    Raises `CompressionError` for more than LZ4 can take (2 113 929 216 bytes).
    """
    array = np.ascontiguousarray(array)
    if array.nbytes > _MAX_LZ4_BYTES:
        raise CompressionError(f"found {array.nbytes} bytes, allowed for lz4 are {_MAX_LZ4_BYTES}")
    codec = _codec()
    blob = np.empty(4 + codec.lz4_bound(array.nbytes), np.uint8)
    blob[:4] = np.frombuffer(array.nbytes.to_bytes(4, byte_order), np.uint8)
    n = codec.lz4_compress(array.ctypes.data, blob.ctypes.data + 4, array.nbytes, blob.size - 4)
    if n <= 0:
        raise CompressionError(f"LZ4 failed with {n} on {array.nbytes} bytes")
    return blob.data[: 4 + n]


def decompress_lz4_into(blob: Buffer, array: np.ndarray, byte_order: ByteOrder = "little") -> None:
    """Decode an lz4 blob into `array`, C-contiguous, of the very size that the blob holds.

    The GIL is released. Raises `CompressionError`; the array's content is then undefined.
    """
    data = np.frombuffer(blob, np.uint8)
    check_lz4(blob, array.nbytes, byte_order)
    n = _codec().lz4_decompress(data.ctypes.data + 4, _address(array), data.size - 4, array.nbytes)
    if n != array.nbytes:
        raise CompressionError(f"found an lz4 blob whose data are damaged (LZ4: {n})")


def check_lz4(blob: Buffer, n_bytes: int, byte_order: ByteOrder = "little") -> None:
    """Raise `CompressionError` unless the header of an lz4 blob is that of `n_bytes` of data."""
    head = bytes(memoryview(blob)[:4])
    found = int.from_bytes(head, byte_order)
    if len(head) < 4 or found != n_bytes or n_bytes > _MAX_LZ4_BYTES:
        raise CompressionError(f"found an lz4 blob of {found} bytes of data, allowed are {n_bytes}")


def _address(array: np.ndarray) -> int:
    """Where the codec may write. The array's size was compared with the blob's before."""
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise CompressionError("found an array that is not contiguous or not writable to decode into")
    return array.ctypes.data
