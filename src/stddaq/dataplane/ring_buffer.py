"""The ring buffer of images in POSIX shared memory, and the cursor segment beside it.

Format (std_daq): segment `<detector_name>-<suffix>`, raw slots without a header, slot `s` at byte
`s * image_bytes`, image `i` in slot `i % n_slots`. One service writes, any number read; the writer never
waits. Nothing in that segment says whether a slot still holds the image that a message announced.

The cursor segment `<detector_name>-<suffix>-cursor` is ours and says it: for each slot the sequence number
of the image that it holds, 0 while the slot is being written. `ImageMetadata.sequence` carries the same
number. A reader that finds the announced sequence before and after its copy has copied that very image.
A service without cursor (C++) neither makes nor needs the segment.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import dtype_code, ring_suffix
from stddaq.errors import GeometryError, SourceError

SHM_DIRECTORY = Path("/dev/shm")
SEGMENT_GRANULARITY = 2 * 2**20
SEGMENT_MODE = 0o777
ATTACH_TIMEOUT_S = 2.0

# Cursor segment: a header of 16 uint64 (native order), then one uint64 per slot.
_MAGIC, _IMAGE_BYTES, _N_SLOTS, _HEIGHT, _WIDTH, _DTYPE, _RING_IS_OURS, _SEQUENCE, _N_COMMITS = range(9)
_HEADER = 16
_MAGIC_VALUE = int.from_bytes(b"stddaq-1", "little")


@dataclass(frozen=True, slots=True)
class RingGeometry:
    """How a ring buffer is laid out. Two services share a ring only when theirs are equal."""

    image_bytes: int
    n_slots: int
    height: int
    width: int
    dtype: int

    @classmethod
    def of(cls, config: DetectorConfig) -> RingGeometry:
        """The geometry that a configuration asks for."""
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


class _Segment:
    """One shared-memory file, opened or created at a given size and held by a shared lock."""

    def __init__(self, name: str, size: int, describe: str) -> None:
        self.path = SHM_DIRECTORY / name
        self.created = False
        try:
            self._fd = self._open(size, describe)
            self.map = self._map(size)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "more than can be addressed"
            raise GeometryError(
                f"shared memory {self.path}: this configuration needs {describe}: found {reason}"
            ) from error
        self.view = memoryview(self.map)

    def _open(self, size: int, describe: str) -> int:
        deadline = time.monotonic() + ATTACH_TIMEOUT_S
        while time.monotonic() < deadline:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, SEGMENT_MODE)
            try:
                if self._settle(fd, size, describe):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            time.sleep(0.005)
        raise GeometryError(f"shared memory {self.path}: another service holds it locked while creating it")

    def _map(self, size: int) -> mmap.mmap:
        try:
            return mmap.mmap(self._fd, size)
        except BaseException:
            if self.created:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)
            raise

    def _settle(self, fd: int, size: int, describe: str) -> bool:
        """Size a new segment, check an existing one, take the shared lock. False: try again."""
        found = os.fstat(fd).st_size
        # Whoever sees it empty sizes it under the exclusive lock, so that two services with different
        # geometries cannot both believe that they came first.
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if found == 0 else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            if self.path.stat().st_ino != os.fstat(fd).st_ino:
                return False  # Its last user removed it between our open and our lock.
        except FileNotFoundError:
            return False
        found = os.fstat(fd).st_size
        if found == 0:
            try:
                os.ftruncate(fd, size)
            except BaseException:
                self.path.unlink(missing_ok=True)
                raise
            self.created = True
        elif found != size:
            if self._is_abandoned(fd):
                self.path.unlink(missing_ok=True)
                return False
            raise GeometryError(
                f"shared memory {self.path}: found {found} bytes, this configuration needs {describe}; "
                "the services that use it have another configuration"
            )
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True

    def reserve(self, offset: int, size: int) -> None:
        """Have memory for these bytes. Raises `OSError`."""
        # Writing to a place that the full shared memory has no page for would kill the process (SIGBUS).
        os.posix_fallocate(self._fd, offset, size)

    def is_current(self) -> bool:
        """Whether a service that attaches now gets this same segment."""
        try:
            return self.path.stat().st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def is_replaced(self) -> bool:
        """Whether another segment has this one's name: removed, and then made anew."""
        try:
            return self.path.stat().st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def is_ours_alone(self) -> bool:
        """Whether no other process has the segment locked (ours) or, as far as one can see, mapped."""
        return self.is_current() and self._is_abandoned(self._fd)

    def _is_abandoned(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        unused = not _mapped_by_others(self.path)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return unused

    def let_go(self) -> None:
        """Unmap and unlock: no other that leaves takes us for a user any more. Then `close`."""
        # A view of a slot that somebody still holds keeps the mapping; it goes with the last of them.
        with contextlib.suppress(BufferError):
            self.view.release()
            self.map.close()
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def is_last(self) -> bool:
        """After `let_go`: whether no service of ours uses the segment. If so, none can attach before `close`.

        Of several that leave at once one succeeds: a refused exclusive lock leaves no lock behind.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return self.is_current()

    def unlink(self) -> None:
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self.let_go()
        os.close(self._fd)


class RingBuffer:
    """A ring buffer attached to, whoever created it. The last service of ours to leave removes it.

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
        self._ring = _Segment(self.name, self.geometry.segment_bytes, str(self.geometry))
        try:
            self._cursor = _Segment(f"{self.name}-cursor", self.geometry.cursor_bytes, str(self.geometry))
        except BaseException:
            self._discard(self._ring)
            raise
        self._words = self._cursor.view.cast("Q")
        self._stamps = self._words[_HEADER:]
        try:
            if self._cursor.created:
                self._initialise()
            self._check_cursor()
            if self._ring.created:  # The cursor may be another's, who came between our two segments.
                self._words[_RING_IS_OURS] = True
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
        # A left-over of ours stays ours when it gets another geometry of the same size.
        words[_RING_IS_OURS] = self._ring.created or words[_RING_IS_OURS]
        # Starting from the clock, no number is used twice even when somebody removed the segments by hand:
        # no source puts images there faster than one per microsecond.
        words[_SEQUENCE] = time.time_ns() // 1000
        words[_MAGIC] = _MAGIC_VALUE

    def _check_cursor(self) -> None:
        words = self._words
        deadline = time.monotonic() + ATTACH_TIMEOUT_S
        while words[_MAGIC] != _MAGIC_VALUE and time.monotonic() < deadline:
            time.sleep(0.005)  # Its creator is between sizing and filling it.
        found = RingGeometry(
            words[_IMAGE_BYTES], words[_N_SLOTS], words[_HEIGHT], words[_WIDTH], words[_DTYPE]
        )
        if words[_MAGIC] == _MAGIC_VALUE and found == self.geometry:
            return
        if self._cursor.is_ours_alone() and self._ring.is_ours_alone():
            self._initialise()  # Left behind by services that were killed; nobody uses it.
            return
        raise GeometryError(
            f"shared memory {self._ring.path}: found a ring of {found}, this configuration needs "
            f"{self.geometry}; the services that use it have another configuration"
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
        """Whether a source of ours has written to this ring, so that `holds` means something."""
        return self._words[_N_COMMITS] != 0

    @property
    def sequence(self) -> int:
        """The sequence number given last."""
        return self._words[_SEQUENCE]

    def holds(self, image_id: int, sequence: int) -> bool:
        """Whether the slot of `image_id` holds, complete, the image that was put there as `sequence`."""
        return self._stamps[image_id % self._n_slots] == sequence

    def begin(self, image_id: int) -> memoryview:
        """Open the slot of image `image_id` for writing; nobody trusts it until `commit`.

        Raises `SourceError` when there is no memory for it.
        """
        slot = image_id % self._n_slots
        if not self._is_reserved[slot]:
            self.reserve(slot)
        self._stamps[slot] = 0
        return self.slot(image_id)

    def reserve(self, slot: int) -> None:
        """Get the memory of a slot. `begin` does it when a slot is used first, and takes longer then.

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
        """Declare the slot of `image_id` written. Returns the sequence number to announce it with."""
        sequence = self._words[_SEQUENCE] + 1
        self._words[_SEQUENCE] = sequence
        self._words[_N_COMMITS] += 1
        self._stamps[image_id % self._n_slots] = sequence
        return sequence

    def is_current(self) -> bool:
        """Whether a service that attaches now gets this same ring (nobody removed it by hand)."""
        return self._ring.is_current() and self._cursor.is_current()

    def is_replaced(self) -> bool:
        """Whether somebody removed this ring, and another has its name now. 3 us.

        C++ services remove the ring when they end. A cursor tells that its slots are written no more; where
        there is none, the announcements go on, and nobody knows which of the two rings they mean.
        """
        return self._ring.is_replaced()

    def check_not_replaced(self) -> None:
        """Raise `GeometryError` when it `is_replaced`."""
        if self.is_replaced():
            raise GeometryError(
                f"shared memory {self._ring.path}: was removed and made anew by another service, "
                "so that nobody can tell which of the two its source writes to"
            )

    def close(self) -> None:
        """Detach; remove the segments when no other service uses them (a ring made by C++ stays)."""
        ring_is_ours = bool(self._words[_RING_IS_OURS])
        self._stamps.release()
        self._words.release()
        self._ring.let_go()
        self._cursor.let_go()
        # The ring decides for both: whoever attaches begins with it, and waits while we hold it alone. A new
        # cursor beside a ring that stays could not know that the ring is ours.
        if self._ring.is_last():
            self._cursor.unlink()
            if ring_is_ours and not _mapped_by_others(self._ring.path):
                self._ring.unlink()
        elif not self._ring.is_current() and self._cursor.is_last():
            self._cursor.unlink()  # Somebody removed the ring by hand.
        self._cursor.close()
        self._ring.close()

    @staticmethod
    def _discard(segment: _Segment) -> None:
        """Undo an attachment that failed half-way."""
        segment.let_go()
        if segment.created and segment.is_last() and not _mapped_by_others(segment.path):
            segment.unlink()
        segment.close()

    def __enter__(self) -> RingBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _mapped_by_others(path: Path) -> bool:
    """Whether a process that we may look at maps `path`; finds services without our locks (C++)."""
    wanted, me = os.fsencode(path), str(os.getpid())
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if maps.parent.name == me:
            continue
        try:
            if any(line.rstrip().endswith(wanted) for line in maps.read_bytes().splitlines()):
                return True
        except OSError:
            continue
    return False
