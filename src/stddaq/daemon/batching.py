"""Letting messages gather: one wake-up, one batch, for many images.

Waking a thread and its ZeroMQ I/O thread costs tens of microseconds, several times what an image costs, so
that a service that wakes for each image spends its time waking.
"""

from __future__ import annotations

import time

from stddaq.config import DetectorConfig

# About so many messages are worth one wake-up ...
TARGET = 48
# ... but none waits for longer than this, ...
LONGEST_S = 0.05
# ... nor than the fastest source needs for this part of the ring buffer, should one begin just now.
RING_FRACTION = 0.2
FASTEST_SOURCE_HZ = 40_000
FASTEST_BYTES_PER_S = 20e9
# The first pause of a stream; each is at most twice the one before, so that a short burst is over soon.
FIRST_S = 0.0005
# Images that come more slowly are taken one by one.
SLOW_GAP_S = 0.005


class Gathering:
    """How long to pause before the next look at a socket, from what the last looks have found."""

    def __init__(self, target: int, longest_s: float) -> None:
        """A look should find `target` messages; no pause is longer than `longest_s` seconds."""
        self._target, self._longest = target, longest_s
        self._looked_at = time.monotonic()
        self._silent_since: float | None = None
        self._n_since_silence = 0
        self._gap = 2 * SLOW_GAP_S
        self._pause = 0.0

    @classmethod
    def of_driver(cls, config: DetectorConfig) -> Gathering:
        """For the driver: enough messages for each of its writers, which wake with it."""
        return cls(TARGET * max(1, config.number_of_writers), longest_pause(config))

    @classmethod
    def of_reader(cls, config: DetectorConfig) -> Gathering:
        """For any other service that reads the ring buffer."""
        return cls(TARGET, longest_pause(config))

    def pause_after(self, n_messages: int) -> float:
        """Seconds to pause after a look that found `n_messages`; 0 when images come one by one."""
        now = time.monotonic()
        if not n_messages:
            self._silent_since = self._silent_since or now
            return 0.0
        if self._silent_since is not None and now - self._silent_since > SLOW_GAP_S:
            if self._n_since_silence < self._target // 2:
                # A short burst, as a point of a scan, is over: pauses that its rate was worth would only
                # delay this one. Large ones are what the service before us has gathered.
                self._gap, self._pause = 2 * SLOW_GAP_S, 0.0
            self._n_since_silence = 0
        self._silent_since = None
        self._n_since_silence += n_messages
        gap, self._looked_at = (now - self._looked_at) / n_messages, now
        self._gap = (self._gap + min(gap, 2 * SLOW_GAP_S)) / 2
        if self._gap > SLOW_GAP_S:
            self._pause = 0.0
        else:
            self._pause = min(max(FIRST_S, 2 * self._pause), self._target * self._gap, self._longest)
        return self._pause


def longest_pause(config: DetectorConfig) -> float:
    """Seconds for which a reader of this configuration's ring buffer may look away."""
    slot_s = max(1 / FASTEST_SOURCE_HZ, config.image_bytes / FASTEST_BYTES_PER_S)
    return min(LONGEST_S, RING_FRACTION * config.n_slots * slot_s)
