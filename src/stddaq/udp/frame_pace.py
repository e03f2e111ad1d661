"""How fast frames and their packets arrive: when the next one is expected. No I/O."""

from __future__ import annotations

UNKNOWN_PERIOD_S = 0.1
# The packets of one frame are not further apart, however slow the detector is.
LONGEST_PERIOD_S = 0.2
# A frame that is complete earlier than expected does not show when it was. So the next one is expected a
# little earlier.
INTERVAL_DECAY = 0.95


class FramePace:
    """When frames were opened, and what that says about the next ones. All times in s (monotonic).

    Attributes:
        period: between frames.
        interval: between the packets of a frame.
        opened_at: when the last frame was opened.
        packet_at: when the last packet arrived.
    """

    __slots__ = ("interval", "opened_at", "packet_at", "period")

    def __init__(self) -> None:
        self.period, self.interval = UNKNOWN_PERIOD_S, 0.0
        self.opened_at = self.packet_at = float("-inf")

    def open(self, now: float) -> None:
        """Count a frame that continues those before."""
        # Frames that arrive together do not show the period; a pause is forgotten after a few frames.
        since, self.opened_at = now - self.opened_at, now
        self.period = min(max(since, self.period / 2), LONGEST_PERIOD_S)

    def announce(self) -> None:
        """Count a frame that has left."""
        # The interval is measured again when a frame is waited for.
        self.interval *= INTERVAL_DECAY

    def complete_in(self, last_at: float, n_received: int, n_missing: int) -> float:
        """Return the seconds until the last frame should be complete."""
        if last_at > self.opened_at:
            self.interval = (last_at - self.opened_at) / n_received
        return n_missing * self.interval
