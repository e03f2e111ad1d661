"""Letting messages gather: one wake-up, one batch, for many images.

Waking a thread and its ZeroMQ I/O thread costs tens of microseconds, several times what an image costs, so
that a service that wakes for each image spends its time waking.
"""

from __future__ import annotations

# About so many messages are worth one wake-up ...
TARGET = 48
# ... but none waits for longer; at 40 kHz the pause is about a millisecond, 4 % of a ring of 1000 slots.
LONGEST_S = 0.005
SHORTEST_S = 0.0005


class Gathering:
    """How long to pause before the next look at a socket, from what the last looks have found."""

    def __init__(self) -> None:
        self._pause = SHORTEST_S

    def pause_after(self, n_messages: int) -> float:
        """Seconds to pause after a look that found `n_messages`; 0 when they come one by one."""
        if n_messages <= 1:
            self._pause = SHORTEST_S
            return 0.0
        self._pause = min(LONGEST_S, max(SHORTEST_S, self._pause * TARGET / n_messages))
        return self._pause
