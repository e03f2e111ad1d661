"""The ring buffer of images in POSIX shared memory, and the cursor segment beside it.

Format (std_daq): segment `<detector_name>-<suffix>`, raw slots without a header, slot `s` at byte
`s * image_bytes`, image `i` in slot `i % n_slots`. One service writes, any number read; the writer never
waits. Nothing in that segment says whether a slot still holds the image that a message announced.

The cursor segment `<detector_name>-<suffix>-cursor`, an extension, says it: for each slot the sequence number
of the image that it holds, 0 while the slot is being written. `ImageMetadata.sequence` carries the same
number. A reader that finds the announced sequence before and after its copy has copied that image. A std_daq
service (C++) neither creates nor reads the cursor segment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import dtype_code, ring_suffix
from stddaq.dataplane.shared_segment import (
    ATTACH_TIMEOUT_S,
    POLL_PERIOD_S,
    SharedSegment,
    is_mapped_by_others,
)
from stddaq.errors import GeometryError, SourceError
from stddaq.text import mismatch

SEGMENT_GRANULARITY = 2 * 2**20

# Cursor segment: a header of 16 uint64 (native order), then one uint64 per slot.
_MAGIC, _IMAGE_BYTES, _N_SLOTS, _HEIGHT, _WIDTH, _DTYPE, _RING_HAS_OWNER, _SEQUENCE, _N_COMMITS = range(9)
_HEADER = 16
_MAGIC_VALUE = int.from_bytes(b"stddaq-1", "little")


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
        return cls(config.image_bytes, config.n_slots, height, width, dtype_code(config.dtype))

    @property
    def segment_bytes(self) -> int:
        """Size of the segment: all slots, rounded up to 2 MiB."""
        return -(-self.image_bytes * self.n_slots // SEGMENT_GRANULARITY) * SEGMENT_GRANULARITY

    @property
    def cursor_bytes(self) -> int:
        """Size of the cursor segment."""
        return (_HEADER + self.n_slots) * 8

    def __str__(self) -> str:
        return (
            f"{self.n_slots} slots of {self.image_bytes} bytes "
            f"({self.height}x{self.width}, dtype {self.dtype}), {self.segment_bytes} bytes"
        )


class RingBuffer:
    """A ring buffer that this process has attached to. The last service with a lock on it removes it.

    Attributes:
        memory: writable memoryview of the whole segment, uint8.
        geometry: slots and their size.
    """

    def __init__(self, config: DetectorConfig, suffix: str) -> None:
        """Attach to the ring of `suffix` (a ring's or a metadata stream's), or create it.

        Raises `GeometryError` when it exists with another geometry.
        """
        self.geometry = RingGeometry.of(config)
        self.name = f"{config.detector_name}-{ring_suffix(suffix)}"
        self.shape, self.dtype = config.image_shape, config.dtype
        self._ring = SharedSegment(self.name, self.geometry.segment_bytes, str(self.geometry))
        try:
            self._cursor = SharedSegment(
                f"{self.name}-cursor", self.geometry.cursor_bytes, str(self.geometry)
            )
        except BaseException:
            self._discard(self._ring)
            raise
        self._words = self._cursor.view.cast("Q")
        self._stamps = self._words[_HEADER:]
        try:
            if self._cursor.created:
                self._initialise()
            self._check_cursor()
            if self._ring.created:  # Another service may have created the cursor meanwhile.
                self._words[_RING_HAS_OWNER] = True
        except BaseException:
            self.close()
            raise
        self.memory = self._ring.view
        self._image_bytes = self.geometry.image_bytes
        self._n_slots = self.geometry.n_slots
        self._is_reserved = bytearray(self._n_slots)

    def _initialise(self) -> None:
        words, geometry = self._words, self.geometry
        words[_IMAGE_BYTES], words[_N_SLOTS] = geometry.image_bytes, geometry.n_slots
        words[_HEIGHT], words[_WIDTH], words[_DTYPE] = geometry.height, geometry.width, geometry.dtype
        # A leftover with an owner keeps it when it gets another geometry of the same size.
        words[_RING_HAS_OWNER] = self._ring.created or words[_RING_HAS_OWNER]
        # Starting from the clock, no number is used twice even after the segments were removed by hand: no
        # source publishes more than one image per microsecond.
        words[_SEQUENCE] = time.time_ns() // 1000
        words[_MAGIC] = _MAGIC_VALUE

    def _check_cursor(self) -> None:
        words = self._words
        deadline = time.monotonic() + ATTACH_TIMEOUT_S
        while words[_MAGIC] != _MAGIC_VALUE and time.monotonic() < deadline:
            time.sleep(POLL_PERIOD_S)  # Its creator is between sizing and filling it.
        found = RingGeometry(
            words[_IMAGE_BYTES], words[_N_SLOTS], words[_HEIGHT], words[_WIDTH], words[_DTYPE]
        )
        if words[_MAGIC] == _MAGIC_VALUE and found == self.geometry:
            return
        if self._cursor.is_unshared() and self._ring.is_unshared():
            self._initialise()  # A leftover of services that were killed.
            return
        advice = "the services that use it have another configuration"
        raise GeometryError(
            mismatch(f"shared memory {self._ring.path}", str(self.geometry), f"a ring of {found}", advice)
        )

    def slot(self, image_id: int) -> memoryview:
        """The bytes of the slot of image `image_id`, uint8, writable, not copied."""
        start = image_id % self._n_slots * self._image_bytes
        return self.memory[start : start + self._image_bytes]

    def offset(self, image_id: int) -> int:
        """First byte of the slot of image `image_id` in `memory`."""
        return image_id % self._n_slots * self._image_bytes

    def image(self, image_id: int) -> np.ndarray:
        """The slot of image `image_id` as an array (height, width) of the pixel type, not copied."""
        return np.frombuffer(self.slot(image_id), self.dtype).reshape(self.shape)

    @property
    def has_cursor(self) -> bool:
        """Whether a source has written the cursor, so that `holds` is meaningful."""
        return self._words[_N_COMMITS] != 0

    @property
    def sequence(self) -> int:
        """The sequence number given last."""
        return self._words[_SEQUENCE]

    def holds(self, image_id: int, sequence: int) -> bool:
        """Return whether the slot of `image_id` holds the complete image of number `sequence`."""
        return self._stamps[image_id % self._n_slots] == sequence

    def begin(self, image_id: int) -> memoryview:
        """Open the slot of image `image_id` for writing; readers do not trust it until `commit`.

        Raises `SourceError` when there is no memory for it.
        """
        slot = image_id % self._n_slots
        if not self._is_reserved[slot]:
            self.reserve(slot)
        self._stamps[slot] = 0
        return self.slot(image_id)

    def reserve(self, slot: int) -> None:
        """Get the memory of a slot. `begin` does it on the first use of a slot, and then takes longer.

        Raises `SourceError` when there is none.
        """
        try:
            self._ring.reserve(slot * self._image_bytes, self._image_bytes)
        except OSError as error:
            raise SourceError(
                f"shared memory {self._ring.path}: no room for slot {slot} of {self._n_slots} slots of "
                f"{self._image_bytes} bytes: {error.strerror}; "
                f"the ring buffer needs {self._n_slots * self._image_bytes} bytes"
            ) from error
        self._is_reserved[slot] = True

    def commit(self, image_id: int) -> int:
        """Mark the slot of `image_id` as written. Returns the sequence number to announce it with."""
        sequence = self._words[_SEQUENCE] + 1
        self._words[_SEQUENCE] = sequence
        self._words[_N_COMMITS] += 1
        self._stamps[image_id % self._n_slots] = sequence
        return sequence

    def is_current(self) -> bool:
        """Return whether a service that attaches now gets this ring (it was not removed by hand)."""
        return self._ring.is_current() and self._cursor.is_current()

    def is_replaced(self) -> bool:
        """Return whether this ring was removed, and another has its name now. 3 us.

        std_daq services (C++) remove the ring when they end. A cursor shows that its slots are no longer
        written; without one, the announcements continue and do not say which of the two rings they mean.
        """
        return self._ring.is_replaced()

    def check_not_replaced(self) -> None:
        """Raise `GeometryError` if it `is_replaced`."""
        if self.is_replaced():
            raise GeometryError(
                f"shared memory {self._ring.path}: was removed, and another service created a new one; "
                "which of the two the source writes to is unknown"
            )

    def close(self) -> None:
        """Detach; remove the segments if no other service uses them. A ring without owner (C++) stays."""
        ring_has_owner = bool(self._words[_RING_HAS_OWNER])
        self._stamps.release()
        self._words.release()
        self._ring.release()
        self._cursor.release()
        # The ring decides for both: services attach to it first, and wait while this one has the exclusive
        # lock. A new cursor beside a ring that stays could not know that the ring has an owner.
        if self._ring.is_last():
            self._cursor.unlink()
            if ring_has_owner and not is_mapped_by_others(self._ring.path):
                self._ring.unlink()
        elif not self._ring.is_current() and self._cursor.is_last():
            self._cursor.unlink()  # The ring was removed by hand.
        self._cursor.close()
        self._ring.close()

    @staticmethod
    def _discard(segment: SharedSegment) -> None:
        """Undo an attachment that failed half-way."""
        segment.release()
        if segment.created and segment.is_last() and not is_mapped_by_others(segment.path):
            segment.unlink()
        segment.close()

    def __enter__(self) -> RingBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
