"""Images taken out of their slots one by one, and passed on in order with the verdict over each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.ring_reader import HeldImages, RingReader

T = TypeVar("T")


class TakenImages(Generic[T]):
    """What a service takes of each image, held until it is certain whether its slot held it throughout.

    An image of a source with a cursor is passed on at once, unless others wait before it.
    """

    def __init__(
        self,
        reader: RingReader,
        max_held: int,
        copy: Callable[[ImageMetadata], T],
        finish: Callable[[ImageMetadata, T, bool], None],
    ) -> None:
        """`copy` takes an image out of its slot; `finish` gets it, and whether it is overwritten.

        When `max_held` images wait, `take` waits for the first of them.
        """
        self._reader, self._max_held, self._copy, self._finish = reader, max_held, copy, finish
        self._held = HeldImages[tuple[ImageMetadata, T]](reader)

    def __len__(self) -> int:
        """Return how many images wait for their verdict."""
        return len(self._held)

    @property
    def due_in(self) -> float:
        """Seconds until the first image can be passed on; infinite when none waits."""
        return self._held.due_in

    def take(self, metadata: ImageMetadata) -> bool:
        """Take one image. Return False, without a copy, if it is overwritten already."""
        reader, held = self._reader, self._held
        has_cursor = reader.has_cursor_for(metadata)
        if not (reader.holds(metadata) if has_cursor else reader.expect(metadata)):
            return False
        if len(held) >= self._max_held:
            time.sleep(held.due_in)
            self.finish_judged()
        taken = self._copy(metadata)
        if not has_cursor:
            held.add((metadata, taken), [metadata], time.monotonic())
            return True
        is_overwritten = not reader.holds(metadata)
        if not reader.is_certain(metadata):
            held.add((metadata, taken), [metadata], time.monotonic(), [is_overwritten])
        elif held:
            held.add_judged((metadata, taken), [is_overwritten])
        else:
            self._finish(metadata, taken, is_overwritten)
        return True

    def finish_judged(self) -> None:
        """Pass on, in order, the images whose verdict is due."""
        if self._held:
            for (metadata, taken), (is_overwritten,) in self._held.release():
                self._finish(metadata, taken, is_overwritten)
