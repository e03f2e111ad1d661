"""The metadata fields of each detector type, as a simulated detector fills them.

Times are of the system clock. GigaFRoST: `scan_time` and `sync_time` in us since the scan started (modulo
2**32), `frame_timestamp` in ns since 1970, `exposure_time` in ns. Eiger: `exptime` in ns. PCO: seconds and ns
since 1970. A scan lasts from one re-arm to the next; Jungfrau's `daq_rec` is the number of the scan.
"""

from __future__ import annotations

import time

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import ImageMetadata

# Largest image id of a detector type, which is then re-armed at a lower one.
GIGAFROST_LAST_ID = 2**24 - 1
LAST_ID = 2**64 - 1


def last_image_id(config: DetectorConfig) -> int:
    """Return the largest image id of this detector."""
    return GIGAFROST_LAST_ID if config.detector_type == "gigafrost" else LAST_ID


class DetectorFields:
    """Fills the fields of one detector type in a reused message."""

    def __init__(self, config: DetectorConfig, exposure_time: float) -> None:
        """`exposure_time` in seconds."""
        self._fill = {
            "gigafrost": self._gigafrost,
            "jungfrau-raw": self._jungfrau,
            "jungfrau-converted": self._jungfrau,
            "eiger": self._eiger,
            "pco": self._pco,
        }[config.detector_type]
        self._bsread_name = config.detector_name
        self.exposure_time = exposure_time
        self.scan_id = 0
        self._scan_start_ns = time.time_ns()

    def begin_scan(self) -> None:
        """Start the next scan, as after a re-arm."""
        self.scan_id = (self.scan_id + 1) % 2**32
        self._scan_start_ns = time.time_ns()

    def fill(self, metadata: ImageMetadata) -> None:
        """Set the fields of an image that is taken now. Costs about 1 us."""
        self._fill(metadata, time.time_ns())

    def _gigafrost(self, metadata: ImageMetadata, now_ns: int) -> None:
        fields = metadata.gf
        fields.scan_id = self.scan_id
        fields.scan_time = fields.sync_time = max(0, now_ns - self._scan_start_ns) // 1000 % 2**32
        fields.frame_timestamp = now_ns
        fields.exposure_time = round(self.exposure_time * 1e9)
        fields.store_image = True

    def _jungfrau(self, metadata: ImageMetadata, now_ns: int) -> None:
        del now_ns
        metadata.jf.daq_rec = self.scan_id

    def _eiger(self, metadata: ImageMetadata, now_ns: int) -> None:
        del now_ns
        metadata.eg.exptime = round(self.exposure_time * 1e9)

    def _pco(self, metadata: ImageMetadata, now_ns: int) -> None:
        fields = metadata.pco
        fields.global_timestamp_sec, fields.global_timestamp_ns = divmod(now_ns, 10**9)
        fields.bsread_name = self._bsread_name
