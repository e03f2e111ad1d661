"""What is made of one image for all browsers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stddaq.preview.pictures import Pictures
from stddaq.wire.preview_requests import Area, Region, View

SHAPE = (1500, 1200)
AREA = Area(128, 256, 384, 512)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 60000, SHAPE).astype(np.uint16)


def test_area_is_at_full_resolution_where_the_whole_is_reduced(pixels: np.ndarray) -> None:
    made = Pictures(SHAPE, pixels.dtype).make(pixels, [View(), View(area=AREA)], ())
    whole, part = made.parts[View()], made.parts[View(area=AREA)]
    assert (whole.bin, whole.reduced.counts.shape) == (2, (750, 600))
    assert (part.bin, part.origin, part.is_degraded) == (1, (256, 128), False)
    np.testing.assert_array_equal(part.reduced.counts, pixels[256:768, 128:512])


def test_area_for_which_there_is_no_time_is_the_whole_image(pixels: np.ndarray) -> None:
    seconds = itertools.count()
    pictures = Pictures(SHAPE, pixels.dtype, clock=lambda: next(seconds))
    made = pictures.make(pixels, [View(area=AREA)], [Region("box", AREA)])
    part = made.parts[View(area=AREA)]
    assert (part.is_degraded, part.origin, part.bin) == (True, (0, 0), 2)
    assert made.regions == {}


def test_areas_outside_the_image_are_left_out(pixels: np.ndarray) -> None:
    outside = Area(1100, 0, 101, 10)
    made = Pictures(SHAPE, pixels.dtype).make(pixels, [View(area=outside)], [Region("box", outside)])
    assert (made.parts, made.regions) == ({}, {})


def test_nearest_is_the_first_pixel_of_each_block_and_marks_masked_ones(pixels: np.ndarray) -> None:
    for image in (pixels, pixels.astype(np.float32)):
        masked = np.zeros(SHAPE, bool)
        masked[0, 0] = True
        view = View("nearest")
        reduced = Pictures(SHAPE, image.dtype, masked).make(image, [view], ()).parts[view].reduced
        values = reduced.counts * reduced.scale + reduced.offset
        assert reduced.counts[0, 0] == 65534
        np.testing.assert_allclose(values[1:], image[2::2, ::2], rtol=0, atol=reduced.scale)
