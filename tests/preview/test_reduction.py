"""The reduction of images for browsers, compared with numpy's own means and maxima."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stddaq.preview import reduction
from stddaq.preview.reduction import MASKED, MISSING, SATURATED, Reduction, bin_of

SHAPES = [(128, 64), (67, 45), (1, 5)]
SIDES = [1, 2, 8]


@pytest.fixture
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Reduce by this factor, whatever the size of the image."""
    monkeypatch.setattr(reduction, "bin_of", lambda shape: request.param)
    return request.param


def blocks(pixels: np.ndarray, side: int) -> list[list[np.ndarray]]:
    height, width = pixels.shape
    return [
        [pixels[y : y + side, x : x + side] for x in range(0, width, side)] for y in range(0, height, side)
    ]


def expected(pixels: np.ndarray, side: int, function: Any) -> np.ndarray:
    """Apply a function to every block; blocks at the edge have fewer pixels."""
    return np.array([[function(block) for block in row] for row in blocks(pixels, side)])


def image(shape: tuple[int, int], dtype: str, highest: float = 60000) -> np.ndarray:
    values = np.random.default_rng(7).random(shape) * min(highest, 250 if dtype == "u1" else highest)
    return values.astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("side", SIDES, indirect=True)
def test_mean_and_maximum_are_those_of_numpy(shape: tuple[int, int], dtype: str, side: int) -> None:
    pixels = image(shape, dtype)
    reducing = Reduction(shape, pixels.dtype)
    mean = reducing.reduce(pixels, "mean")
    rounded = expected(pixels, side, lambda block: (int(block.sum()) + block.size // 2) // block.size)
    np.testing.assert_array_equal(mean.counts, rounded)
    np.testing.assert_array_equal(reducing.reduce(pixels, "max").counts, expected(pixels, side, np.max))
    assert (mean.minimum, mean.maximum, mean.total) == (pixels.min(), pixels.max(), pixels.sum(dtype="u8"))
    assert (mean.scale, mean.offset) == (1, 0)
    assert (mean.n_saturated, mean.n_masked, mean.n_missing) == (0, 0, 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["u4", "f4"])
@pytest.mark.parametrize("side", SIDES, indirect=True)
def test_wide_values_are_those_of_numpy_within_a_step(shape: tuple[int, int], dtype: str, side: int) -> None:
    pixels = image(shape, dtype, 4e9)
    if dtype == "f4":
        pixels -= np.float32(1e9)
    reducing = Reduction(shape, pixels.dtype)
    for name, function in (("mean", lambda block: block.mean(dtype="f8")), ("max", np.max)):
        reduced = reducing.reduce(pixels, name)  # pyright: ignore[reportArgumentType]
        values = reduced.counts * reduced.scale + reduced.offset
        np.testing.assert_allclose(values, expected(pixels, side, function), rtol=0, atol=reduced.scale)
        assert reduced.scale <= 1.5 * max(np.ptp(pixels.astype("f8")), 4) / 65532
        assert (reduced.minimum, reduced.maximum) == (pixels.min(), pixels.max())


def test_small_values_of_uint32_are_exact() -> None:
    pixels = image((100, 100), "u4", 60000)
    reduced = Reduction((100, 100), pixels.dtype).reduce(pixels)
    np.testing.assert_array_equal(reduced.counts, pixels)
    assert (reduced.scale, reduced.offset) == (1, 0)


@pytest.mark.parametrize("name", ["mean", "max"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("side", [1, 2, 8], indirect=True)
def test_one_saturated_pixel_marks_its_block(dtype: str, side: int, name: Any) -> None:
    pixels = image((67, 129), dtype)
    pixels[33, 77] = pixels[66, 128] = np.iinfo(dtype).max
    reduced = Reduction(pixels.shape, pixels.dtype).reduce(pixels, name)
    saturated = np.argwhere(reduced.counts == SATURATED).tolist()
    assert saturated == [[33 // side, 77 // side], [66 // side, 128 // side]]
    assert reduced.n_saturated == 2


def test_counts_just_below_the_marks_are_no_marks() -> None:
    pixels = np.full((64, 64), 65534, np.uint16)
    assert np.unique(Reduction(pixels.shape, pixels.dtype).reduce(pixels).counts).tolist() == [65532]


def test_saturation_of_a_camera_with_fewer_bits() -> None:
    pixels = np.full((64, 64), 4094, np.uint16)
    pixels[3, 4] = 4095
    reduced = Reduction(pixels.shape, pixels.dtype, saturation=4095).reduce(pixels)
    assert np.argwhere(reduced.counts == SATURATED).tolist() == [[3, 4]]


@pytest.mark.parametrize("dtype", ["u2", "f4"])
@pytest.mark.parametrize("side", [1, 2, 4], indirect=True)
def test_masked_pixels_do_not_count(dtype: str, side: int) -> None:
    pixels = image((130, 70), dtype, 1000)
    masked = np.zeros(pixels.shape, bool)
    masked[8:16, 8:24] = masked[40, 3] = True
    pixels[masked] = 65535  # A hot pixel is not saturated if it is masked.
    valid = np.ma.array(pixels.astype("f8"), mask=masked)
    reducing = Reduction(pixels.shape, pixels.dtype, masked)
    for name, function in (("mean", np.ma.mean), ("max", np.ma.max)):
        reduced = reducing.reduce(pixels, name)  # pyright: ignore[reportArgumentType]
        right = [
            [function(valid[y : y + side, x : x + side]) for x in range(0, 70, side)]
            for y in range(0, 130, side)
        ]
        is_masked = np.array([[value is np.ma.masked for value in row] for row in right])
        np.testing.assert_array_equal(reduced.counts == MASKED, is_masked)
        values = (reduced.counts * reduced.scale + reduced.offset)[~is_masked]
        wanted = np.array([[0 if v is np.ma.masked else v for v in row] for row in right])[~is_masked]
        np.testing.assert_allclose(values, wanted, rtol=0, atol=max(0.5, reduced.scale))
        assert (reduced.n_masked, reduced.n_saturated) == (129, 0)
        assert (reduced.minimum, reduced.maximum) == (valid.min(), valid.max())


@pytest.mark.parametrize("side", [1, 2], indirect=True)
def test_pixels_without_value_are_missing(side: int) -> None:
    pixels = image((64, 64), "f4", 1000)
    pixels[10, 10] = pixels[20:22, 20:22] = np.nan
    pixels[30, 30] = np.inf
    reduced = Reduction(pixels.shape, pixels.dtype).reduce(pixels)
    missing = np.argwhere(reduced.counts == MISSING)
    assert len(missing) == (5 if side == 1 else 1)
    assert reduced.n_missing == 5
    assert np.argwhere(reduced.counts == SATURATED).tolist() == [[30 // side, 30 // side]]
    assert np.isfinite((reduced.minimum, reduced.maximum, reduced.total)).all()


def test_image_without_any_value_is_reduced() -> None:
    pixels = np.full((64, 64), np.nan, np.float32)
    reduced = Reduction(pixels.shape, pixels.dtype).reduce(pixels)
    assert (reduced.counts == MISSING).all()


def test_steps_stay_until_the_range_changes() -> None:
    pixels = image((64, 64), "f4", 1000)
    reducing = Reduction(pixels.shape, pixels.dtype)
    first = reducing.reduce(pixels)
    assert (reducing.reduce(pixels * 0.8).scale, reducing.reduce(pixels * 0.8).offset) == (
        first.scale,
        first.offset,
    )
    assert reducing.reduce(pixels * 10).scale > first.scale
    assert reducing.reduce(pixels * 0.1).scale < first.scale


@pytest.mark.parametrize(
    ("shape", "side"),
    [((1024, 1024), 1), ((1025, 1024), 2), ((2016, 2016), 2), ((4096, 4096), 4)],
)
def test_result_has_at_most_a_megapixel(shape: tuple[int, int], side: int) -> None:
    assert bin_of(shape) == side
