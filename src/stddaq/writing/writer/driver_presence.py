"""Whether the driver of a writer's run is still connected. Has no socket; the loop reports the changes."""

from __future__ import annotations

import time
from collections.abc import Callable

# A driver that stays disconnected for this long does not return to its run: the writer closes the file.
DRIVER_ABSENCE_S = 1.0


class DriverPresence:
    """The state of the connection to the driver. A driver that has not connected yet is not absent."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lost_at: float | None = None

    def update(self, connected: bool) -> bool:
        """Note a change of the connection. Return whether the driver has reconnected after a loss."""
        reconnected = connected and self._lost_at is not None
        self._lost_at = None if connected else self._clock()
        return reconnected

    @property
    def is_lost(self) -> bool:
        """The connection is lost, no matter for how long."""
        return self._lost_at is not None

    @property
    def has_left(self) -> bool:
        """The connection has been lost for `DRIVER_ABSENCE_S`."""
        return self._lost_at is not None and self._clock() - self._lost_at >= DRIVER_ABSENCE_S
