"""A queue of images that are ready to be published: readable, and in an order that cannot change any more.

It is fed with what the raw files of one driver run show and what the driver counted, and does no I/O itself.
"""

from __future__ import annotations

import numpy as np

from stddaq.files.growing_run import Images, n_settled
from stddaq_ophyd.core.run_counts import RunCounts


class ReadyImages:
    """The next `n_wanted` images of a run after `before`, of which callers take the first ones as they come.

    Attributes:
        n_wanted: images that are wanted.
        n_ready: images that came into the queue so far.
        n_taken: images that were taken out of it.
        n_early: images before the first one that is wanted.
        n_missing: image ids that are missing from `first_id` on, between those that came into the queue.
        is_ordered: False when only closed files can show the order of the images still to come.
    """

    def __init__(
        self,
        before: RunCounts,
        n_wanted: int,
        *,
        may_restart: bool,
        first_id: int | None = None,
        last_id: int | None = None,
    ) -> None:
        """`may_restart`: ids may restart with the first image, as with a camera armed for each point.

        Images before `first_id` are left out. `last_id`: the id of an earlier image of the run.
        """
        self.before = before
        self.n_wanted, self._may_restart, self._first_id = n_wanted, may_restart, first_id
        self._last_id, self._queue_end = last_id, -1
        self._next_rows = list(before.rows)
        self._queue: Images | None = None
        self.n_ready = 0
        self.n_taken = 0
        self.n_early = self.n_missing = 0
        self.is_ordered = True

    @property
    def next_rows(self) -> tuple[int, ...]:
        """Return the first row of each raw file that is not in the queue yet."""
        return tuple(self._next_rows)

    @property
    def queue(self) -> Images:
        """Return the images that are in the queue, of which there must have been some."""
        assert self._queue is not None
        return self._queue

    @property
    def is_complete(self) -> bool:
        """Return whether all wanted images are, or were, in the queue."""
        return self.n_ready >= self.n_wanted

    def feed(self, images: Images | None, counts: RunCounts) -> None:
        """Add those of `images` that no other image can precede any more.

        `images` are the readable ones from `next_rows` on, None when their ids restart; the driver had sent
        `counts` before they were read.
        """
        if not self.is_ordered:
            return
        if images is None or not self._is_order_known(images, counts):
            self.is_ordered = False
            return
        images = images[: n_settled(images, self.next_rows, counts.rows)]
        n_early = self._count_early(images)
        images = images[: n_early + self.n_wanted - self.n_ready]
        for i in range(len(self._next_rows)):
            self._next_rows[i] += int((images.files == i).sum())
        self._append(images[n_early:])

    def feed_closed(self, images: Images) -> None:
        """Add `images` from `next_rows` on of closed files, whose order is final."""
        images = images[self._count_early(images) :]
        self._append(images[: self.n_wanted - self.n_ready])

    def take(self, n_images: int) -> Images:
        """Remove the first `n_images`, which must be in the queue, and return them."""
        queue = self.queue
        assert n_images <= len(queue)
        taken, self._queue = queue[:n_images], queue[n_images:]
        self.n_taken += n_images
        return taken

    def bad_until(self, after: RunCounts) -> dict[str, int]:
        """Return the number of bad images until `after` by kind, without ids skipped between early images."""
        bad = after.bad_since(self.before)
        if self._first_id is not None and "skipped" in bad:
            bad["skipped"] = min(bad["skipped"], self.n_missing)
        return {kind: n for kind, n in bad.items() if n > 0}

    def _append(self, images: Images) -> None:
        if self._first_id is not None and len(images):
            last_id = self._queue_end if self.n_ready else self._first_id - 1
            steps = np.diff(images.ids.astype(np.int64), prepend=last_id)
            self.n_missing += int(np.maximum(steps - 1, 0).sum())
            self._queue_end = int(images.ids[-1])
        self._queue = images if self._queue is None else images.after(self._queue)
        self.n_ready += len(images)

    def _count_early(self, images: Images) -> int:
        """Return how many of `images`, in order, come before the first wanted one, and count them."""
        if self._first_id is None or self.n_ready or not len(images):
            return 0
        ids = images.ids
        restarts = np.flatnonzero(ids[1:] <= ids[:-1]) + 1
        start = int(restarts[-1]) if len(restarts) else 0
        first = start + int(np.searchsorted(ids[start:], self._first_id))
        n_early = first if first < len(ids) and self._is_first(ids, first, start) else len(ids)
        self.n_early += n_early
        if n_early:
            self._last_id = int(ids[n_early - 1])
        return n_early

    def _is_first(self, ids: np.ndarray, index: int, start: int) -> bool:
        """Return whether the wanted images begin at `index`, in the epoch of `ids` that begins at `start`.

        A higher id than the first wanted one is that of an image of an earlier trigger, unless a lower id was
        before it: then the first image is missing.
        """
        if ids[index] == self._first_id or index > start:
            return True
        assert self._first_id is not None
        return start == 0 and self._last_id is not None and self._last_id < self._first_id

    def _is_order_known(self, images: Images, counts: RunCounts) -> bool:
        """Return whether the ids of the new images and of those in the queue show their order."""
        n_restarts = counts.n_restarts - self.before.n_restarts
        if not n_restarts:
            return True
        if not self._may_restart:
            return False
        found = images if self._queue is None else images.after(self._queue)
        if len(found) <= 1:
            return True
        # Images of two epochs would leave a gap that the driver did not count.
        n_gaps = int(found.ids.max() - found.ids.min()) + 1 - len(found)
        return n_restarts == 1 and n_gaps == counts.n_skipped - self.before.n_skipped
