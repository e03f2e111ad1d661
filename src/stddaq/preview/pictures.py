"""What browsers want of one image: reduced images of it and of areas, and the numbers of regions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from stddaq.preview.histogram import Histogram, histogram_of
from stddaq.preview.levels import percentiles
from stddaq.preview.reduction import Reduced, Reduction
from stddaq.preview.regions import RegionNumbers
from stddaq.wire.preview_requests import ReducerName, Region, View

# Processor time for areas and regions of one image. Those that need more wait for fewer browsers.
BUDGET_S = 0.03
MAX_REGIONS = 64
# Areas and regions of which masks are kept.
_MAX_KEPT = 256


@dataclass(frozen=True, slots=True)
class Part:
    """The reduced image of a view. `is_degraded`: of the whole, because there was no time for the area."""

    origin: tuple[int, int]
    bin: int
    reduced: Reduced
    is_degraded: bool = False


@dataclass(slots=True)
class Made:
    """Everything made of one image. `whole`: reduced images of all of it."""

    whole: dict[ReducerName, Reduced] = field(default_factory=dict)
    parts: dict[View, Part] = field(default_factory=dict)
    regions: dict[Region, dict[str, float | int | None]] = field(default_factory=dict)
    histogram: Histogram | None = None


class Pictures:
    """Makes them, for images of one shape and pixel type."""

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: np.dtype,
        masked: np.ndarray | None = None,
        saturation: float | None = None,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        """`masked`: pixels to leave out, bool. `saturation`: lowest value of a saturated pixel."""
        self._shape, self._dtype, self._masked, self._clock = shape, dtype, masked, clock
        self.whole = Reduction(shape, dtype, masked, saturation)
        self._saturation = saturation
        self._reductions: dict[View, Reduction] = {}
        self._numbers: dict[Region, RegionNumbers] = {}

    def make(self, pixels: np.ndarray, views: Iterable[View], regions: Iterable[Region]) -> Made:
        """Return what is wanted of an image. Nothing of `pixels` is kept."""
        made = Made()
        views = [view for view in views if not any(view.area) or view.area.is_inside(self._shape)]
        reducers: set[ReducerName] = {view.reducer for view in views}
        for reducer in reducers:
            made.whole[reducer] = self.whole.reduce(pixels, reducer)
        until = self._clock() + BUDGET_S
        for region in [region for region in regions if region.area.is_inside(self._shape)][:MAX_REGIONS]:
            if self._clock() < until:
                made.regions[region] = self._numbers_of(region).of(pixels)
        for view in views:
            whole = Part((0, 0), self.whole.bin, made.whole[view.reducer])
            if not any(view.area):
                made.parts[view] = whole
            elif self._clock() < until:
                made.parts[view] = self._part(pixels, view)
            else:
                made.parts[view] = Part(whole.origin, whole.bin, whole.reduced, is_degraded=True)
        return made

    def add_histogram(self, made: Made, pixels: np.ndarray) -> None:
        """Add the histogram of all pixels of the image that `made` was made of."""
        levels = next(filter(None, map(percentiles, made.whole.values())), None)
        if levels is not None:
            made.histogram = histogram_of(pixels, levels, self._masked)

    def _part(self, pixels: np.ndarray, view: View) -> Part:
        x, y, width, height = view.area
        area = (slice(y, y + height), slice(x, x + width))
        reduction = self._reductions.get(view)
        if reduction is None:
            masked = None if self._masked is None else self._masked[area]
            _make_room(self._reductions)
            reduction = Reduction((height, width), self._dtype, masked, self._saturation)
            self._reductions[view] = reduction
        return Part((y, x), reduction.bin, reduction.reduce(pixels[area], view.reducer))

    def _numbers_of(self, region: Region) -> RegionNumbers:
        numbers = self._numbers.get(region)
        if numbers is None:
            _make_room(self._numbers)
            numbers = RegionNumbers(region, self._masked, self.whole.saturation)
            self._numbers[region] = numbers
        return numbers


def _make_room(kept: dict) -> None:
    """Forget the oldest entry, if there are many."""
    if len(kept) >= _MAX_KEPT:
        del kept[next(iter(kept))]
