"""Which rows and columns of the image the pixels of a module fill."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.config.modules import GIGAFROST_MODULES, GIGAFROST_RECEIVERS, module_places
from stddaq.errors import ConfigError
from stddaq.text import mismatch
from stddaq.udp.geometry import GigaFrostGeometry


@dataclass(frozen=True, slots=True)
class Placement:
    """Row `r` of the module is row `first_row + r * row_step` of the image; gap columns are included."""

    first_row: int
    row_step: int
    n_rows: int
    first_column: int
    n_columns: int

    def part_of(self, image: np.ndarray) -> np.ndarray:
        """Return the module's part of an image, not copied."""
        rows = image[self.first_row :: self.row_step][: self.n_rows]
        return rows[:, self.first_column : self.first_column + self.n_columns]


def placement(config: DetectorConfig, module: int) -> Placement:
    """Return the place of a module, or of the module of a receiver.

    Raise `ConfigError` for a module that the detector does not have, `GeometryError` for an impossible image.
    """
    if config.detector_type == "gigafrost":
        return _gigafrost(config, module)
    places = module_places(config)
    if module not in places:
        expected = f"a key of module_positions ({', '.join(map(str, sorted(places)))})"
        raise ConfigError(mismatch("module_id", expected, f"{module}"))
    place = places[module]
    area = place.area
    first_row, row_step = (area.bottom - 1, -1) if place.is_upside_down else (area.top, 1)
    return Placement(first_row, row_step, area.bottom - area.top, area.left, area.right - area.left)


def _gigafrost(config: DetectorConfig, module: int) -> Placement:
    """Return half a quadrant: every second row, from the middle of the image to its edge."""
    if module >= GIGAFROST_RECEIVERS:
        raise ConfigError(mismatch("module_id", f"0 to {GIGAFROST_RECEIVERS - 1} for gigafrost", f"{module}"))
    height, width = config.image_shape
    geometry = GigaFrostGeometry.of(height, width)
    quadrant, link = divmod(module % GIGAFROST_MODULES, 2)
    is_north, is_east = divmod(quadrant, 2)
    middle = height // 2
    return Placement(
        middle - 1 - link if is_north else middle + link,
        -2 if is_north else 2,
        geometry.module_height,
        width // 2 if is_east else 0,
        geometry.module_width,
    )
