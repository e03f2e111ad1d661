"""The stored images of a camera in the order of their ids, read ahead in the database."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from stddaq.client.buffer_index import BATCH_IDS, LARGE_BATCH_IDS, BufferIndex


@dataclass(slots=True)
class Found:
    """The next stored image.

    Attributes:
        image_id: its id, or that from which to search on if the time was over.
        value: of its key; None if there is no such image, or the time was over.
        n_skipped: ids before it whose keys have expired.
        is_end: no further id is in the set.
    """

    image_id: int
    value: bytes | None = None
    n_skipped: int = 0
    is_end: bool = False


class StoredImages:
    """Finds images one after the other. The database is asked once for many."""

    def __init__(self, index: BufferIndex) -> None:
        self._index = index
        self._ahead: deque[tuple[int, bytes | None]] = deque()
        self._next_id = -1

    def forget(self) -> None:
        """Forget what was read ahead."""
        self._ahead.clear()

    def find(self, first: int, last: int, deadline: float) -> Found:
        """Return the first image from `first` to `last`. Raise `ImageBufferUnreachableError`.

        Sets whose ids never expire may have millions without a key, hence the `deadline` (monotonic clock).
        """
        if first != self._next_id:
            self.forget()
        found, limit = Found(first), BATCH_IDS
        while True:
            if not self._ahead:
                if found.n_skipped and time.monotonic() > deadline:
                    return found
                if not self._read_ahead(found.image_id, last, limit):
                    found.is_end = True
                    return found
                limit = LARGE_BATCH_IDS
            image_id, value = self._ahead[0]
            if image_id > last:
                found.is_end = True
                return found
            self._ahead.popleft()
            self._next_id = image_id + 1
            if value is not None:
                found.image_id, found.value = image_id, value
                return found
            found.n_skipped += 1
            found.image_id = self._next_id

    def _read_ahead(self, first: int, last: int, limit: int) -> bool:
        if first > last:
            return False
        ids = self._index.ids(first, last, limit)
        self._ahead.extend(zip(ids, self._index.values(ids), strict=True))
        return bool(ids)
