"""The thread that announces stored images in the database, in batches.

While the database cannot be reached, announcements wait here: the bytes are in the files already.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from stddaq.client.buffer_index import BufferIndex, ImageBufferUnreachableError
from stddaq.daemon.log import event, logger
from stddaq.wire.image_buffer import IDS_PER_FILE, file_name, ids_key, image_key

BATCH = 1000
# About 100 bytes each.
MAX_WAITING = 1_000_000
RETRY_S = 0.5

Announcement = tuple[int, bytes]
"""An id and the value of its key."""


class Announcer:
    """Announces images in their order, from `start` on.

    Attributes:
        n_announced: images that are in the database.
        n_replaced: of those, images that replaced another one of the same id.
        n_refused: images that were not announced because their id has an image (`keep_first`).
        n_dropped: images that were not announced because too many waited.
    """

    def __init__(
        self,
        index: BufferIndex,
        expire_s: int,
        *,
        keep_first: bool = False,
    ) -> None:
        """Keys expire after `expire_s`."""
        self._index, self._expire_s, self._keep_first = index, expire_s, keep_first
        self._waiting: deque[Announcement] = deque()
        self._news = threading.Condition()
        self._ends_at: float | None = None
        self._is_unreachable = False
        self.n_announced = self.n_replaced = self.n_refused = self.n_dropped = 0
        self._thread: threading.Thread | None = None

    def start(self, attend: Callable[[], bool] = lambda: False, attend_period_s: float = 60.0) -> None:
        """Run the thread, which calls `attend` at once, and once per `attend_period_s`.

        If `attend` returns True, it is called again after the next announcements.
        """
        arguments = (attend, attend_period_s)
        self._thread = threading.Thread(target=self._serve, args=arguments, name="announcer", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Images that are stored and not announced yet."""
        return len(self._waiting)

    def waiting_files(self) -> set[str]:
        """Return the names of the files of the images that wait."""
        first_ids = {image_id // IDS_PER_FILE * IDS_PER_FILE for image_id, _ in self._waiting.copy()}
        return set(map(file_name, first_ids))

    def add(self, image_id: int, value: bytes) -> None:
        """Announce an image, later."""
        if len(self._waiting) >= MAX_WAITING:
            self.n_dropped += 1
            return
        self._waiting.append((image_id, value))
        with self._news:
            self._news.notify()

    def close(self, timeout: float) -> None:
        """Announce what waits, for up to `timeout` seconds."""
        with self._news:
            self._ends_at = time.monotonic() + timeout
            self._news.notify()
        if self._thread is not None:
            self._thread.join(timeout)
        # The thread may still announce some.
        if waiting := self._waiting.copy():
            first, last = waiting[0][0], waiting[-1][0]
            logger.error("%d images were not announced, ids %d to %d", len(waiting), first, last)
            self.n_dropped += len(waiting)

    def _serve(self, attend: Callable[[], bool], attend_period_s: float) -> None:
        attend_at = time.monotonic()
        while True:
            with self._news:
                if not self._waiting and self._ends_at is None:
                    self._news.wait(max(0.0, attend_at - time.monotonic()))
                ends_at = self._ends_at
            if ends_at is not None and (not self._waiting or time.monotonic() >= ends_at):
                return
            self._announce_next()
            if ends_at is None and time.monotonic() >= attend_at:
                is_more = attend()
                attend_at = time.monotonic() + (0.0 if is_more else attend_period_s)

    def _announce_next(self) -> None:
        """Announce a batch. On failure it stays, and this waits a moment."""
        batch = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
        if not batch:
            return
        try:
            self._announce(batch)
        except ImageBufferUnreachableError as error:
            if not self._is_unreachable:
                logger.error("stored images wait to be announced: %s", error)
            self._is_unreachable = True
            with self._news:
                if self._ends_at is None:
                    self._news.wait_for(lambda: self._ends_at is not None, RETRY_S)
                else:
                    time.sleep(RETRY_S / 10)
            return
        if self._is_unreachable:
            self._is_unreachable = False
            event("the database is reachable again")
        for _ in batch:
            self._waiting.popleft()

    def _announce(self, batch: Sequence[Announcement]) -> None:
        index, ids = self._index, [image_id for image_id, _ in batch]
        present = dict(zip(ids, index.values(ids), strict=True))
        n_replaced = n_refused = 0
        with index.reachable():
            pipeline = index.redis.pipeline(transaction=False)
            for image_id, value in batch:
                before = present[image_id]
                # The same value: this batch is being repeated.
                if before is not None and before != value:
                    if self._keep_first:
                        n_refused += 1
                        continue
                    n_replaced += 1
                present[image_id] = value
                key = image_key(index.camera, image_id)
                pipeline.set(key, value)
                pipeline.expire(key, self._expire_s)
                pipeline.zadd(ids_key(index.camera), {str(image_id): image_id})
            pipeline.execute()
        if (n_replaced and not self.n_replaced) or (n_refused and not self.n_refused):
            what = "replace" if n_replaced else "do not replace"
            logger.warning("image ids come again: new images %s stored ones, from id %d on", what, ids[0])
        self.n_replaced += n_replaced
        self.n_refused += n_refused
        self.n_announced += len(batch) - n_refused
