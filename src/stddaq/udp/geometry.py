"""The packets and frames of one module: how many rows and bytes, and where they belong."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stddaq.config import DetectorConfig
from stddaq.config.modules import EIGER_FRAME_SIZE, JUNGFRAU_SIZE
from stddaq.errors import GeometryError
from stddaq.text import mismatch

# A packet of the GigaFRoST has blocks of 12 pixels, and up to this many bytes of them.
GIGAFROST_PAYLOAD_BYTES = 7400
GIGAFROST_BLOCK = 12
GIGAFROST_MAX_PIXELS = 2016
# 24 pixels that complete a packet with an odd number of rows.
_PADDING_BYTES = 36

EIGER_PAYLOAD_BYTES = 4096
JUNGFRAU_PAYLOAD_BYTES = 8192


@dataclass(frozen=True, slots=True)
class FrameGeometry:
    """The frame of one module, as packets of equal size.

    Attributes:
        n_packets: packets of one frame.
        payload_bytes: bytes of pixels of one packet.
        frame_bytes: bytes of one frame, which is one slot of the frame ring.
    """

    n_packets: int
    payload_bytes: int
    frame_bytes: int


@dataclass(frozen=True, slots=True)
class GigaFrostGeometry:
    """The frame of one of the 8 modules of a GigaFRoST: half a quadrant, every second row of it.

    Attributes:
        module_height, module_width: rows and columns of the module.
        rows: rows of a packet; the last packet has `last_rows`.
        n_packets: packets of one frame.
    """

    module_height: int
    module_width: int
    rows: int
    n_packets: int
    last_rows: int

    @classmethod
    def of(cls, height: int, width: int) -> GigaFrostGeometry:
        """Return the geometry of an image. Raise `GeometryError` if the camera has no such image.

        The camera computes with integers in exactly this order.
        """
        limit = GIGAFROST_MAX_PIXELS
        if width % 24 or not 48 <= width <= limit:
            raise GeometryError(
                mismatch(
                    "image_pixel_width", f"a multiple of 24 from 48 to {limit} for gigafrost", f"{width}"
                )
            )
        if height % 4 or not 4 <= height <= limit:
            raise GeometryError(
                mismatch(
                    "image_pixel_height", f"a multiple of 4 from 4 to {limit} for gigafrost", f"{height}"
                )
            )
        columns, module_height = width // 2, height // 4
        blocks = columns // GIGAFROST_BLOCK
        rows = ((GIGAFROST_PAYLOAD_BYTES // (36 * blocks)) * blocks // 2) * 48 // columns
        rows = min(rows, module_height)
        return cls(module_height, columns, rows, -(-module_height // rows), module_height % rows or rows)

    def packet_bytes(self, rows: int) -> int:
        """Return the bytes of pixels of a packet of `rows` rows, its padding included."""
        is_padded = rows % 2 and self.module_width % 48
        return self.module_width * rows * 3 // 2 + (_PADDING_BYTES if is_padded else 0)

    @property
    def payload_bytes(self) -> int:
        """Bytes of pixels of every packet but the last one."""
        return self.packet_bytes(self.rows)

    @property
    def last_payload_bytes(self) -> int:
        """Bytes of pixels of the last packet."""
        return self.packet_bytes(self.last_rows)

    @property
    def row_step_bytes(self) -> int:
        """Distance in the frame from the pixels of one packet to those of the next; padding is not kept."""
        return self.module_width * self.rows * 3 // 2

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the frame that hold pixels."""
        return self.module_width * self.module_height * 3 // 2

    @property
    def frame_bytes(self) -> int:
        """Bytes of one slot of the frame ring."""
        return self.payload_bytes * (self.n_packets - 1) + self.last_payload_bytes


def frame_bytes(config: DetectorConfig) -> int:
    """Return the bytes of the frames of a detector's modules. Raise `GeometryError`."""
    if config.detector_type == "gigafrost":
        return GigaFrostGeometry.of(*config.image_shape).frame_bytes
    return packed_geometry(config).frame_bytes


def packed_geometry(config: DetectorConfig) -> FrameGeometry:
    """Return the geometry of a module of Eiger or Jungfrau. Raise `GeometryError`."""
    if config.detector_type == "eiger":
        payload, n_bytes = EIGER_PAYLOAD_BYTES, math.prod(EIGER_FRAME_SIZE) * config.bit_depth // 8
    elif config.detector_type in ("jungfrau-raw", "jungfrau-converted"):
        if config.bit_depth != 16:
            raise GeometryError(
                mismatch("bit_depth", "16 for the packets of a jungfrau", f"{config.bit_depth}")
            )
        payload, n_bytes = JUNGFRAU_PAYLOAD_BYTES, math.prod(JUNGFRAU_SIZE) * 2
    else:
        raise GeometryError(
            mismatch("detector_type", "a detector that sends UDP packets", config.detector_type)
        )
    return FrameGeometry(n_bytes // payload, payload, n_bytes)
