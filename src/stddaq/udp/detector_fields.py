"""The detector's own fields of `ImageMetadata`, from the message of a frame."""

from __future__ import annotations

import struct
from collections.abc import Callable

from stddaq.config.model import DetectorType
from stddaq.dataplane.metadata import ImageMetadata

# do_not_store, scan_id, scan_time, sync_time, frame_timestamp, exposure_time; see `frame_message`.
_GIGAFROST = struct.Struct("<23xBI8xIIQQ")
_DAQ_REC = struct.Struct("<34xQ")

Fill = Callable[[ImageMetadata, bytes], None]


def fields_of(detector_type: DetectorType) -> Fill:
    """Return the function that fills the fields of a detector. Raise `KeyError` for one without packets."""
    return _FILL[detector_type]


def _gigafrost(metadata: ImageMetadata, message: bytes) -> None:
    fields = metadata.gf
    (
        do_not_store,
        fields.scan_id,
        fields.scan_time,
        fields.sync_time,
        fields.frame_timestamp,
        fields.exposure_time,
    ) = _GIGAFROST.unpack_from(message)
    fields.store_image = not do_not_store


def _eiger(metadata: ImageMetadata, message: bytes) -> None:
    # Packets have no exposure time.
    del message
    metadata.eg.SetInParent()


def _jungfrau(metadata: ImageMetadata, message: bytes) -> None:
    (metadata.jf.daq_rec,) = _DAQ_REC.unpack_from(message)


_FILL: dict[DetectorType, Fill] = {
    "gigafrost": _gigafrost,
    "eiger": _eiger,
    "jungfrau-raw": _jungfrau,
    "jungfrau-converted": _jungfrau,
}
