"""The account of a run, exact to the image: what was recorded, damaged, lost, skipped.

The driver notes every image as it goes by (`note` is on the path of an image); the writers' own counts come
at the end. The key names are those of the driver's last result and of the master file's account.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence

from stddaq.wire.std_daq import image_metadata_pb2 as pb


class RunAccount:
    """Which images one run has seen, as ranges of consecutive ids in order of arrival."""

    def __init__(self) -> None:
        self._first = array("Q")
        self._last = array("Q")
        self._sequence = 0
        self._knows_sequence = False
        self.due = -1
        """The id that continues the stream; any other is a gap or a restart."""
        self.count = 0
        self.restarts = 0
        self.n_skipped = 0
        """How many ids are missing between recorded ones."""
        self.damaged_ids = array("Q")
        self.n_dropped = 0
        self.n_malformed = 0
        self.n_before_start_id = 0

    def receive_number(self, sequence: int) -> None:
        """Take the running number of a message, recorded or not, into account; 0: the stream has none."""
        if sequence:
            if self._knows_sequence and sequence > self._sequence + 1:
                self.n_dropped += sequence - self._sequence - 1
            self._sequence, self._knows_sequence = sequence, True

    def receive_malformed(self) -> None:
        """Count a message that is not the metadata of an image."""
        self.n_malformed += 1
        self._sequence += 1  # It was received; should it have had a number, this was it.

    def record(self, metadata: pb.ImageMetadata) -> None:
        """Take the next recorded image into account."""
        image_id = metadata.image_id
        if image_id != self.due:
            self._begin_range(image_id)
        self.due = image_id + 1
        self._last[-1] = image_id
        self.count += 1
        if metadata.status != pb.good_image:
            self.damaged_ids.append(image_id)

    def _begin_range(self, image_id: int) -> None:
        if self.count and image_id < self.due:
            self.restarts += 1
        elif self.count:
            self.n_skipped += image_id - self.due
        self._first.append(image_id)
        self._last.append(image_id)

    @property
    def ranges(self) -> Iterator[tuple[int, int]]:
        """(first, last) of consecutive ids, in order of arrival."""
        return zip(self._first, self._last, strict=True)

    def skipped(self) -> Iterator[tuple[int, int]]:
        """Ranges (first, last) of ids that are missing between recorded ones, restarts apart."""
        for last, following in zip(self._last, self._first[1:], strict=False):
            if following > last + 1:
                yield last + 1, following - 1

    def dropped(self) -> int | None:
        """Return how many announced images did not arrive; None when the source does not number them."""
        return self.n_dropped if self._knows_sequence else None

    def ids_of(self, writer: int, number_of_writers: int, by_arrival: bool) -> Iterator[int]:
        """The ids that went to `writer`, in order."""
        if by_arrival:
            for position, image_id in enumerate(self._ids()):
                if position % number_of_writers == writer:
                    yield image_id
            return
        for first, last in self.ranges:
            yield from range(first + (writer - first) % number_of_writers, last + 1, number_of_writers)

    def _ids(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def result(
        self, overwritten: Sequence[int], failed: Sequence[int], list_limit: int | None
    ) -> dict[str, object]:
        """The account as JSON values, given what the writers could not record.

        Lists are cut to `list_limit` entries, if any; `lists_truncated` says so. The counts are always exact.
        """
        lost = set(overwritten) | set(failed)
        damaged = [i for i in self.damaged_ids if i not in lost] if lost else self.damaged_ids
        skipped = list(itertools.islice(self.skipped(), None if list_limit is None else list_limit + 1))
        lists = (damaged, overwritten, failed, skipped)
        return {
            "count": self.count,
            "n_good": self.count - len(damaged) - len(overwritten) - len(failed),
            "n_damaged": len(damaged),
            "n_overwritten": len(overwritten),
            "n_failed": len(failed),
            "n_skipped": self.n_skipped,
            "n_dropped": self.dropped(),
            "n_malformed": self.n_malformed,
            "n_before_start_id": self.n_before_start_id,
            "n_restarts": self.restarts,
            "first_id": self._first[0] if self.count else None,
            "last_id": self._last[-1] if self.count else None,
            "damaged_ids": list(damaged[:list_limit]),
            "overwritten_ids": list(overwritten[:list_limit]),
            "failed_ids": list(failed[:list_limit]),
            "skipped": [list(ids) for ids in skipped[:list_limit]],
            "lists_truncated": list_limit is not None and any(len(ids) > list_limit for ids in lists),
        }
