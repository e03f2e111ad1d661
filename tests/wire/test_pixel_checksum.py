"""The checksum of an image that is computed while its pixels are copied."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from stddaq.wire.pixel_checksum import copy_with_checksum, pixel_checksum


@pytest.mark.parametrize("shape", [(1, 1), (32, 48), (700, 513), (3, 400_000), (200_001, 1)])
def test_copied_pixels_have_the_checksum_of_all_their_bytes(shape: tuple[int, int]) -> None:
    height, width = shape
    pixels = np.random.default_rng(1).integers(0, 4096, (height, 2 * width), "<u2")[:, ::2]
    target = np.zeros(shape, "<u2")
    checksum = copy_with_checksum(pixels, target)
    np.testing.assert_array_equal(target, pixels)
    assert checksum == pixel_checksum(target) == xxhash.xxh3_64_intdigest(pixels.tobytes())
