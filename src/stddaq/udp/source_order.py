"""The ids of frames of a std_daq receiver (C++): which are next, late, or the first of a restart? No I/O.

Such a receiver sends a frame again when one of its packets arrives late, and sends frames with the ids that
it finds in damaged headers. An id that steps back, or skips many ids, waits for evidence: the frames that
follow it. It is late if the ids continue where they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from stddaq.dataplane.id_order import LATE_IDS, N_EVIDENCE
from stddaq.udp.frame_message import ID_BYTES

# Frames, the doubtful one included, that show that its id is right. Frames that are sent again have ids near
# the newest; for those it is `N_EVIDENCE`.
N_FAR_EVIDENCE = 2


class Place(Enum):
    """The place of a frame."""

    NEXT = "next"
    REPEATED = "repeated"
    DOUBTFUL = "doubtful"
    """It waits among the doubtful frames."""
    CONFIRMED = "confirmed"
    """It shows that the doubtful frames, to which it was added, are right."""


class DoubtfulFrames:
    """Frames of one source whose ids do not continue those before; they continue each other.

    Attributes:
        messages: of the frames.
        since: when the first one arrived, s (monotonic).
        n_late: frames that were discarded.
    """

    __slots__ = ("_first_id", "_last_id", "_step", "messages", "n_late", "since")

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.since, self.n_late = 0.0, 0
        self._first_id = self._last_id = -1
        # The last difference of ids that was larger than usual.
        self._step = 0

    def place(self, message: bytes, image_id: int, first_id: int, last_id: int, now: float) -> Place:
        """Return the place of a frame, given the first and the last id of its source; add it if doubtful."""
        longest = max(LATE_IDS, 2 * self._step)
        follows = bool(self.messages) and self._continues(image_id, last_id, longest)
        if image_id == last_id and not follows:
            return Place.REPEATED
        if image_id > last_id:
            step = image_id - last_id
            # A single frame before says nothing about the steps, which a Jungfrau's ids may have.
            if step <= longest or first_id == last_id:
                self.discard()
                self._step = step
                return Place.NEXT
        if not follows:
            self.discard()
            self.since, self._first_id = now, image_id
        self.messages.append(message)
        self._last_id = image_id
        return Place.CONFIRMED if len(self.messages) >= self._needed(first_id, last_id) else Place.DOUBTFUL

    def _continues(self, image_id: int, last_id: int, longest: int) -> bool:
        """Return whether a frame follows the doubtful ones."""
        step = image_id - self._last_id
        return step > 0 and (self._last_id > last_id or (step <= longest and image_id <= last_id))

    def _needed(self, first_id: int, last_id: int) -> int:
        is_near = first_id < self._first_id < last_id and last_id - self._first_id <= LATE_IDS
        return N_EVIDENCE if is_near else N_FAR_EVIDENCE

    def accept(self, last_id: int) -> list[bytes]:
        """Return the frames, which are right, and forget them."""
        messages, self.messages = self.messages, []
        self._step = max(0, self._last_id - last_id)
        return messages

    def ids(self) -> Iterator[int]:
        """Return the ids of the frames."""
        return (int.from_bytes(message[:ID_BYTES], "little") for message in self.messages)

    def discard(self) -> None:
        """Count the frames as late."""
        self.n_late += len(self.messages)
        self.messages = []
