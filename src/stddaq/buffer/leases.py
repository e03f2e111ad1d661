"""Leases of ids in the database: images of a replay that still runs are not removed.

A lease is a member `<first>-<last>-<any>` of a sorted set, its score the time until which it is valid, by the
clock of the database. The reader renews it, so that it ends with the reader.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from stddaq.client.buffer_index import BufferIndex
from stddaq.wire.image_buffer import replays_key

LEASE_S = 30.0
RENEWAL_S = 5.0
# A replay without any request for this long has ended, or was paused for too long.
IDLE_S = 3600.0


class Lease:
    """The lease of the one replay of a driver."""

    def __init__(self, index: BufferIndex, clock: Callable[[], float] = time.monotonic) -> None:
        self._index, self._clock = index, clock
        self._id = uuid.uuid4().hex
        self._range: tuple[int, int] | None = None
        self._member = ""
        self._used_at = self._renew_at = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether it holds no range."""
        return self._range is None

    def take(self, first: int, last: int) -> None:
        """Replace the present range, if any. Raise `ImageBufferUnreachableError`."""
        self._range, self._used_at = (first, last), self._clock()
        self._write()

    def use(self, first: int, last: int) -> None:
        """Note that the replay goes on from `first` to `last`. It is written with the next renewal."""
        if self._range is None:
            # It was paused for too long, or its first request did not say that it is a new one.
            self._renew_at = float("-inf")
        self._range, self._used_at = (first, last), self._clock()

    def attend(self) -> None:
        """Renew it when that is due. Raise `ImageBufferUnreachableError`."""
        now = self._clock()
        if self._range is None or now < self._renew_at:
            return
        if now > self._used_at + IDLE_S:
            self.end()
        else:
            self._write()

    def _write(self) -> None:
        index = self._index
        assert self._range is not None
        member = f"{self._range[0]}-{self._range[1]}-{self._id}"
        # Also after a failure, so that each attempt does not delay the reader.
        self._renew_at = self._clock() + RENEWAL_S
        now = index.time()
        with index.reachable():
            pipeline = index.redis.pipeline(transaction=True)
            if self._member and self._member != member:
                pipeline.zrem(replays_key(index.camera), self._member)
            pipeline.zadd(replays_key(index.camera), {member: now + LEASE_S})
            pipeline.zremrangebyscore(replays_key(index.camera), "-inf", now)
            pipeline.execute()
        self._member = member

    def end(self) -> None:
        """Give the lease back. Raise `ImageBufferUnreachableError`."""
        self._range, member, self._member = None, self._member, ""
        if member:
            with self._index.reachable():
                self._index.redis.zrem(replays_key(self._index.camera), member)


class Leases:
    """The leases of a reader, by the numbers of the drivers."""

    def __init__(self, index: BufferIndex) -> None:
        self._index = index
        self._leases: dict[int, Lease] = {}

    def of(self, driver: int) -> Lease:
        """Return the lease of a driver, which may be new."""
        return self._leases.setdefault(driver, Lease(self._index))

    def attend(self) -> None:
        """Renew those that are due, and forget those that have ended. Raise `ImageBufferUnreachableError`."""
        for driver, lease in list(self._leases.items()):
            lease.attend()
            if lease.has_ended:
                del self._leases[driver]

    def end(self) -> None:
        """Give all of them back. Raise `ImageBufferUnreachableError`."""
        for lease in self._leases.values():
            lease.end()


def replayed_ranges(index: BufferIndex) -> list[tuple[int, int]]:
    """Return the ranges of ids, inclusive, that are leased. Raise `ImageBufferUnreachableError`."""
    now = index.time()
    with index.reachable():
        members: Any = index.redis.zrangebyscore(replays_key(index.camera), now, "+inf")
    ranges: list[tuple[int, int]] = []
    for member in members:
        found = re.match(rb"(\d{1,16})-(\d{1,16})-", member)
        # An empty range: the last image was published, and no request has come after it.
        if found and int(found[1]) <= int(found[2]):
            ranges.append((int(found[1]), int(found[2])))
    return ranges
