"""Which images of a stream are sent: all, Y of every N ids, or Y in a row F times a second."""

from __future__ import annotations

from typing import Protocol

from stddaq.config.live_streams import LiveStreamSetting


class Schedule(Protocol):
    """Asked once for every image, in the order of the stream."""

    def takes(self, image_id: int, now: float) -> bool:
        """Whether to send image `image_id`, which has come at `now` (seconds, monotonic)."""
        ...


class Forward:
    """Every image."""

    def takes(self, image_id: int, now: float) -> bool:
        """See `Schedule`."""
        del image_id, now
        return True


class Batch:
    """Of every `every` consecutive ids the first `count`, whatever is missing between them."""

    def __init__(self, count: int, every: int) -> None:
        self._count, self._every = count, every

    def takes(self, image_id: int, now: float) -> bool:
        """See `Schedule`."""
        del now
        return image_id % self._every < self._count


class Periodic:
    """`count` images in a row as they come, `frequency` times a second; all when more do not come."""

    def __init__(self, count: int, frequency: float) -> None:
        self._count, self._period = count, 1 / frequency
        self._due = float("-inf")
        self._left = 0

    def takes(self, image_id: int, now: float) -> bool:
        """See `Schedule`."""
        del image_id
        if self._left == 0 and now >= self._due:
            self._left = self._count
            # On a grid, so that the frequency is kept however the images fall; begun anew after a pause.
            self._due += self._period
            if self._due <= now:
                self._due = now + self._period
        if self._left:
            self._left -= 1
            return True
        return False


def schedule_of(setting: LiveStreamSetting) -> Schedule:
    """The schedule that a setting asks for."""
    if setting.type == "batch":
        return Batch(*setting.config)
    if setting.type == "periodic":
        return Periodic(*setting.config)
    return Forward()
