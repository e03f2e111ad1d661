"""The headers of a simulated detector's packets."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.udp.geometry import GigaFrostGeometry
from stddaq.udp.packet_headers import (
    EIGER,
    GIGAFROST_HEADER,
    GIGAFROST_PROTOCOL,
    JUNGFRAU,
    SLS_HEADER,
    SLS_VERSION,
    TIMESTAMP_BITS,
)

CORRECTION_MODE = 5
DO_NOT_STORE = 1 << 15
_EXPOSURE_MAX = 2**24 - 1


class Headers(Protocol):
    """The headers of all packets of one image, an array (modules, packets) that is filled for each image."""

    array: np.ndarray

    def fill(self, image_id: int, metadata: ImageMetadata) -> None:
        """Set what differs between images."""
        ...


def headers_of(config: DetectorConfig, modules: list[int], n_packets: int) -> Headers:
    """Return the headers of a detector."""
    if config.detector_type == "gigafrost":
        return _GigaFrostHeaders(config, modules, n_packets)
    return (_EigerHeaders if config.detector_type == "eiger" else _JungfrauHeaders)(modules, n_packets)


class _GigaFrostHeaders(Headers):
    def __init__(self, config: DetectorConfig, modules: list[int], n_packets: int) -> None:
        self.array = array = np.zeros((len(modules), n_packets), GIGAFROST_HEADER)
        geometry = GigaFrostGeometry.of(*config.image_shape)
        half_height = 2 * geometry.module_height
        array["protocol"] = GIGAFROST_PROTOCOL
        array["column_blocks"] = geometry.module_width // 12
        array["rows_and_swap"] = half_height & 0xFE
        quadrants_and_links = np.array(modules)[:, None]
        array["place"] = quadrants_and_links << 5 | CORRECTION_MODE << 2 | half_height >> 8
        array["first_row"] = np.arange(n_packets) * geometry.rows

    def fill(self, image_id: int, metadata: ImageMetadata) -> None:
        array, fields = self.array, metadata.gf
        array["frame_index"], array["scan_id"] = image_id, fields.scan_id
        array["status"] = 0 if fields.store_image else DO_NOT_STORE
        exposure_time = min(fields.exposure_time, _EXPOSURE_MAX)
        array["times"] = fields.frame_timestamp % 2**TIMESTAMP_BITS | exposure_time << TIMESTAMP_BITS
        array["sync_time"], array["scan_time"] = fields.sync_time, fields.scan_time


class _SlsHeaders(Headers):
    """What Eiger and Jungfrau have in common."""

    detector: int

    def __init__(self, modules: list[int], n_packets: int) -> None:
        self.array = array = np.zeros((len(modules), n_packets), SLS_HEADER)
        array["packet_number"] = np.arange(n_packets)
        array["detector_type"], array["version"] = self.detector, SLS_VERSION
        self._start_ns = time.monotonic_ns()

    def fill(self, image_id: int, metadata: ImageMetadata) -> None:
        del metadata
        self.array["frame_number"] = image_id
        self.array["timestamp"] = (time.monotonic_ns() - self._start_ns) // 100


class _EigerHeaders(_SlsHeaders):
    detector = EIGER

    def __init__(self, modules: list[int], n_packets: int) -> None:
        super().__init__(modules, n_packets)
        # As of one column of modules.
        self.array["row"], self.array["column"] = (part[:, None] for part in divmod(np.array(modules), 2))


class _JungfrauHeaders(_SlsHeaders):
    """The bunch id is the image id; the frame number is one more."""

    detector = JUNGFRAU

    def fill(self, image_id: int, metadata: ImageMetadata) -> None:
        super().fill(image_id + 1, metadata)
        self.array["bunch_id"], self.array["debug"] = image_id, metadata.jf.daq_rec
