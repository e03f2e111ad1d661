"""Blosc2 as std_daq services (C++) use it: the C library, one bare chunk per image."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import hdf5plugin
import numpy as np

BITSHUFFLE = 2
# A chunk may be this much larger than its data.
MAX_OVERHEAD = 32


@cache
def _library() -> Any:
    library = ctypes.CDLL(str(Path(hdf5plugin.__file__).with_name("plugins") / "libh5blosc2.so"))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.blosc2_compress.argtypes = [ctypes.c_int, ctypes.c_int, number, pointer, number, pointer, number]
    library.blosc2_decompress.argtypes = [pointer, number, pointer, number]
    library.blosc1_set_compressor.argtypes = [ctypes.c_char_p]
    library.blosc2_init()
    return library


def compress(image: np.ndarray, level: int = 5, codec: bytes = b"lz4", shuffle: int = BITSHUFFLE) -> bytes:
    """Return the chunk of an image."""
    library = _library()
    assert library.blosc1_set_compressor(codec) >= 0
    image = np.ascontiguousarray(image)
    chunk = np.empty(image.nbytes + MAX_OVERHEAD, np.uint8)
    arguments = (level, shuffle, image.itemsize, image.ctypes.data, image.nbytes)
    size = library.blosc2_compress(*arguments, chunk.ctypes.data, chunk.nbytes)
    assert size > 0
    return chunk[:size].tobytes()


def decompress(chunk: bytes, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """Return the image of a chunk."""
    image = np.empty(shape, dtype)
    size = _library().blosc2_decompress(chunk, len(chunk), image.ctypes.data, image.nbytes)
    assert size == image.nbytes, f"blosc2_decompress: {size}"
    return image
