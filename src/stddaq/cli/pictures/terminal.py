"""An image in the characters of a terminal, as large as the space allows."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

from stddaq.cli.pictures.colours import Contrast, colour_table

# Fewer than a byte could hold: equal neighbours are sent to the terminal as one, which matters over ssh.
_N_LEVELS = 48
_UPPER_HALF = "\N{UPPER HALF BLOCK}"


class TerminalImage:
    """An image for rich. Each character shows two pixels, one above the other."""

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
        """Return the image at (height, width), as levels of the colour table."""
        # Scaled first: means of the counts of a sparse image would show its brightest pixels only.
        scaled = Image.fromarray(self._contrast.scaled(_thinned(self._image, height, width)))
        larger = width > scaled.width or height > scaled.height
        how = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
        small = np.asarray(scaled.resize((width, height), how))
        return (small * (_N_LEVELS - 1) + 0.5).astype(np.uint8)


def _thinned(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return every k-th row and column of an image with far more pixels than are shown."""
    step = max(1, min(image.shape[0] // (4 * height), image.shape[1] // (4 * width)))
    return image[::step, ::step]


def _fitting(shape: tuple[int, ...], max_width: int, max_height: int) -> tuple[int, int]:
    """Return (width, even height) of the largest area with the image's proportions within the limits."""
    scale = min(max_width / shape[1], max_height / shape[0])
    width = min(max_width, max(1, round(shape[1] * scale)))
    height = min(max_height, max(2, round(shape[0] * scale / 2) * 2))
    return width, height


@cache
def _style(upper: int, lower: int) -> Style:
    table = colour_table(_N_LEVELS)
    return Style(color=Color.from_rgb(*table[upper].tolist()), bgcolor=Color.from_rgb(*table[lower].tolist()))
