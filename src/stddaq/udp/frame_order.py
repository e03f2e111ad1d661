"""The order of the frames of a module: is a frame next, late, or the first after a restart? No I/O.

A frame of an id that has left, or is lower than one that has, is late, unless the ids restart. Evidence of a
restart are all packets of a frame, one after the other, that is not the frame which left; or the frame that
follows it, if the ids jumped back by more than the ring, or the epoch in the header (`scan_id`) changed.
Detectors without an epoch in the header count from 1 in every acquisition, which may be shorter than the
ring.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from stddaq.udp.frame_ring import FRAME_SLOTS

# Late packets follow their frame sooner. The same frame after such a pause belongs to another acquisition.
PAUSE_S = 0.1
# The slot of the next frame is opened ahead of it only if the ids differ by at most this.
LONGEST_STEP = 8


class Identity(NamedTuple):
    """What the header of a packet says about its frame.

    `stamp` is equal in all packets of a frame, and differs between acquisitions as a rule. Packets with other
    tags do not belong to the frame.
    """

    key: int
    frame_id: int
    epoch: int
    stamp: int
    tag: int


class Place(Enum):
    """The place of a frame that is not open."""

    NEXT = "next"
    LATE = "late"
    NEAR = "near"
    """The first of a restart if all its packets arrive, one after the other, else late."""
    FAR = "far"
    """The first of a restart, unless the ids continue where they were."""


class FrameOrder:
    """What has left, and which ids may still leave.

    Attributes:
        n_restarts: restarts of the ids.
    """

    def __init__(self, n_packets: int, *, has_epochs: bool) -> None:
        """`n_packets`: of one frame."""
        self.n_restarts = 0
        self._has_evidence = n_packets > 1  # A single packet is none.
        self._has_epochs = has_epochs
        self._epoch: int | None = None
        self._last: Identity | None = None
        # The difference of the last two ids, and the smaller one of the last two differences.
        self._difference: int | None = None
        self._step = 1
        # By slot, what left last.
        self._keys = [-1] * FRAME_SLOTS
        self._stamps = [-1] * FRAME_SLOTS

    def place(self, frame: Identity, newest_id: int, pause: float) -> Place:
        """Return the place of a frame whose first packet has arrived.

        `newest_id`: the highest id of the open frames, or -1. `pause`: seconds since the packet before.
        """
        slot = frame.frame_id % FRAME_SLOTS
        has_left = self._keys[slot] == frame.key
        is_same = has_left and self._stamps[slot] == frame.stamp and pause < PAUSE_S
        if self._epoch is None:
            self._epoch = frame.epoch
        if frame.epoch != self._epoch:
            return Place.LATE if is_same else Place.FAR
        last_id = -1 if self._last is None else self._last.frame_id
        if frame.frame_id > last_id:
            return Place.NEXT
        if frame.frame_id < max(last_id, newest_id) - FRAME_SLOTS:
            return Place.NEAR if is_same else Place.FAR
        if is_same or (has_left and self._has_epochs) or not self._has_evidence:
            return Place.LATE
        return Place.NEAR

    def place_beside(self, opened: Identity, frame: Identity) -> Place:
        """Return the place of a frame whose id an open one has, which was not of a restart by its id."""
        is_of_other_acquisition = frame.key == opened.key and self._has_evidence
        return Place.NEAR if is_of_other_acquisition else Place.LATE

    @property
    def next_id(self) -> int | None:
        """The id of the frame that follows the one that left last; None if it is not known.

        Nor if the steps are large: then few slots are in use.
        """
        if self._last is None or self._difference is None or self._difference > LONGEST_STEP:
            return None
        return self._last.frame_id + self._difference

    @property
    def steady_step(self) -> int | None:
        """The difference of the ids of the last three frames, if it is constant and small."""
        is_steady = self.next_id is not None and self._step == self._difference
        return self._step if is_steady else None

    def continues(self, frame: Identity) -> bool:
        """Return whether a frame follows the one that left last, as far as the steps are known."""
        return self._last is None or self._difference is None or self.follows(self._last, frame)

    def follows(self, before: Identity, frame: Identity) -> bool:
        """Return whether no frame is missing between two.

        A receiver of one of two sets of links has every second id. The ids of a Jungfrau have larger steps;
        its keys have none.
        """
        step = frame.frame_id - before.frame_id
        is_next = step <= self._step or frame.key == before.key + 1
        return step > 0 and is_next and frame.epoch == before.epoch

    def leave(self, frame: Identity) -> None:
        """Count a frame as announced."""
        slot = frame.frame_id % FRAME_SLOTS
        self._keys[slot], self._stamps[slot] = frame.key, frame.stamp
        if self._last is None:
            self._last = frame
        elif frame.frame_id > self._last.frame_id:
            difference = frame.frame_id - self._last.frame_id
            self._step, self._difference = min(difference, self._difference or difference), difference
            self._last = frame

    def restart(self, epoch: int) -> None:
        """Restart the ids with a frame of `epoch`."""
        self._epoch, self._last = epoch, None
        self.n_restarts += 1
