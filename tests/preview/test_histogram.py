"""The histogram of all pixels of an image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from stddaq.preview.histogram import N_BINS, histogram_of


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f4"])
def test_every_pixel_is_in_the_bin_of_its_value(dtype: str) -> None:
    random = np.random.default_rng(3)
    pixels = random.integers(0, 250, (100, 70)).astype(dtype)
    found = histogram_of(pixels, (50.0, 150.0))
    assert found.low == 25.0
    edges = np.linspace(found.low, found.high, N_BINS + 1)
    expected = [int(((pixels >= low) & (pixels < high)).sum()) for low, high in pairwise(edges)]
    assert found.counts == expected
    assert (found.n_below, found.n_above) == ((pixels < found.low).sum(), (pixels >= found.high).sum())
    assert found.n_below + sum(found.counts) + found.n_above == pixels.size


def test_one_bright_pixel_in_an_image_is_counted() -> None:
    pixels = np.zeros((2000, 2000), np.uint16)
    pixels[1234, 567] = 900
    found = histogram_of(pixels, (0.0, 1000.0))
    place = int((900 - found.low) / (found.high - found.low) * N_BINS)
    assert (found.counts[0], found.counts[place], sum(found.counts)) == (3_999_999, 1, 4_000_000)


def test_masked_and_missing_pixels_are_left_out() -> None:
    pixels = np.full((4, 4), 7.0, np.float32)
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = np.nan, np.inf, -np.inf
    masked = np.zeros((4, 4), bool)
    masked[3] = True
    found = histogram_of(pixels, (0.0, 10.0), masked)
    assert (sum(found.counts), found.n_below, found.n_above) == (9, 1, 1)


def test_bins_of_few_counts_are_one_count_wide() -> None:
    found = histogram_of(np.array([[0, 1, 2, 3]], np.uint16), (0.0, 3.0))
    assert (found.low, found.high, found.counts[:5]) == (0.0, 256.0, [1, 1, 1, 1, 0])
