"""The layout of a ring buffer and of its cursor segment, and its code in the numbers of its images."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import dtype_code

SEGMENT_GRANULARITY = 2 * 2**20
# Words of the cursor segment before those of the slots.
CURSOR_HEADER = 24

# A sequence number is 12 bits of the CRC of the ring's name, and 52 bits that start from the clock: it says
# of which ring's images it is.
CODE_SHIFT = 52


def ring_code(name: str) -> int:
    """Return the upper bits of the sequence numbers of a ring, never 0."""
    return zlib.crc32(name.encode()) >> 20 | 1


@dataclass(frozen=True, slots=True)
class RingGeometry:
    """The layout of a ring buffer. Services share a ring only if their layouts are equal."""

    image_bytes: int
    n_slots: int
    height: int
    width: int
    dtype: int

    @classmethod
    def of(cls, config: DetectorConfig) -> RingGeometry:
        """Return the geometry of a configuration."""
        height, width = config.image_shape
        return cls(config.image_bytes, config.n_slots, height, width, dtype_code(config.pixel_type))

    @property
    def segment_bytes(self) -> int:
        """Size of the segment: all slots, rounded up to 2 MiB."""
        return -(-self.image_bytes * self.n_slots // SEGMENT_GRANULARITY) * SEGMENT_GRANULARITY

    @property
    def cursor_bytes(self) -> int:
        """Size of the cursor segment."""
        return (CURSOR_HEADER + self.n_slots) * 8

    def __str__(self) -> str:
        return (
            f"{self.n_slots} slots of {self.image_bytes} bytes "
            f"({self.height}x{self.width}, dtype {self.dtype}), {self.segment_bytes} bytes"
        )
