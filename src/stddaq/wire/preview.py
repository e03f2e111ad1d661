"""Messages of the preview service: an image for browsers, or why there is none.

A message on the ipc socket is a topic, which is the request that it answers (`preview_requests`), and a
frame. `stddaq-rest` sends the frame to browsers: the length of the header (uint32, little-endian), the header
(JSON, padded with spaces to a multiple of 8 bytes together with its length), and the payload.

The exact payload is a raw LZ4 block of uint16 counts: the high bytes of all counts, then the low bytes. These
"planes" are half of the size that LZ4 makes of the counts as they are. The quick one, for slow networks, is a
JPEG file and an LZ4 block of marks.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from stddaq.wire.compression import compress_lz4

MAX_HEADER_BYTES = 65536
_LENGTH = struct.Struct("<I")
# The blob starts with the number of uncompressed bytes, which the header says too.
_BLOB_HEADER_BYTES = 4
# Of noise this takes a third of the time, and 12 % more bytes; of other images it makes no difference.
# Browsers, too, decode noise faster.
_ACCELERATION = 8


def frame(header: Mapping[str, Any], payload: bytes | memoryview = b"", topic: bytes = b"") -> bytes:
    """Return the frame of a header and a payload, after the `topic` of a message."""
    return b"".join((topic, head(header), payload))


def head(header: Mapping[str, Any]) -> bytes:
    """Return what is before the payload in a frame."""
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(_LENGTH.size + len(encoded)) % 8)
    return _LENGTH.pack(len(encoded)) + encoded


def split(frame: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Return header and payload of a frame. Raise `ValueError` if it has no header."""
    if len(frame) < _LENGTH.size:
        raise ValueError("preview message: no header")
    end = _LENGTH.size + _LENGTH.unpack_from(frame)[0]
    if end > min(len(frame), _LENGTH.size + MAX_HEADER_BYTES):
        raise ValueError("preview message: the header is longer than the message")
    header = json.loads(bytes(frame[_LENGTH.size : end]))
    if not isinstance(header, dict):
        raise ValueError("preview message: the header is not an object")
    return header, frame[end:]


def planes(counts: np.ndarray) -> memoryview:
    """Return the payload of uint16 counts."""
    flat = counts.reshape(-1)
    encoded = np.empty(2 * flat.size, np.uint8)
    # The conversion takes the low byte.
    encoded[: flat.size], encoded[flat.size :] = flat >> 8, flat
    return lz4_block(encoded)


def lz4_block(encoded: np.ndarray) -> memoryview:
    """Return bytes (uint8) as a raw LZ4 block."""
    return compress_lz4(encoded, acceleration=_ACCELERATION)[_BLOB_HEADER_BYTES:]
