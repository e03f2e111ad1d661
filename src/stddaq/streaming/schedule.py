"""Selects the images to send: all, Y of every N ids, or Y in a row F times a second."""

from __future__ import annotations

from typing import Protocol

from stddaq.config.live_streams import LiveStreamSetting


class Schedule(Protocol):
    """Selects images. Called once for every image, in the order of the stream."""

    def takes(self, image_id: int, now: float) -> bool:
        """Return whether to send image `image_id`, received at `now` (seconds, monotonic)."""
        ...


class Forward(Schedule):
    """Every image."""

    def takes(self, image_id: int, now: float) -> bool:
        del image_id, now
        return True


class Batch(Schedule):
    """The first `count` of every `every` consecutive ids, whether or not all of them arrive."""

    def __init__(self, count: int, every: int) -> None:
        self._count, self._every = count, every

    def takes(self, image_id: int, now: float) -> bool:
        del now
        return image_id % self._every < self._count


class Periodic(Schedule):
    """`count` images in a row, `frequency` times a second; every image of a slower source."""

    def __init__(self, count: int, frequency: float) -> None:
        self._count, self._period = count, 1 / frequency
        self._due = float("-inf")
        self._left = 0

    def takes(self, image_id: int, now: float) -> bool:
        del image_id
        if self._left == 0 and now >= self._due:
            self._left = self._count
            # A fixed grid of times keeps the frequency exact; a pause starts a new grid.
            self._due += self._period
            if self._due <= now:
                self._due = now + self._period
        if self._left:
            self._left -= 1
            return True
        return False


def schedule_of(setting: LiveStreamSetting) -> Schedule:
    """Return the schedule of a setting."""
    if setting.type == "batch":
        return Batch(*setting.config)
    if setting.type == "periodic":
        return Periodic(*setting.config)
    return Forward()
