"""The sums of regions of the newest point, which events have beside the mean of the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stddaq_ophyd.core.scalars import Region, checked_region


class RegionSums:
    """The sums of the pixels of some regions.

    Attributes:
        regions: the regions by name.
        keys: their data keys.
        values: the sums of the newest point, by name.
    """

    def __init__(self, device: str, source: str, regions: Mapping[str, Region] | None) -> None:
        """`source` stands in the description. Raises `SettingError`."""
        self._device, self._source = device, source
        self.regions = {
            name: checked_region(device, name, region) for name, region in (regions or {}).items()
        }
        self.keys = [f"{device}_{name}" for name in self.regions]
        self.values: dict[str, float] = {}

    def reading(self, timestamp: float) -> dict[str, dict[str, Any]]:
        """Return the sums as a device reads them."""
        return {
            key: {"value": self.values.get(name, 0.0), "timestamp": timestamp}
            for key, name in zip(self.keys, self.regions, strict=True)
        }

    def description(self) -> dict[str, dict[str, Any]]:
        """Return the description of what `reading` returns."""
        description = {"source": self._source, "dtype": "number", "shape": [], "dtype_numpy": "<f8"}
        return {key: dict(description) for key in self.keys}
