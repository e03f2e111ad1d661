"""The pixels of an image as the payloads of the packets of each module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.config.modules import EIGER_CHIP_COLUMNS, EIGER_GAP_COLUMNS, GIGAFROST_MODULES, module_places
from stddaq.udp.geometry import GigaFrostGeometry, packed_geometry
from stddaq.udp.placement import Placement, placement

GIGAFROST_MAX_VALUE = 4095
# Above it are the bits of the gain.
JUNGFRAU_MAX_VALUE = 2**14 - 1


class Payloads(Protocol):
    """Makes the payloads of one detector.

    Attributes:
        modules: modules that send packets.
        sizes: bytes of each packet of a frame.
        dtype, max_value: of the pixels before they become payloads.
    """

    modules: Sequence[int]
    sizes: Sequence[int]
    dtype: np.dtype
    max_value: int

    def of(self, image: np.ndarray, module: int) -> np.ndarray:
        """Return the payloads of one module, one after the other, as bytes."""
        ...


def payloads_of(config: DetectorConfig) -> Payloads:
    """Return the payloads of a detector. Raise `GeometryError` or `ConfigError`."""
    if config.detector_type == "gigafrost":
        return _GigaFrost(config)
    return (_Eiger if config.detector_type == "eiger" else _Jungfrau)(config)


class _GigaFrost(Payloads):
    """12 bits per pixel; the packets end with padding where their rows have an odd number of blocks."""

    max_value = GIGAFROST_MAX_VALUE

    def __init__(self, config: DetectorConfig) -> None:
        self.modules, self.dtype = range(GIGAFROST_MODULES), config.dtype
        geometry = GigaFrostGeometry.of(*config.image_shape)
        full = geometry.n_packets - 1
        self.sizes = [geometry.payload_bytes] * full + [geometry.last_payload_bytes]
        self._places = [placement(config, module) for module in self.modules]
        step = geometry.row_step_bytes
        self._rows = [slice(i * step, (i + 1) * step) for i in range(full)]
        self._rows.append(slice(full * step, geometry.pixel_bytes))
        self._is_padded = geometry.pixel_bytes != sum(self.sizes)

    def of(self, image: np.ndarray, module: int) -> np.ndarray:
        packed = _packed(self._places[module].part_of(image))
        if not self._is_padded:
            return packed
        payloads = np.zeros(sum(self.sizes), np.uint8)
        start = 0
        for rows, size in zip(self._rows, self.sizes, strict=True):
            payloads[start : start + rows.stop - rows.start] = packed[rows]
            start += size
        return payloads


def _packed(pixels: np.ndarray) -> np.ndarray:
    """Return 12-bit pixels as a bit string: two of them in three bytes."""
    first, second = pixels[:, ::2], pixels[:, 1::2]
    packed = np.empty((*first.shape, 3), np.uint8)
    packed[..., 0] = first
    packed[..., 1] = first >> 8 | second << 4
    packed[..., 2] = second >> 4
    return packed.reshape(-1)


class _Eiger(Payloads):
    """Two chips side by side; what the image has between them is not sent."""

    def __init__(self, config: DetectorConfig) -> None:
        self.dtype, self.max_value = config.dtype, np.iinfo(config.dtype).max
        geometry = packed_geometry(config)
        self.sizes = [geometry.payload_bytes] * geometry.n_packets
        self._places = _places(config)
        self.modules = sorted(self._places)
        chip = EIGER_CHIP_COLUMNS
        second = chip + EIGER_GAP_COLUMNS
        self._columns = np.r_[0:chip, second : second + chip]

    def of(self, image: np.ndarray, module: int) -> np.ndarray:
        pixels = self._places[module].part_of(image)[:, self._columns]
        return np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)


class _Jungfrau(Payloads):
    """Pixels with their gain bits; all are in the first gain."""

    max_value = JUNGFRAU_MAX_VALUE

    def __init__(self, config: DetectorConfig) -> None:
        self.dtype = np.dtype("<u2")
        geometry = packed_geometry(config)
        self.sizes = [geometry.payload_bytes] * geometry.n_packets
        self._places = _places(config)
        self.modules = sorted(self._places)

    def of(self, image: np.ndarray, module: int) -> np.ndarray:
        return np.ascontiguousarray(self._places[module].part_of(image)).reshape(-1).view(np.uint8)


def _places(config: DetectorConfig) -> dict[int, Placement]:
    return {module: placement(config, module) for module in module_places(config)}
