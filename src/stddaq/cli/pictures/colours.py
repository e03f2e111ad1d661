"""Counts as colours: which counts are shown darkest and brightest, and the colour map between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

# Points of the colour map, dark to bright; between them it is linear.
_COLOURS = (
    (4, 4, 20),
    (40, 11, 84),
    (101, 21, 110),
    (159, 42, 99),
    (212, 72, 66),
    (245, 125, 21),
    (250, 193, 39),
    (252, 255, 200),
)
# Pixels that the contrast is taken from.
_SAMPLE = 65_536
DARKEST_PERCENTILE, BRIGHTEST_PERCENTILE = 1.0, 99.7


@dataclass(frozen=True, slots=True)
class Contrast:
    """The counts that are shown darkest and brightest, and whether the scale between is logarithmic."""

    darkest: float
    brightest: float
    is_logarithmic: bool

    @classmethod
    def of(cls, image: np.ndarray, is_logarithmic: bool = False) -> Contrast:
        """Return the contrast for an image: percentiles of its counts, which ignore single hot pixels."""
        step = max(1, round((image.size / _SAMPLE) ** 0.5))
        sample = np.asarray(image[::step, ::step], np.float64)
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            return cls(0.0, 1.0, is_logarithmic)
        darkest, brightest = np.percentile(sample, (DARKEST_PERCENTILE, BRIGHTEST_PERCENTILE))
        # A flat image is shown dark, not as its noise.
        return cls(float(darkest), float(max(brightest, darkest + 1)), is_logarithmic)

    def scaled(self, image: np.ndarray) -> np.ndarray:
        """Return the counts as float32 from 0, darkest, to 1."""
        counts = np.clip(np.nan_to_num(image.astype(np.float32)), self.darkest, self.brightest)
        above = counts - np.float32(self.darkest)
        full = self.brightest - self.darkest
        return np.log1p(above) / np.float32(np.log1p(full)) if self.is_logarithmic else above / full


@cache
def colour_table(n_levels: int) -> np.ndarray:
    """Return the colours of `n_levels` levels, dark to bright, as (n_levels, 3) uint8."""
    steps = np.linspace(0, 1, len(_COLOURS))
    levels = np.linspace(0, 1, n_levels)
    return np.stack(
        [np.interp(levels, steps, [colour[c] for colour in _COLOURS]) for c in range(3)], axis=1
    ).astype(np.uint8)


def coloured(scaled: np.ndarray) -> Image.Image:
    """Return an image (height, width) of values from 0, dark, to 1, bright, in colours."""
    picture = Image.fromarray((scaled * 255).astype(np.uint8))
    picture.putpalette(colour_table(256).tobytes())
    return picture


def write_png(path: Path, image: np.ndarray, contrast: Contrast) -> None:
    """Write an image (height, width) in colours as PNG, one pixel each. Raise `OSError`."""
    coloured(contrast.scaled(image)).save(path, "PNG", compress_level=1)
