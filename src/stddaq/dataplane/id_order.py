"""Late ids and restarts: the place of an image id that does not continue its stream.

Third-party sources may announce images slightly out of order. A step back is a late id until there is
evidence of a restart: it is far, it leads to the first id, or several ids in order follow. The sources of
stddaq publish in order, so that each of their steps back is a restart.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

# An id that is further behind the newest one is not late but belongs to a restart.
LATE_IDS = 16
# This many ids in order, which arrived before or are below the first, are a restart.
N_EVIDENCE = 4


class Place(Enum):
    """The place of an id that does not continue the stream."""

    FIRST = "first"
    GAP = "gap"
    LATE = "late"
    REPEATED = "repeated"
    RESTART = "restart"


class IdOrder:
    """The order of the ids of one stream; no I/O.

    Attributes:
        first_id: where the ids of this epoch started; -1 before the first image.
        next_id: the id that continues the stream; -1 before the first image.
    """

    __slots__ = ("_front", "_missing", "_run_length", "_run_next", "first_id", "next_id")

    def __init__(self) -> None:
        self.first_id = self.next_id = -1
        self._missing: deque[int] = deque(maxlen=LATE_IDS)
        # The ids in order that may turn out to be a restart, and `next_id` when they arrived.
        self._run_next, self._run_length, self._front = -1, 0, -1

    def place(self, image_id: int, *, in_order: bool) -> Place:
        """Add an id that is not `next_id`, which the caller counts up. Return its place.

        `in_order`: whether its source publishes in order.
        """
        if self.next_id < 0:
            self._begin(image_id, image_id)
            return Place.FIRST
        if image_id >= self.next_id:
            self._missing.extend(range(max(self.next_id, image_id - LATE_IDS), image_id))
            self.next_id = image_id + 1
            return Place.GAP
        if self.is_restart(image_id, in_order=in_order):
            follows = image_id == self._run_next
            self._begin(image_id - self._run_length if follows else image_id, image_id)
            return Place.RESTART
        if image_id in self._missing:
            self._missing.remove(image_id)
            return Place.LATE
        self._run_length = self._length_of_run(image_id)
        self._run_next, self._front = image_id + 1, self.next_id
        return Place.REPEATED if image_id > self.first_id else Place.LATE

    def is_restart(self, image_id: int, *, in_order: bool) -> bool:
        """Return whether the ids restart with this one."""
        if image_id >= self.next_id or self.next_id < 0:
            return False
        is_far = self.next_id - 1 - image_id > LATE_IDS
        return (
            in_order
            or is_far
            or image_id == self.first_id
            or (image_id not in self._missing and self._length_of_run(image_id) >= N_EVIDENCE)
        )

    def _length_of_run(self, image_id: int) -> int:
        continues = image_id == self._run_next and self._front == self.next_id
        return self._run_length + 1 if continues else 1

    def _begin(self, first_id: int, image_id: int) -> None:
        self.first_id, self.next_id = first_id, image_id + 1
        self._missing.clear()
        self._run_next, self._run_length, self._front = -1, 0, -1
