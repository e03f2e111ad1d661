"""Pauses between two reads of a socket, so that one wake-up handles a batch of messages.

Waking a thread and its ZeroMQ I/O thread costs tens of microseconds, several times as much as an image. A
service that wakes for each image of a fast source spends most of its time on waking.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from stddaq.config import DetectorConfig

# One wake-up is worth about this many messages ...
TARGET = 48
# ... but no message waits longer than this for the driver, whose writers wake with it, ...
LONGEST_S = 0.01
# ... than this for writers, which receive what the driver has batched, ...
LONGEST_OF_WRITER_S = 0.001
# ... or than this for others, and for writers of a driver that batches nothing, ...
LONGEST_OF_READER_S = 0.004
# ... or than the fastest source needs for this part of the ring buffer, should one start now.
RING_FRACTION = 0.2
FASTEST_SOURCE_HZ = 40_000
FASTEST_BYTES_PER_S = 20e9
# First pause of a stream. Each pause is at most twice the last one, so a short burst is not delayed.
FIRST_S = 0.0005
# Images that arrive with larger gaps are handled one by one.
SLOW_GAP_S = 0.005


class Batching:
    """Chooses the pause before the next read of a socket by the number of messages in the last reads."""

    def __init__(self, target: int, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """A read should find `target` messages; no pause is longer than `longest_s` seconds."""
        self._target, self._longest, self._clock = target, longest_s, clock
        self._last_read_at = clock()
        self._quiet_since: float | None = None
        self._n_since_quiet = 0
        self._gap = 2 * SLOW_GAP_S
        self._pause = 0.0

    @classmethod
    def of_driver(cls, config: DetectorConfig) -> Batching:
        """Return the batching of the driver: enough messages for each of its writers, which wake with it."""
        return cls(TARGET * max(1, config.number_of_writers), longest_pause(config))

    @classmethod
    def of_writer(cls, config: DetectorConfig, *, driver_batches: bool) -> Batching:
        """Return the batching of a writer; whether its driver is one of stddaq, which batches."""
        batching = cls.of_reader(config)
        if driver_batches:
            batching._longest = min(batching._longest, LONGEST_OF_WRITER_S)
        return batching

    @classmethod
    def of_reader(cls, config: DetectorConfig) -> Batching:
        """Return the batching of processing stages."""
        return cls(TARGET, min(LONGEST_OF_READER_S, longest_pause(config)))

    def pause_after(self, n_messages: int) -> float:
        """Return the seconds to pause after a read of `n_messages`; 0 if images arrive one by one."""
        now = self._clock()
        if not n_messages:
            self._quiet_since = self._quiet_since or now
            return 0.0
        if self._quiet_since is not None and now - self._quiet_since > SLOW_GAP_S:
            if self._n_since_quiet < self._target // 2:
                # A short burst, such as a point of a scan, is over. Its rate would only delay the next burst.
                # After a larger burst the pauses stay: the sender may batch as well.
                self._gap, self._pause = 2 * SLOW_GAP_S, 0.0
            self._n_since_quiet = 0
        self._quiet_since = None
        self._n_since_quiet += n_messages
        gap, self._last_read_at = (now - self._last_read_at) / n_messages, now
        self._gap = (self._gap + min(gap, 2 * SLOW_GAP_S)) / 2
        if self._gap > SLOW_GAP_S:
            self._pause = 0.0
        else:
            self._pause = min(max(FIRST_S, 2 * self._pause), self._target * self._gap, self._longest)
        return self._pause


def longest_pause(config: DetectorConfig) -> float:
    """Return for how many seconds a reader of this configuration's ring buffer may pause."""
    slot_s = max(1 / FASTEST_SOURCE_HZ, config.image_bytes / FASTEST_BYTES_PER_S)
    return min(LONGEST_S, RING_FRACTION * config.n_slots * slot_s)
