"""From the frame of a module to its part of the image: one class per detector, without sockets.

`convert` writes every pixel of the module's place, gap columns between its chips included.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.config.modules import (
    EIGER_CHIP_COLUMNS,
    EIGER_GAP_COLUMNS,
    GIGAFROST_MODULES,
    GIGAFROST_RECEIVERS,
    ModulePlace,
    module_places,
)
from stddaq.errors import ConfigError
from stddaq.text import mismatch
from stddaq.udp import kernels
from stddaq.udp.geometry import EIGER_COLUMNS, EIGER_ROWS, JUNGFRAU_COLUMNS, JUNGFRAU_ROWS, GigaFrostGeometry
from stddaq.udp.jungfrau_gains import GainParameters

HIGH_GAIN = 1


class Conversion(Protocol):
    """Converts the frames of one module."""

    def convert(self, frame: np.ndarray, image: np.ndarray, message: np.ndarray) -> None:
        """Write a frame (bytes of its slot) into the image (height, width). `message` announced it."""


class GigaFrostConversion(Conversion):
    """Half a quadrant: every second row, from the middle of the image to its edge; 12 bits become 16."""

    def __init__(self, config: DetectorConfig, module: int) -> None:
        """Raise `ConfigError` or `GeometryError` for what the camera does not have."""
        check_gigafrost_module(module)
        height, width = config.image_shape
        geometry = GigaFrostGeometry.of(height, width)
        quadrant, link = divmod(module % GIGAFROST_MODULES, 2)
        is_north, is_east = divmod(quadrant, 2)
        middle = height // 2
        self._first_row = middle - 1 - link if is_north else middle + link
        self._row_step = -2 if is_north else 2
        self._first_column = width // 2 if is_east else 0
        self._rows, self._columns = geometry.module_height, geometry.module_width

    def convert(self, frame: np.ndarray, image: np.ndarray, message: np.ndarray) -> None:
        del message
        kernels.place_gigafrost(
            frame, image, self._first_row, self._row_step, self._first_column, self._rows, self._columns
        )


class EigerConversion(Conversion):
    """Two chips side by side with gap columns between them; perhaps upside down."""

    def __init__(self, config: DetectorConfig, module: int) -> None:
        """Raise `ConfigError` for a module without a position."""
        place = _place(config, module)
        area = place.area
        self._first_row, self._row_step = (area.bottom - 1, -1) if place.is_upside_down else (area.top, 1)
        self._first_column, self._dtype = area.left, config.dtype

    def convert(self, frame: np.ndarray, image: np.ndarray, message: np.ndarray) -> None:
        del message
        pixels = frame.view(self._dtype).reshape(EIGER_ROWS, EIGER_COLUMNS)
        kernels.place_chips(
            pixels,
            image,
            self._first_row,
            self._row_step,
            self._first_column,
            EIGER_CHIP_COLUMNS,
            EIGER_GAP_COLUMNS,
        )


class JungfrauRawConversion(Conversion):
    """Pixels with their gain bits, as they are."""

    def __init__(self, config: DetectorConfig, module: int) -> None:
        """Raise `ConfigError` for a module without a position."""
        self._area = _place(config, module).area

    def convert(self, frame: np.ndarray, image: np.ndarray, message: np.ndarray) -> None:
        del message
        kernels.place(_jungfrau_pixels(frame), image, self._area.top, self._area.left)


class JungfrauConversion(Conversion):
    """Pixels as energy: pedestal subtracted, multiplied by the factor of their gain.

    Attributes:
        n_invalid, n_without_data, n_saturated: pixels with gain bits that do not occur, the value for no
            data (both become NaN), and the value of saturation (becomes infinite).
    """

    def __init__(self, config: DetectorConfig, module: int, parameters: GainParameters) -> None:
        """Raise `ConfigError` for a module without a position."""
        self._area = _place(config, module).area
        self._parameters = parameters
        self.n_invalid = self.n_without_data = self.n_saturated = 0

    def convert(self, frame: np.ndarray, image: np.ndarray, message: np.ndarray) -> None:
        parameters = self._parameters
        is_high = parameters.has_high_gain and int(message["daq_rec"]) & HIGH_GAIN
        tables = parameters.high if is_high else parameters.low
        counts = kernels.convert_jungfrau(
            _jungfrau_pixels(frame), image, self._area.top, self._area.left, tables.pedestals, tables.factors
        )
        n_invalid, n_without_data, n_saturated = counts  # pyright: ignore[reportGeneralTypeIssues]
        self.n_invalid += n_invalid
        self.n_without_data += n_without_data
        self.n_saturated += n_saturated


def check_gigafrost_module(module: int) -> None:
    """Raise `ConfigError` for a module that a GigaFRoST does not have."""
    if module >= GIGAFROST_RECEIVERS:
        raise ConfigError(mismatch("module_id", f"0 to {GIGAFROST_RECEIVERS - 1} for gigafrost", f"{module}"))


def _place(config: DetectorConfig, module: int) -> ModulePlace:
    places = module_places(config)
    if module not in places:
        expected = f"a key of module_positions ({', '.join(map(str, sorted(places)))})"
        raise ConfigError(mismatch("module_id", expected, f"{module}"))
    return places[module]


def _jungfrau_pixels(frame: np.ndarray) -> np.ndarray:
    return frame.view("<u2").reshape(JUNGFRAU_ROWS, JUNGFRAU_COLUMNS)
