"""Sorts the images of a camera, which arrive over several connections, by their ids.

`ReorderBuffer` holds an image while a predecessor may still arrive, and leaves out repeated and late ones. It
distinguishes them from the images of a camera whose ids restart. It has no sockets and touches no pixels.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

# No image waits longer than this for a missing predecessor. It waits this long only if images stop arriving:
# after every connection has delivered a later one, the missing one cannot arrive.
MAX_WAIT_S = 0.5
# This many images in a row with lower but ascending ids, newer by the camera's clock, are a restart.
N_EVIDENCE = 4
# If fewer arrive within this time, they are one only if they start at an id at which a camera starts.
MAX_DOUBT_S = 1.0
# After this many images in a row that are older by the camera's clock, the clock was set back.
N_OLDER = 100
# Number of gaps remembered to distinguish late images from repeated ones.
_N_GAPS = 64

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class Arrival(Generic[Content]):
    """One image, with its times: `taken_ns` by the camera's clock, `arrived` in s (monotonic).

    Each connection delivers its images in the order in which they were sent.
    """

    image_id: int
    taken_ns: int
    arrived: float
    connection: int
    content: Content


class ReorderBuffer(Generic[Content]):
    """The images that are in transit through the receiver.

    Attributes:
        n_skipped_ids: ids without an image that arrived in time.
        n_late: images that arrived after the release of a higher id.
        n_repeated: images whose id had arrived before.
        n_restarts: restarts of the ids.
    """

    def __init__(self, n_connections: int, max_held: int) -> None:
        """`max_held`: limit of the images held back together."""
        self.n_skipped_ids = self.n_late = self.n_repeated = self.n_restarts = 0
        self._n_connections, self._max_held = n_connections, max_held
        self._ready: list[Arrival[Content]] = []
        self._pending: dict[int, Arrival[Content]] = {}
        self._lowest: list[int] = []
        self._oldest: deque[Arrival[Content]] = deque()
        self._doubtful: list[Arrival[Content]] = []
        self._newest_ns = self._previous_epoch_ns = -1
        self._camera_was_lost = False
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._last: int | None = None
        self._first: int | None = None
        self._gaps: deque[range] = deque(maxlen=_N_GAPS)
        self._n_older = 0
        self._highest_of: dict[int, int] = {}

    def connection_lost(self, all_lost: bool) -> None:
        """Note the loss of a connection. After the loss of all of them, a lower id is a restart."""
        self._camera_was_lost = self._camera_was_lost or all_lost
        self._highest_of.clear()

    def add(self, arrival: Arrival[Content]) -> None:
        """Add an image that has arrived. Costs 0.5 us if it is the next one."""
        image_id = arrival.image_id
        if self._last is not None and image_id <= self._last:
            self._add_lower(arrival)
            return
        if arrival.taken_ns <= self._previous_epoch_ns:
            self.n_late += 1  # From the epoch before the restart.
            return
        if image_id in self._pending:
            self.n_repeated += 1
            return
        if self._doubtful:
            self._drop_doubtful()
        self._accept(arrival)

    def _accept(self, arrival: Arrival[Content]) -> None:
        self._camera_was_lost = False
        self._n_older = 0
        if arrival.taken_ns > self._newest_ns:
            self._newest_ns = arrival.taken_ns
        self._highest_of[arrival.connection] = arrival.image_id
        if not self._pending and self._last is not None and arrival.image_id == self._last + 1:
            self._last += 1
            self._ready.append(arrival)
            return
        self._pending[arrival.image_id] = arrival
        heapq.heappush(self._lowest, arrival.image_id)
        self._oldest.append(arrival)

    def _add_lower(self, arrival: Arrival[Content]) -> None:
        """Add an image whose id is not above the last released one: late, repeated, or after a restart."""
        if self._camera_was_lost:
            self._restart([arrival])
        elif arrival.taken_ns > self._newest_ns:
            if any(other.image_id == arrival.image_id for other in self._doubtful):
                self.n_repeated += 1
                return
            self._doubtful.append(arrival)
            if len(self._doubtful) >= N_EVIDENCE:
                self._judge_doubtful(is_restart=self._is_ascending())
        else:
            self._n_older += 1
            if self._n_older >= N_OLDER:
                self._restart([arrival])
            else:
                self._drop(arrival)

    def _is_ascending(self) -> bool:
        return self._doubtful[0].image_id < self._doubtful[-1].image_id

    def _judge_doubtful(self, is_restart: bool) -> None:
        if is_restart:
            self._restart(self._doubtful)
        else:
            self._drop_doubtful()

    def _drop_doubtful(self) -> None:
        for arrival in self._doubtful:
            self._drop(arrival)
        self._doubtful = []

    def _drop(self, arrival: Arrival[Content]) -> None:
        image_id = arrival.image_id
        if self._first is None or image_id < self._first or any(image_id in gap for gap in self._gaps):
            self.n_late += 1
        else:
            self.n_repeated += 1

    def _restart(self, arrivals: list[Arrival[Content]]) -> None:
        """Start an epoch with `arrivals`, after the release of all held images."""
        while self._lowest:
            self._release_lowest()
        self.n_restarts += 1
        # Images taken before this moment are late, unless the clock was set back.
        newer = all(arrival.taken_ns > self._newest_ns for arrival in arrivals)
        self._previous_epoch_ns = self._newest_ns if newer else -1
        self._newest_ns = -1
        self._start_epoch()
        self._doubtful = []
        for arrival in arrivals:
            self._accept(arrival)

    def take(self, now: float) -> list[Arrival[Content]]:
        """Return the images that are released at `now`, s (monotonic). Ids increase except at a restart."""
        if self._doubtful and now >= self._doubtful[0].arrived + MAX_DOUBT_S:
            starts = self._doubtful[0].image_id in (0, 1, self._first)
            is_one = len(self._doubtful) == 1
            self._judge_doubtful(is_restart=starts and (is_one or self._is_ascending()))
        while self._lowest and self._lowest_may_leave(now):
            self._release_lowest()
        ready, self._ready = self._ready, []
        return ready

    def _lowest_may_leave(self, now: float) -> bool:
        lowest = self._lowest[0]
        if lowest == (0 if self._last is None else self._last + 1):
            return True
        delivered = self._highest_of
        return (
            (len(delivered) >= self._n_connections and min(delivered.values()) >= lowest)
            or len(self._lowest) > self._max_held
            or now >= self._oldest[0].arrived + MAX_WAIT_S
        )

    def _release_lowest(self) -> None:
        image_id = heapq.heappop(self._lowest)
        if self._last is None:
            self._first = image_id
        elif image_id > self._last + 1:
            self._gaps.append(range(self._last + 1, image_id))
            self.n_skipped_ids += image_id - self._last - 1
        self._last = image_id
        self._ready.append(self._pending.pop(image_id))
        while self._oldest and self._oldest[0].image_id not in self._pending:
            self._oldest.popleft()

    @property
    def due_at(self) -> float | None:
        """Latest time for the next `take`, s (monotonic); None while no image is held."""
        times = [self._oldest[0].arrived + MAX_WAIT_S] if self._oldest else []
        if self._doubtful:
            times.append(self._doubtful[0].arrived + MAX_DOUBT_S)
        return min(times, default=None)

    @property
    def first_id(self) -> int | None:
        """Id with which the current epoch started."""
        return self._first

    @property
    def n_held(self) -> int:
        """Number of images held back."""
        return len(self._pending) + len(self._doubtful)
