"""Pixels as a GigaFRoST packs them."""

import numpy as np


def pack12(pixels: np.ndarray) -> np.ndarray:
    """Return 12-bit pixels as an unbroken little-endian bit string, in bytes."""
    pairs = pixels.reshape(-1, 2).astype(np.uint16)
    first, second = pairs[:, 0], pairs[:, 1]
    packed = np.stack([first & 0xFF, first >> 8 | (second & 15) << 4, second >> 4], axis=1)
    return packed.astype(np.uint8).reshape(-1)
