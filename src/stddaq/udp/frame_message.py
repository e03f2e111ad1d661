"""The 64 bytes that announce one frame of one module, from its receiver to the module synchroniser.

The layouts are those of the std_daq services (C++), little-endian and without gaps. Their unused bytes hold
what stddaq adds: in a GigaFRoST frame the set of links, in the others when the frame arrived, in every frame
the number of its announcement.
"""

from __future__ import annotations

import numpy as np

from stddaq.config.model import DetectorType

FRAME_MESSAGE_BYTES = 64
ID_BYTES = 8

_COMMON = {"id": ("<u8", 0), "n_missing_packets": ("<u8", 8), "module": ("<u2", 16)}
# The lower 30 bits of the sequence number of the frame in its ring; 0: the receiver gives none. Converters
# replace it by their mark, which has the bit `BY_CONVERTER`; those of std_daq (C++) pass it on.
SEQUENCE_OFFSET = 60
SEQUENCE_MASK = 2**30 - 1
BY_CONVERTER = 1 << 30
# In a mark: the receiver is one of stddaq. It sends frames in order and none twice, so that an id that is not
# higher is a restart.
IN_ORDER = 1 << 31
_SEQUENCE = {"sequence": ("<u4", SEQUENCE_OFFSET)}


def _layout(fields: dict[str, tuple[str, int]]) -> np.dtype:
    fields = {**_COMMON, **fields, **_SEQUENCE}
    formats, offsets = zip(*fields.values(), strict=True)
    return np.dtype(
        {
            "names": list(fields),
            "formats": list(formats),
            "offsets": list(offsets),
            "itemsize": FRAME_MESSAGE_BYTES,
        }
    )


# When the first packet of the frame reached this machine, ns since 1970; 0: not known. A GigaFRoST's message
# has no room for it.
_RECEIVED = {"received": ("<u8", 50)}
EIGER_FRAME = _layout({"bit_depth": ("<u2", 18), "pos_y": ("<u2", 20), "pos_x": ("<u2", 22), **_RECEIVED})
JUNGFRAU_FRAME = _layout(
    {"frame_number": ("<u8", 26), "daq_rec": ("<u8", 34), "module_again": ("<u8", 42), **_RECEIVED},
)
GIGAFROST_FRAME = _layout(
    {
        "swap": ("u1", 18),
        "link": ("u1", 19),
        "correction_mode": ("u1", 20),
        "quadrant": ("u1", 21),
        # 0 or 1: the frame came through receivers 0 to 7, or 8 to 15. Not filled by C++ receivers.
        "link_set": ("u1", 22),
        "do_not_store": ("u1", 23),
        "scan_id": ("<u4", 24),
        "module_width": ("<u4", 28),
        "module_height": ("<u4", 32),
        "scan_time": ("<u4", 36),
        "sync_time": ("<u4", 40),
        "frame_timestamp": ("<u8", 44),
        "exposure_time": ("<u8", 52),
    }
)
_LAYOUTS: dict[DetectorType, np.dtype] = {
    "eiger": EIGER_FRAME,
    "gigafrost": GIGAFROST_FRAME,
    "jungfrau-raw": JUNGFRAU_FRAME,
    "jungfrau-converted": JUNGFRAU_FRAME,
}


def frame_layout(detector_type: DetectorType) -> np.dtype:
    """Return the layout of the frame messages of a detector. Raise `KeyError` for one without packets."""
    return _LAYOUTS[detector_type]


def parse_frame(message: bytes, layout: np.dtype) -> np.ndarray | None:
    """Return a message as a 0-dimensional array of `layout`; None if it is none.

    A shorter message is completed with zeros if it has the id.
    """
    if not ID_BYTES <= len(message) <= FRAME_MESSAGE_BYTES:
        return None
    return np.frombuffer(message.ljust(FRAME_MESSAGE_BYTES, b"\0"), layout).reshape(())
