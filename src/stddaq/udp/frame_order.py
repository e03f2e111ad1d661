"""The order of the frames of a module: is a frame next, late, or the first after a restart? No I/O.

A frame of an id that has left, or is lower than one that has, is late, unless the ids restart: when they jump
back by more than the ring, when the epoch in the header (`scan_id`) changes, or when all packets of a lower
frame arrive, one after the other, that is not the frame which left. Detectors without an epoch in the header
count from 1 in every acquisition, which may be shorter than the ring.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from stddaq.udp.frame_ring import FRAME_SLOTS

# Late packets follow their frame sooner. The same frame after such a pause belongs to another acquisition.
PAUSE_S = 0.1


class Identity(NamedTuple):
    """What the header of a packet says about its frame.

    `stamp` is equal in all packets of a frame, and differs between acquisitions as a rule.
    """

    key: int
    frame_id: int
    epoch: int
    stamp: int


class Place(Enum):
    """The place of a frame that is not open."""

    NEXT = "next"
    LATE = "late"
    RESTART = "restart"
    UNCERTAIN = "uncertain"
    """The first of a restart if all its packets arrive, else late."""


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
        self._last_id = -1
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
            return Place.LATE if is_same else Place.RESTART
        if frame.frame_id > self._last_id:
            return Place.NEXT
        if frame.frame_id < max(self._last_id, newest_id) - FRAME_SLOTS:
            return Place.UNCERTAIN if is_same and self._has_evidence else Place.RESTART
        if is_same or (has_left and self._has_epochs) or not self._has_evidence:
            return Place.LATE
        return Place.UNCERTAIN

    def leave(self, frame: Identity) -> None:
        """Count a frame as announced."""
        slot = frame.frame_id % FRAME_SLOTS
        self._keys[slot], self._stamps[slot] = frame.key, frame.stamp
        self._last_id = max(self._last_id, frame.frame_id)

    def restart(self, epoch: int) -> None:
        """Restart the ids with a frame of `epoch`."""
        self._epoch, self._last_id = epoch, -1
        self.n_restarts += 1
