"""Numbers of a region of an image, exact at full resolution."""

from __future__ import annotations

import math

import numpy as np

from stddaq.wire.preview_requests import Region

# Rows that are read at once, so that their float64 values stay in the processor's cache.
_BAND_ROWS = 32


class RegionNumbers:
    """Computes sum, mean, standard deviation, minimum and maximum of a region; masked pixels do not count."""

    def __init__(self, region: Region, masked: np.ndarray | None, saturation: float) -> None:
        """`region` lies within the image. `saturation`: lowest value of a saturated pixel."""
        x, y, width, height = region.area
        self._part = (slice(y, y + height), slice(x, x + width))
        self._saturation = saturation
        valid = None if masked is None else ~masked[self._part]
        if region.kind == "circle":
            inside = _ellipse(width, height)
            valid = inside if valid is None else valid & inside
        # Boxes without masked pixels are read faster.
        self._valid = None if valid is None or valid.all() else valid

    def of(self, pixels: np.ndarray) -> dict[str, float | int | None]:
        """Return the numbers of an image; None without valid pixels."""
        block, is_integer = pixels[self._part], pixels.dtype.kind == "u"
        n, total, mean, squares, n_saturated = 0, 0, 0.0, 0.0, 0
        lowest, highest = math.inf, -math.inf
        for top in range(0, len(block), _BAND_ROWS):
            band = block[top : top + _BAND_ROWS]
            if self._valid is not None:
                band = band[self._valid[top : top + _BAND_ROWS]]
            n_saturated += int(np.count_nonzero(band >= self._saturation))
            values = band.astype(np.float64)
            if not is_integer:
                values = values[np.isfinite(values)]
            if not values.size:
                continue
            part, share = float(values.mean()), n + values.size
            total += int(band.sum(dtype=np.uint64)) if is_integer else float(values.sum())
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
            # Deviations of two parts from their common mean.
            values -= part
            squares += float(np.vdot(values, values)) + (part - mean) ** 2 * n * values.size / share
            mean += (part - mean) * values.size / share
            n = share
        if not n:
            return dict.fromkeys(("sum", "mean", "sd", "min", "max")) | {"n": 0, "n_saturated": n_saturated}
        return {
            "n": n,
            "sum": total,
            "mean": mean,
            "sd": math.sqrt(squares / n),
            "min": lowest,
            "max": highest,
            "n_saturated": n_saturated,
        }


def _ellipse(width: int, height: int) -> np.ndarray:
    """Return which pixels have their centre in the ellipse that fills a box."""
    x = (2 * np.arange(width) + 1 - width) / width
    y = (2 * np.arange(height) + 1 - height) / height
    return x**2 + y[:, None] ** 2 <= 1
