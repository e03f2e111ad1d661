"""The ring buffer of images in POSIX shared memory, and the cursor segment beside it.

Format (std_daq): segment `<detector_name>-<suffix>`, raw slots without a header, slot `s` at byte
`s * image_bytes`, image `i` in slot `i % n_slots`. One service writes, any number read; the writer never
waits. Nothing in that segment says whether a slot still holds the image that a message announced.

The cursor segment `<detector_name>-<suffix>-cursor`, an extension, says it: for each slot the sequence number
of the image that it holds, 0 while the slot is being written. `ImageMetadata.sequence` carries the same
number. A reader that finds the announced sequence before and after its copy has copied that image. The cursor
names the ring that it belongs to, so that it says nothing of another ring with the same name. A std_daq
service (C++) neither creates nor reads the cursor segment. When it continues on the ring of a source that has
ended, the numbers of that source stay; the first reader to notice records that they no longer count.

Several services may write parts of one image, and the source then announces it: each marks its part of a slot
with a number of its own before it writes, in words behind those of the slots. The source compares them with
the numbers that it received, so that a slot in which a later image has been started never counts as complete.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.daemon.log import logger
from stddaq.dataplane.ipc_sockets import CHECK_PERIOD_S
from stddaq.dataplane.metadata import dtype_of, ring_suffix
from stddaq.dataplane.ring_layout import CURSOR_HEADER, RingGeometry, ring_code
from stddaq.dataplane.ring_segments import SEQUENCE, SOURCE, RingSegments
from stddaq.errors import EndpointError, GeometryError
from stddaq.text import mismatch

if TYPE_CHECKING:
    import numpy as np

# Words of the cursor's header. The source that has the lock, for messages.
_SOURCE_PID, _SOURCE_UID, _SOURCE_PROGRAM = range(8, 11)
_PROGRAM_WORDS = 8
# The number given last before this source came, and the number up to which a source without cursor may have
# overwritten images of sources that have ended.
_SINCE, _CLAIMED = range(18, 20)


class RingBuffer(Closing):
    """A ring buffer that this process has attached to. The last service to detach removes it.

    Attributes:
        memory: writable memoryview of the whole segment, uint8.
        geometry: slots and their size.
        code: upper bits of its sequence numbers.
    """

    def __init__(
        self,
        config: DetectorConfig,
        suffix: str,
        *,
        as_source: bool = False,
        geometry: RingGeometry | None = None,
        n_parts: int = 0,
    ) -> None:
        """Attach to the ring of `suffix` (a ring's or a metadata stream's), or create it.

        With `as_source`, be the only source until `close` or the end of the process. `geometry` is that of
        the configuration's images by default. `n_parts`: services that write parts of an image. Raises
        `EndpointError` when another process is the source, and `GeometryError` when the ring has another
        geometry.
        """
        self.geometry = geometry = geometry or RingGeometry.of(config)
        suffix = ring_suffix(suffix)
        self._config, self._suffix, self._as_source, self._n_parts = config, suffix, as_source, n_parts
        self._check_at = 0.0
        self.name = f"{config.detector_name}-{suffix}"
        self.code = ring_code(self.name)
        self.shape = geometry.height, geometry.width
        self._image_bytes, self._n_slots = self.geometry.image_bytes, self.geometry.n_slots
        cursor_bytes = geometry.cursor_bytes + 8 * n_parts * geometry.n_slots
        self._segments = segments = RingSegments(self.name, geometry, cursor_bytes)
        self._ring, self._cursor = segments.ring, segments.cursor
        self.memory, self._words = segments.memory, segments.words
        self._stamps = self._words[CURSOR_HEADER : CURSOR_HEADER + self._n_slots]
        self._parts = self._words[CURSOR_HEADER + self._n_slots :]
        self._is_attached = True
        if as_source:
            try:
                self._become_source()
            except BaseException:
                self.close()
                raise
        self._fence = threading.Lock()
        self._is_open, self._was_written = bytearray(self._n_slots), bytearray(self._n_slots)

    def close(self) -> None:
        """Detach; remove the segments if no other service uses them. A ring that C++ created stays."""
        if not self._is_attached:
            return
        self._is_attached = False
        self._stamps.release()
        self._parts.release()
        self._segments.detach()

    def _become_source(self) -> None:
        words = self._words
        program = words[_SOURCE_PROGRAM : _SOURCE_PROGRAM + _PROGRAM_WORDS].cast("B")
        if not self._cursor.lock(SOURCE):
            name = bytes(program).rstrip(b"\0").decode(errors="replace")
            raise EndpointError(
                mismatch(
                    f"shared memory {self._ring.path}",
                    "no other source",
                    f"process {words[_SOURCE_PID]} of user {words[_SOURCE_UID]} ({ascii(name)[1:-1]})",
                    "two detectors need two values of `detector_name`",
                )
            )
        name = os.path.basename(sys.argv[0] if sys.argv else "").encode()[: len(program)]  # noqa: PTH119
        program[:] = name.ljust(len(program), b"\0")
        words[_SOURCE_PID], words[_SOURCE_UID] = os.getpid(), os.geteuid()
        words[_SINCE] = words[SEQUENCE]

    def has_source(self) -> bool:
        """Return whether another process, a source of stddaq, writes this ring. 1 us."""
        return self._cursor.is_locked(SOURCE)

    def has_source_of(self, sequence: int) -> bool:
        """Return whether the source that gave this number still writes the ring, and so no other. 1 us."""
        return sequence > self._words[_SINCE] and self.has_source()

    def claim(self) -> None:
        """Record that a source without cursor has announced images of this ring. 0.2 us when repeated."""
        words = self._words
        last = words[SEQUENCE]
        if words[_CLAIMED] < last:
            # A source that is there now has written its slots itself.
            words[_CLAIMED] = max(words[_CLAIMED], words[_SINCE] if self.has_source() else last)

    def is_claimed(self, sequence: int) -> bool:
        """Return whether a source without cursor may have overwritten an image of a source that has ended."""
        return sequence <= self._words[_CLAIMED]

    @cached_property
    def dtype(self) -> np.dtype:
        """The type of one pixel, little-endian."""
        return dtype_of(self.geometry.dtype)

    def slot(self, image_id: int) -> memoryview:
        """The bytes of the slot of image `image_id`, uint8, writable, not copied."""
        start = image_id % self._n_slots * self._image_bytes
        return self.memory[start : start + self._image_bytes]

    def offsets(self, image_ids: Sequence[int]) -> list[int]:
        """First bytes of the slots of images in `memory`."""
        n_slots, image_bytes = self._n_slots, self._image_bytes
        return [image_id % n_slots * image_bytes for image_id in image_ids]

    def image(self, image_id: int) -> np.ndarray:
        """The slot of image `image_id` as an array (height, width) of the pixel type, not copied."""
        import numpy as np

        return np.frombuffer(self.slot(image_id), self.dtype).reshape(self.shape)

    @property
    def cursor(self) -> memoryview:
        """The words of the cursor segment, uint64, writable; to be released before `close`."""
        return self._words

    @property
    def sequence(self) -> int:
        """The sequence number given last."""
        return self._words[SEQUENCE]

    def holds(self, image_id: int, sequence: int) -> bool:
        """Return whether the slot of `image_id` holds the complete image of number `sequence`."""
        return self._stamps[image_id % self._n_slots] == sequence

    def held(self, image_ids: Sequence[int], sequences: Sequence[int]) -> list[bool]:
        """Return `holds` for each of these images. 0.1 us for each."""
        stamps, n_slots = self._stamps, self._n_slots
        images = zip(image_ids, sequences, strict=True)
        return [stamps[image_id % n_slots] == sequence for image_id, sequence in images]

    def stamp(self, image_id: int) -> int:
        """Return the sequence number in the cursor of the slot of `image_id`; 0: none, or being written."""
        return self._stamps[image_id % self._n_slots]

    def is_written(self, image_id: int) -> bool:
        """Return whether a source has written to the slot of `image_id` since the ring was made.

        A slot that was read without this check counts as written.
        """
        slot = image_id % self._n_slots
        if not self._was_written[slot]:
            self._was_written[slot] = self._ring.is_written_at(slot * self._image_bytes)
        return bool(self._was_written[slot])

    def begin(self, image_id: int) -> memoryview:
        """Open the slot of image `image_id` for writing; readers do not trust it until `commit`."""
        slot = image_id % self._n_slots
        self._stamps[slot] = 0
        self._is_open[slot] = True
        return self.slot(image_id)

    def commit(self, image_id: int) -> int:
        """Mark the slot of `image_id` as written. Returns the sequence number to announce it with.

        Readers do not trust a slot that was not opened here: its pixels were put into another ring.
        """
        sequence = self._words[SEQUENCE] + 1
        self._words[SEQUENCE] = sequence
        slot = image_id % self._n_slots
        if self._is_open[slot]:
            self._stamps[slot] = sequence
            self._is_open[slot] = False
        return sequence

    def begin_part(self, image_id: int, part: int, mark: int) -> np.ndarray:
        """Open the slot of image `image_id` for one of several writers. Return its pixels, to be filled.

        `mark` is a number that this writer has not used for this slot before. Readers do not trust the slot
        until `commit_parts`.
        """
        slot = image_id % self._n_slots
        # In this order, so that `commit_parts` finds the mark, or its sequence number is erased.
        self._parts[part * self._n_slots + slot] = mark
        self._stamps[slot] = 0
        return self.image(image_id)

    def mark(self, image_id: int, part: int) -> int:
        """Return the mark that a writer of parts has left in the slot of `image_id`; 0: none."""
        return self._parts[part * self._n_slots + image_id % self._n_slots]

    def commit_parts(self, image_id: int, marks: Iterable[tuple[int, int]]) -> tuple[int, bool]:
        """Mark the slot of `image_id` as written if it has the marks (part, mark) of all its parts.

        Return the sequence number to announce it with, and whether the slot holds the image.
        """
        slot, n_slots, parts = image_id % self._n_slots, self._n_slots, self._parts
        sequence = self._words[SEQUENCE] + 1
        self._words[SEQUENCE] = self._stamps[slot] = sequence
        # The processor may delay the store behind the loads that follow, unless a lock lies between them.
        with self._fence:
            pass
        for part, mark in marks:
            if parts[part * n_slots + slot] != mark:
                self._stamps[slot] = 0
                return sequence, False
        return sequence, True

    def check(self, use: Callable[[RingBuffer], None]) -> None:
        """Replace this ring if it was removed by hand; see `check_now`. Call it at least once a second."""
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + CHECK_PERIOD_S
            self.check_now(use)

    def check_now(self, use: Callable[[RingBuffer], None]) -> None:
        """Attach to a new ring if this one was removed by hand: pass it to `use`, then close this one.

        Raise `GeometryError` or `EndpointError` if another service has taken its place. 3 us.
        """
        if self.is_current():
            return
        logger.warning("the ring buffer %s was removed, attaching to a new one", self.name)
        ring = RingBuffer(
            self._config,
            self._suffix,
            as_source=self._as_source,
            geometry=self.geometry,
            n_parts=self._n_parts,
        )
        if self._as_source:
            # The numbers continue, so that none counts as dropped.
            ring._words[SEQUENCE] = ring._words[_SINCE] = self.sequence
        use(ring)
        self.close()

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
