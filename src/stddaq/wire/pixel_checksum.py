"""The checksum of an image, from its source to the readers of files: XXH3 (64 bits) of uncompressed pixels.

XXH3 is twice as fast as CRC-32C: 44 GB/s on pixels that are in the cache, 14 GB/s on others.
"""

from __future__ import annotations

import numpy as np

NO_CHECKSUM = 0
# In the cache of a core, and large enough that a call takes less than a hundredth.
_BLOCK_BYTES = 512 * 2**10


def pixel_checksum(pixels: np.ndarray) -> int:
    """Return the checksum of an image (height, width), little-endian and C-contiguous."""
    # Not at the top: services without checksums do not load it.
    import xxhash

    return xxhash.xxh3_64_intdigest(pixels.data)


def copy_with_checksum(pixels: np.ndarray, target: np.ndarray) -> int:
    """Copy an image to `target` of the same shape, which is as above. Return the checksum of what is there.

    Each block is read again right after it was copied, while it is in the cache: of 8 MB the checksum takes
    half of the time.
    """
    if target.nbytes <= _BLOCK_BYTES:
        np.copyto(target, pixels)
        return pixel_checksum(target)
    import xxhash

    n = max(1, _BLOCK_BYTES // max(1, target[0].nbytes))
    checksum = xxhash.xxh3_64()
    for first in range(0, len(target), n):
        block = target[first : first + n]
        np.copyto(block, pixels[first : first + n])
        checksum.update(block.data)
    return checksum.intdigest()
