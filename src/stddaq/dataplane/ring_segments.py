"""The shared memory of a ring buffer, the ring and its cursor: attaching, detaching, removing.

Both segments are attached and removed under a lock on the cursor, so that no service attaches to what another
one removes. The last service to detach removes them; a ring that C++ made stays.
"""

from __future__ import annotations

import contextlib
import glob
import time
from array import array

from stddaq.dataplane.ring_layout import CODE_SHIFT, CURSOR_HEADER, RingGeometry, ring_code
from stddaq.dataplane.shared_segment import (
    POLL_PERIOD_S,
    SHM_DIRECTORY,
    SharedSegment,
    is_in_use,
    remove,
    status_of,
)
from stddaq.errors import GeometryError
from stddaq.text import mismatch

# Words at the begin of the cursor segment.
_MAGIC, _IMAGE_BYTES, _N_SLOTS, _HEIGHT, _WIDTH, _DTYPE, _RING_INODE, SEQUENCE = range(8)
_MAGIC_VALUE = int.from_bytes(b"stddaq-2", "little")
# Bytes of the cursor segment, far behind its contents, that are locked: by a service that attaches or
# detaches; by each service that is attached (shared); by the one source.
_ATTACHING, _ATTACHED, SOURCE = range(2**40, 2**40 + 3)
# The first service reserves the memory of the ring, up to 1 s per GiB, while the others wait.
ATTACH_TIMEOUT_S = 60.0
DETACH_TIMEOUT_S = 1.0


class RingSegments:
    """The two segments of a ring that this process has attached to.

    Attributes:
        ring: the segment of the images.
        cursor: the segment of their numbers.
        memory: writable memoryview of the ring, uint8.
        words: writable memoryview of the cursor, uint64 in native order: a header of `CURSOR_HEADER`, then
            one of each slot.
    """

    def __init__(self, name: str, geometry: RingGeometry, cursor_bytes: int) -> None:
        """Attach to the ring `name`, or create it. Raise `GeometryError` when it has another geometry."""
        self._name, self._geometry, self._cursor_bytes = name, geometry, cursor_bytes
        self._path = SHM_DIRECTORY / name
        self.cursor = self._attach()

    def _attach(self) -> SharedSegment:
        deadline = time.monotonic() + ATTACH_TIMEOUT_S
        while True:
            cursor = SharedSegment(f"{self._name}-cursor", private=True)
            try:
                if cursor.lock(_ATTACHING) and cursor.is_current() and self._attach_with(cursor):
                    return cursor
            except BaseException:
                if not cursor.size:
                    cursor.unlink()
                cursor.close()
                raise
            cursor.close()
            if time.monotonic() > deadline:
                raise GeometryError(
                    f"shared memory {cursor.path}: another process has kept it locked for "
                    f"{ATTACH_TIMEOUT_S:g} s; `fuser -v {cursor.path}` as root names it"
                )
            time.sleep(POLL_PERIOD_S)

    def _attach_with(self, cursor: SharedSegment) -> bool:
        """Attach to the ring of a locked cursor. Return False after removing what was left: try again."""
        header, ring = self._read_header(cursor), status_of(self._path)
        if header is None:
            if ring is not None and ring.st_size > self._geometry.segment_bytes:
                self._remove_left_over(cursor, f"{ring.st_size} bytes")
                return False
        else:
            geometry, inode = header
            if ring is None or ring.st_ino != inode:
                cursor.unlink()  # The ring was removed, and its source may still write this cursor.
                return False
            if geometry != self._geometry:
                self._remove_left_over(cursor, f"a ring of {geometry}")
                return False
        self.ring = SharedSegment(self._name)
        if header is not None and self.ring.inode != header[1]:
            self.ring.close()  # A std_daq service (C++) has just made it.
            return False
        self._map(cursor, is_new=header is None)
        cursor.lock(_ATTACHED, shared=True)
        cursor.unlock(_ATTACHING)
        return True

    @staticmethod
    def _read_header(cursor: SharedSegment) -> tuple[RingGeometry, int] | None:
        """Return the geometry and the ring's inode that a cursor names; None if it is new."""
        words = array("Q", cursor.read(CURSOR_HEADER * 8))
        if len(words) < CURSOR_HEADER or words[_MAGIC] != _MAGIC_VALUE:
            return None
        return RingGeometry(*words[_IMAGE_BYTES : _DTYPE + 1]), words[_RING_INODE]

    def _remove_left_over(self, cursor: SharedSegment, found: str) -> None:
        """Remove a ring with another geometry. Raises `GeometryError` if a service uses it."""
        if not cursor.lock(_ATTACHED) or is_in_use(self._path):
            advice = "the services that use it have another configuration"
            raise GeometryError(mismatch(f"shared memory {self._path}", str(self._geometry), found, advice))
        remove(self._path)
        cursor.unlink()

    def _map(self, cursor: SharedSegment, *, is_new: bool) -> None:
        """Map ring and cursor. A smaller ring, of a std_daq service (C++), is grown."""
        geometry, describe, ring = self._geometry, str(self._geometry), self.ring
        try:
            ring.reserve(geometry.segment_bytes, describe)
            cursor.reserve(self._cursor_bytes, describe)
            self.memory = ring.map(geometry.segment_bytes)
            self.words = cursor.map(self._cursor_bytes).cast("Q")
        except BaseException:
            if is_new:
                _remove_if_unused(cursor, ring)
            ring.close()
            raise
        if is_new:
            self._write_header()

    def _write_header(self) -> None:
        words, geometry = self.words, self._geometry
        words[_IMAGE_BYTES], words[_N_SLOTS] = geometry.image_bytes, geometry.n_slots
        words[_HEIGHT], words[_WIDTH], words[_DTYPE] = geometry.height, geometry.width, geometry.dtype
        words[_RING_INODE] = self.ring.inode
        # Starting from the clock, no number is used twice even after the segments were removed by hand: no
        # source publishes more than one image per microsecond.
        words[SEQUENCE] = ring_code(self._name) << CODE_SHIFT | time.time_ns() // 1000
        words[_MAGIC] = _MAGIC_VALUE

    def detach(self) -> None:
        """Detach, once; remove the segments if no other service uses them. Views of `words` are released."""
        locked = self._lock_to_detach()
        self.words.release()
        with contextlib.suppress(BufferError):  # A slot is still in use.
            self.memory.release()
        self.cursor.unlock(SOURCE)
        self.cursor.unlock(_ATTACHED)
        if locked is not None:
            _remove_if_unused(locked, self.ring)
        # Before the lock ends: the next service to detach must find itself the last.
        self.ring.close()
        if locked is not None:
            locked.close()
        self.cursor.close()

    def _lock_to_detach(self) -> SharedSegment | None:
        """Lock the cursor for `_remove_if_unused`. Return None if that was not possible within a second."""
        cursor, deadline = self.cursor, time.monotonic() + DETACH_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.ring.is_current() and not cursor.is_current():
                # It was removed by hand. Other services may have the one that is there now.
                if cursor is not self.cursor:
                    cursor.close()
                with contextlib.suppress(GeometryError):
                    cursor = SharedSegment(cursor.path.name, private=True)
            if cursor.lock(_ATTACHING):
                return cursor
            time.sleep(POLL_PERIOD_S)
        return None


def remove_unused_rings(detector_name: str) -> None:
    """Remove the rings of a detector that killed services left. A ring in use, or that C++ made, stays."""
    for path in SHM_DIRECTORY.glob(f"{glob.escape(detector_name)}-*-cursor"):
        with contextlib.suppress(GeometryError):
            _remove_ring_if_unused(path.name.removesuffix("-cursor"))


def _remove_ring_if_unused(name: str) -> None:
    """Remove the ring `name` and its cursor if no service uses them. Raise `GeometryError`."""
    cursor = SharedSegment(f"{name}-cursor", private=True)
    try:
        if not cursor.lock(_ATTACHING):
            return
        if status_of(SHM_DIRECTORY / name) is None:
            if cursor.lock(_ATTACHED):
                cursor.unlink()
            return
        ring = SharedSegment(name)
        _remove_if_unused(cursor, ring)
        ring.close()
    finally:
        cursor.close()


def _remove_if_unused(cursor: SharedSegment, ring: SharedSegment) -> None:
    """Remove the segments, under the lock, if no other process uses them. A ring that C++ made stays."""
    if cursor.is_current() and cursor.lock(_ATTACHED):
        # In a directory like /dev/shm only their owner and root may remove them: they stay for the next
        # services, which use them again.
        with contextlib.suppress(GeometryError):
            if ring.is_current() and ring.is_own() and ring.close_as_last():
                ring.unlink()
            cursor.unlink()
