"""A PNG file that shows a run: several of its images on a logarithmic colour scale, with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stddaq.cli.pictures.colours import Contrast, coloured

_BACKGROUND, _TEXT, _FAINT = (16, 16, 24), (235, 235, 240), (150, 150, 165)
_LARGE, _MARGIN = 640, 24


def write_sheet(path: Path, images: Sequence[tuple[str, np.ndarray]], title: str, caption: str) -> None:
    """Write the first image large and up to six more beside it, each with its label.

    `images` are labels and arrays (height, width) of counts; `title` and `caption` have one line each.
    """
    counts = np.concatenate([image.reshape(-1)[:: max(1, image.size // 65536)] for _, image in images])
    brightest = max(1.0, float(np.percentile(counts, 99.8)))
    small = (_LARGE - 2 * _MARGIN) // 3
    width = _LARGE + 2 * (small + _MARGIN) + 2 * _MARGIN
    canvas = Image.new("RGB", (width, _LARGE + 5 * _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN // 2), title, _TEXT, _font(22))
    draw.text((_MARGIN, _LARGE + 3 * _MARGIN + 4), caption, _FAINT, _font(15))
    places = [(_MARGIN, 2 * _MARGIN, _LARGE)]
    places += [
        (2 * _MARGIN + _LARGE + column * (small + _MARGIN), 2 * _MARGIN + row * (small + _MARGIN), small)
        for row in range(3)
        for column in range(2)
    ]
    for (label, image), (x, y, size) in zip(images, places, strict=False):
        tile = _colour(image, brightest)
        tile.thumbnail((size, size), Image.Resampling.BOX)
        if max(tile.size) < size:
            factor = size / max(tile.size)
            tile = tile.resize(
                (round(tile.width * factor), round(tile.height * factor)), Image.Resampling.NEAREST
            )
        canvas.paste(tile, (x + (size - tile.width) // 2, y + (size - tile.height) // 2))
        draw.text((x + 8, y + 6), label, _TEXT, _font(13), stroke_width=2, stroke_fill=_BACKGROUND)
    canvas.save(path, optimize=True)


def _colour(image: np.ndarray, brightest: float) -> Image.Image:
    """Return counts in colours, on a logarithmic scale from 0 to `brightest`."""
    return coloured(Contrast(0.0, brightest, is_logarithmic=True).scaled(image)).convert("RGB")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
