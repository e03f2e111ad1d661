"""A program that decodes damaged blobs next to unreadable memory; a mistake kills it.

It prints how many blobs were refused and how many decoded.
"""

from __future__ import annotations

import ctypes
import mmap
import struct

import numpy as np

from stddaq.errors import CompressionError
from stddaq.wire.blosc2_chunk import ChunkCompressor, decompress_chunk_into
from stddaq.wire.compression import (
    compress_bitshuffle_lz4,
    compress_lz4,
    decompress_bitshuffle_lz4_into,
    decompress_lz4_into,
)

SHAPE = (31, 53)
N_DAMAGED = 300
PROT_NONE = 0


class GuardedMemory:
    """Memory that ends at an unreadable page."""

    def __init__(self, n_bytes: int) -> None:
        n_pages = -(-n_bytes // mmap.PAGESIZE)
        self._size = n_pages * mmap.PAGESIZE
        self._map = mmap.mmap(-1, self._size + mmap.PAGESIZE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        assert libc.mprotect(self._bytes.ctypes.data + self._size, mmap.PAGESIZE, PROT_NONE) == 0

    def last(self, n_bytes: int) -> np.ndarray:
        """Return the last bytes before the end."""
        return self._bytes[self._size - n_bytes : self._size]


def main() -> None:
    n_refused = n_decoded = 0
    random = np.random.default_rng(4)
    for dtype in (np.uint8, np.uint16, np.uint32, np.float32):
        image = random.poisson(9, SHAPE).astype(dtype)
        output = GuardedMemory(image.nbytes).last(image.nbytes).view(dtype).reshape(SHAPE)
        bitshuffle = bytes(compress_bitshuffle_lz4(image, 128 * image.itemsize))
        by_default = bytearray(compress_bitshuffle_lz4(image))
        by_default[8:12] = struct.pack(">i", 0)
        for blob, decode in (
            (bitshuffle, decompress_bitshuffle_lz4_into),
            (bytes(by_default), decompress_bitshuffle_lz4_into),
            (bytes(compress_lz4(image)), decompress_lz4_into),
            (ChunkCompressor(image.itemsize, 5).compress(image), decompress_chunk_into),
        ):
            memory = GuardedMemory(len(blob) + 1)
            damaged = [blob[:end] for end in range(len(blob))]
            for _ in range(N_DAMAGED):
                content = bytearray(blob)
                for at in random.integers(0, len(blob), 1 + random.integers(4)):
                    content[at] = random.integers(256)
                damaged.append(bytes(content))
            for number, content in enumerate(damaged):
                guarded = memory.last(len(content))
                guarded[:] = np.frombuffer(content, np.uint8)
                try:
                    decode(guarded.data, output)
                    assert number >= len(blob), f"{decode.__name__} takes {number} of {len(blob)} bytes"
                    n_decoded += 1
                except CompressionError:
                    n_refused += 1
    print(n_refused, n_decoded)


if __name__ == "__main__":
    main()
