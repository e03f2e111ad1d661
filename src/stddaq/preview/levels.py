"""The values that are shown darkest and brightest, steady from image to image."""

from __future__ import annotations

import numpy as np

from stddaq.preview.quantisation import LARGEST
from stddaq.preview.reduction import Reduced

PERCENTILES = (1.0, 99.8)
# Every fourth pixel in every fourth row of the reduced image, of every fifth image.
_STEP, _PERIOD = 4, 5
_SHARE = 0.1
# When the contrast changes by more than this factor, as with a shutter, it is taken over at once.
_JUMP = 2.0


class Levels:
    """Percentiles of the images, which single pixels and noise do not move."""

    def __init__(self) -> None:
        self._n_images = 0
        self._wanted = self._shown = (0.0, 1.0)

    def of(self, reduced: Reduced) -> tuple[float, float]:
        """Return the levels of the next image: a tenth of the way from the previous ones."""
        if self._n_images % _PERIOD == 0:
            self._wanted = percentiles(reduced) or self._wanted
            is_first, (low, high) = self._n_images == 0, self._shown
            ratio = (self._wanted[1] - self._wanted[0]) / (high - low)
            if is_first or not 1 / _JUMP < ratio < _JUMP:
                self._shown = self._wanted
        self._n_images += 1
        low, high = (
            shown + _SHARE * (wanted - shown) for shown, wanted in zip(self._shown, self._wanted, strict=True)
        )
        self._shown = (low, high)
        return self._shown


def percentiles(reduced: Reduced) -> tuple[float, float] | None:
    """Return the levels of one image, the upper one above the lower; None if all its pixels are marks."""
    sample = reduced.counts[::_STEP, ::_STEP]
    sample = sample[sample <= LARGEST]
    if not sample.size:
        return None
    low, high = (float(count) for count in np.percentile(sample, PERCENTILES))
    low, high = low * reduced.scale + reduced.offset, max(high, low + 1) * reduced.scale + reduced.offset
    return low, high
