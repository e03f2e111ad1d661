"""Images that the first server has published and this one does not announce, listed by id. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.stream_counts import MAX_DROPPED_AT_ONCE

# Ranges of ids in one line, and lines that wait.
MAX_RANGES = 20
MAX_WAITING = 1000


@dataclass(slots=True)
class _Range:
    first: int
    last: int
    why: str

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class LostImages:
    """What was lost; feed it every image that is complete or given up, in order.

    Attributes:
        n_lost: images of which nothing has arrived, from the numbers of the first server's ring.
    """

    def __init__(self, period: float) -> None:
        """Lines come at most once in `period` seconds."""
        self._period = period
        self._number = self._image_id = 0
        self._ranges: list[_Range] = []
        self._n_unlisted = 0
        self._due_at = float("-inf")
        self.n_lost = 0

    def follow(self, metadata: ImageMetadata, number: int, why: str = "") -> None:
        """Add an image: its message, its number (0: none), and why it is not announced."""
        image_id = metadata.image_id
        if number and self._number:
            n_lost = number - self._number - 1
            if 0 < n_lost <= MAX_DROPPED_AT_ONCE:
                self.n_lost += n_lost
                self._lose(metadata, number)
        self._number, self._image_id = number, image_id
        if why:
            self._add(image_id, image_id, why)

    def _lose(self, metadata: ImageMetadata, number: int) -> None:
        """List the images between the last one and this one."""
        image_id, forwarding, start = metadata.image_id, metadata.forwarding, self._number + 1
        if start <= forwarding.restart_number <= number:
            n_before, start = forwarding.restart_number - start, forwarding.restart_number
            if forwarding.id_before_restart - self._image_id == n_before:
                self._add_missing(self._image_id + 1, n_before)
            else:
                self._add(self._image_id, self._image_id, f"{n_before} images after it did not arrive")
            first = forwarding.restart_id
        else:
            first = self._image_id + 1
        # Ids in between of which some were not published, or that restart twice: which ones were is unknown.
        if image_id - first == number - start:
            self._add_missing(first, number - start)
        else:
            self._add(image_id, image_id, f"{number - start} images before it did not arrive")

    def _add_missing(self, first: int, n_images: int) -> None:
        if n_images:
            self._add(first, first + n_images - 1, "nothing arrived")

    def _add(self, first: int, last: int, why: str) -> None:
        newest = self._ranges[-1] if self._ranges else None
        if newest is not None and newest.why == why and newest.last + 1 == first:
            newest.last = last
        elif len(self._ranges) < MAX_WAITING:
            self._ranges.append(_Range(first, last, why))
        else:
            self._n_unlisted += last - first + 1

    def lines(self, now: float) -> Sequence[str]:
        """Return the lines that are due, by reason. An infinite `now` returns all."""
        if not self._ranges or now < self._due_at:
            return ()
        self._due_at = now + self._period
        by_reason: dict[str, list[_Range]] = {}
        for lost in self._ranges:
            by_reason.setdefault(lost.why, []).append(lost)
        lines = [
            f"images {', '.join(map(str, ranges[start : start + MAX_RANGES]))}: {why}"
            for why, ranges in by_reason.items()
            for start in range(0, len(ranges), MAX_RANGES)
        ]
        if self._n_unlisted:
            lines.append(f"{self._n_unlisted} more images are lost")
        self._ranges, self._n_unlisted = [], 0
        return lines
