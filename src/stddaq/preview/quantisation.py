"""Values of any range as counts from 0 to 65532, in steps that stay the same from image to image."""

from __future__ import annotations

import numpy as np

# Larger counts are marks.
LARGEST = 65532
# Room on each side of the range of the first image, as a part of it.
_ROOM = 0.25
# A new range is chosen when the values need less than this part of the present one.
_LEAST_USE = 0.25


class Quantisation:
    """How values become counts: `value = count * scale + offset`.

    The range is that of the first image, with room. It changes when an image leaves it, or needs a small part
    of it only.
    """

    def __init__(self, *, is_integer: bool) -> None:
        self._is_integer = is_integer
        self.scale, self.offset = 0.0, 0.0

    def counts(self, values: np.ndarray, lowest: float, highest: float) -> np.ndarray:
        """Return the counts of `values`, uint16. `lowest` and `highest` are those of the full image."""
        self._fit(lowest, highest)
        steps = values - self.offset
        steps *= 1 / self.scale
        return np.clip(np.rint(steps, out=steps), 0, LARGEST, out=steps).astype(np.uint16)

    def _fit(self, lowest: float, highest: float) -> None:
        if self._is_integer and highest <= LARGEST:
            self.scale, self.offset = 1.0, 0.0
            return
        length, present = highest - lowest, self.scale * LARGEST
        is_inside = self.offset <= lowest and highest <= self.offset + present
        if self.scale and is_inside and length >= present * _LEAST_USE:
            return
        # The steps of a flat image are small beside its value, which float64 still distinguishes.
        length = max(length, abs(highest) * 1e-9, 1e-30)
        self.scale = length * (1 + 2 * _ROOM) / LARGEST
        self.offset = lowest - length * _ROOM
