"""Images for people: counts as colours by automatic contrast, in a terminal's characters or as a PNG file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

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
# Fewer than a byte would hold: equal neighbours are sent to the terminal as one, which counts over ssh.
_N_LEVELS = 48
_SAMPLE = 65_536
DARKEST_PERCENTILE, BRIGHTEST_PERCENTILE = 1.0, 99.7
_UPPER_HALF = "\N{UPPER HALF BLOCK}"


@dataclass(frozen=True, slots=True)
class Contrast:
    """The counts that are shown darkest and brightest, and whether the scale between is logarithmic."""

    darkest: float
    brightest: float
    is_logarithmic: bool

    @classmethod
    def of(cls, image: np.ndarray, is_logarithmic: bool = False) -> Contrast:
        """What suits an image: percentiles of its counts, so that single hot pixels do not matter."""
        step = max(1, round((image.size / _SAMPLE) ** 0.5))
        sample = np.asarray(image[::step, ::step], np.float64)
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            return cls(0.0, 1.0, is_logarithmic)
        darkest, brightest = np.percentile(sample, (DARKEST_PERCENTILE, BRIGHTEST_PERCENTILE))
        # A flat image is shown dark, not as its noise.
        return cls(float(darkest), float(max(brightest, darkest + 1)), is_logarithmic)

    def scaled(self, image: np.ndarray) -> np.ndarray:
        """Counts as float32 from 0, darkest, to 1."""
        counts = np.clip(np.nan_to_num(image.astype(np.float32)), self.darkest, self.brightest)
        above = counts - np.float32(self.darkest)
        full = self.brightest - self.darkest
        return np.log1p(above) / np.float32(np.log1p(full)) if self.is_logarithmic else above / full


@cache
def _colour_table(n_levels: int) -> np.ndarray:
    """(n_levels, 3) uint8, dark to bright."""
    steps = np.linspace(0, 1, len(_COLOURS))
    levels = np.linspace(0, 1, n_levels)
    return np.stack(
        [np.interp(levels, steps, [colour[c] for colour in _COLOURS]) for c in range(3)], axis=1
    ).astype(np.uint8)


def coloured(scaled: np.ndarray) -> Image.Image:
    """An image (H, W) of values from 0, dark, to 1, bright, in colours."""
    picture = Image.fromarray((scaled * 255).astype(np.uint8))
    picture.putpalette(_colour_table(256).tobytes())
    return picture


def write_png(path: Path, image: np.ndarray, contrast: Contrast) -> None:
    """Write an image (H, W) in colours, pixel by pixel. Raises `OSError`."""
    coloured(contrast.scaled(image)).save(path, "PNG", compress_level=1)


class TerminalImage:
    """An image for rich, as large as the space allows; a character shows two pixels, one above the other."""

    def __init__(self, image: np.ndarray, contrast: Contrast) -> None:
        self._image, self._contrast = image, contrast

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = options.height or max(4, console.height - 4)
        width, height = _fitting(self._image.shape, options.max_width, 2 * rows)
        levels = self._levels(width, height)
        margin = " " * ((options.max_width - width) // 2)
        for upper, lower in zip(levels[::2], levels[1::2], strict=True):
            yield Segment(margin)
            start = 0
            changes = np.flatnonzero((np.diff(upper) != 0) | (np.diff(lower) != 0)) + 1
            for end in (*changes.tolist(), width):
                style = _style(int(upper[start]), int(lower[start]))
                yield Segment(_UPPER_HALF * (end - start), style)
                start = end
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def _levels(self, width: int, height: int) -> np.ndarray:
        """The image at (height, width), as levels of the colour table."""
        # Scaled first: of a sparse image a mean of counts would be its brightest pixels and nothing else.
        scaled = Image.fromarray(self._contrast.scaled(_thinned(self._image, height, width)))
        larger = width > scaled.width or height > scaled.height
        how = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
        small = np.asarray(scaled.resize((width, height), how))
        return (small * (_N_LEVELS - 1) + 0.5).astype(np.uint8)


def _thinned(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Every k-th row and column of an image with far more pixels than are shown."""
    step = max(1, min(image.shape[0] // (4 * height), image.shape[1] // (4 * width)))
    return image[::step, ::step]


def _fitting(shape: tuple[int, ...], max_width: int, max_height: int) -> tuple[int, int]:
    """(width, even height) of the largest area of the image's proportions within the limits."""
    scale = min(max_width / shape[1], max_height / shape[0])
    width = min(max_width, max(1, round(shape[1] * scale)))
    height = min(max_height, max(2, round(shape[0] * scale / 2) * 2))
    return width, height


@cache
def _style(upper: int, lower: int) -> Style:
    table = _colour_table(_N_LEVELS)
    return Style(color=Color.from_rgb(*table[upper].tolist()), bgcolor=Color.from_rgb(*table[lower].tolist()))
