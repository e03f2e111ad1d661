"""The headers of the packets of each detector.

Those of Eiger and Jungfrau are of slsDetectorPackage, version 2; that of the GigaFRoST is its own.
"""

from __future__ import annotations

import numpy as np


def _layout(n_bytes: int, **fields: tuple[str, int]) -> np.dtype:
    formats, offsets = zip(*fields.values(), strict=True)
    return np.dtype(
        {"names": list(fields), "formats": list(formats), "offsets": list(offsets), "itemsize": n_bytes}
    )


SLS_HEADER = _layout(
    48,
    frame_number=("<u8", 0),
    exposure_length=("<u4", 8),
    packet_number=("<u4", 12),
    bunch_id=("<f8", 16),
    bunch_bits=("<u8", 16),
    timestamp=("<u8", 24),
    board=("<u2", 32),
    row=("<u2", 34),
    column=("<u2", 36),
    debug=("<u4", 40),
    detector_type=("u1", 46),
    version=("u1", 47),
    # Both of them, to compare them at once.
    type_and_version=("<u2", 46),
)
SLS_VERSION = 2
EIGER, JUNGFRAU = 1, 3

GIGAFROST_HEADER = _layout(
    32,
    protocol=("u1", 0),
    column_blocks=("u1", 1),
    rows_and_swap=("u1", 2),
    # Bits 6-7: quadrant; 5: link; 2-4: correction mode; 0-1: bits 8-9 of the rows of a quadrant.
    place=("u1", 3),
    scan_id=("<u4", 4),
    frame_index=("<u4", 8),
    status=("<u2", 12),
    first_row=("<u2", 14),
    # Bits 0-39: the frame's timestamp; 40-63: its exposure time.
    times=("<u8", 16),
    sync_time=("<u4", 24),
    scan_time=("<u4", 28),
    # The first four fields, to compare them at once; scan_id and frame_index, as one number.
    opening=("<u4", 0),
    key=("<u8", 4),
)
GIGAFROST_PROTOCOL = 0xCB
TIMESTAMP_BITS = 40
