"""Numbers of regions, compared with those of numpy."""

from __future__ import annotations

import numpy as np
import pytest

from stddaq.preview.regions import RegionNumbers
from stddaq.wire.preview_requests import Area, Region

SHAPE = (90, 70)
INTEGERS = ("u1", "u2", "u4")


def image(dtype: str) -> np.ndarray:
    highest = 200 if dtype == "u1" else 60000 if dtype == "u2" else 4e9
    return (np.random.default_rng(5).random(SHAPE) * highest).astype(dtype)


@pytest.mark.parametrize("dtype", [*INTEGERS, "f4"])
@pytest.mark.parametrize("kind", ["box", "circle"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_numbers_are_those_of_numpy(dtype: str, kind: str, is_masked: bool) -> None:
    pixels, area = image(dtype), Area(5, 7, 41, 67)
    masked = np.zeros(SHAPE, bool)
    masked[10:20, 10:30] = is_masked
    largest = float(np.iinfo(dtype).max) if dtype in INTEGERS else np.inf
    pixels[25, 25] = largest
    if dtype == "f4":
        pixels[26, 26] = np.nan
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    inside = (x > 5) & (x < 46) & (y > 7) & (y < 74)
    if kind == "circle":
        inside = ((x - 25.5) / 20.5) ** 2 + ((y - 40.5) / 33.5) ** 2 <= 1
    values = pixels[inside & ~masked]
    finite = values[np.isfinite(values)].astype("f8")
    numbers = RegionNumbers(Region(kind, area), masked if is_masked else None, largest).of(pixels)  # pyright: ignore[reportArgumentType]
    assert (numbers["n"], numbers["n_saturated"]) == (len(finite), 1)
    assert (numbers["min"], numbers["max"]) == (finite.min(), finite.max())
    for name, expected in (("sum", finite.sum()), ("mean", finite.mean()), ("sd", finite.std())):
        assert numbers[name] == pytest.approx(expected)
    if dtype in INTEGERS:
        assert numbers["sum"] == int(values.sum(dtype="u8"))


def test_region_without_valid_pixels_has_no_numbers() -> None:
    masked = np.ones(SHAPE, bool)
    numbers = RegionNumbers(Region("box", Area(1, 1, 5, 5)), masked, 65535).of(image("u2"))
    assert numbers == {
        "n": 0,
        "n_saturated": 0,
        "sum": None,
        "mean": None,
        "sd": None,
        "min": None,
        "max": None,
    }
