"""The account of a run, exact to the image: recorded, damaged, skipped, dropped.

The distributor records every image that it forwards (`record` is on the path of an image); the numbers that
only writers know are added at the end. The keys are those of the driver's last result and of the master
file's account.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence

from stddaq.dataplane.id_order import Place
from stddaq.dataplane.stream_counts import StreamCounts
from stddaq.wire.std_daq import image_metadata_pb2 as pb


class RunAccount(StreamCounts):
    """The images of one run, as ranges of consecutive ids in order of arrival.

    Every message is counted by its running number. Ids are counted only of images that are recorded:
    `n_images`, `n_skipped` and `n_restarts` are those of the run.

    Attributes:
        epoch: how often an id was not above the one before it, be it a restart or a late id. Files order
            images by (epoch, id), so that the order is that of arrival and late ids move no image.
        damaged_ids: recorded images whose status is not good.
        n_before_start_id: images that are not recorded because of `start_id`.
        first_at, last_at: when the first and the last image were recorded, by `time.monotonic`.
    """

    __slots__ = (
        "_first",
        "_following",
        "_is_ordered",
        "_last",
        "_restarts",
        "damaged_ids",
        "epoch",
        "first_at",
        "last_at",
        "n_before_start_id",
    )

    def __init__(self) -> None:
        super().__init__()
        self._first = array("Q")
        self._last = array("Q")
        # The id that extends the last range, and the ranges with which the ids restarted.
        self._following = -1
        self._restarts = array("Q")
        self._is_ordered = True
        self.epoch = 0
        self.damaged_ids = array("Q")
        self.n_before_start_id = 0
        self.first_at = self.last_at = 0.0

    def record(self, metadata: pb.ImageMetadata) -> None:
        """Count the next recorded image."""
        image_id = metadata.image_id
        if image_id == self._following:
            self._following = image_id + 1
            self._last[-1] = image_id
        else:
            self._begin_range(image_id, in_order=metadata.sequence != 0)
        self.n_images += 1
        if metadata.status != pb.good_image:
            self.damaged_ids.append(image_id)

    def is_restart(self, image_id: int, *, in_order: bool) -> bool:
        self._catch_up()
        return super().is_restart(image_id, in_order=in_order)

    def _catch_up(self) -> None:
        # `record` counts `next_id` no further while the ids continue: each image would pay for it.
        self.next_id = max(self.next_id, self._following)

    def _begin_range(self, image_id: int, *, in_order: bool) -> None:
        self._catch_up()
        if self._last and image_id <= self._last[-1]:
            self.epoch += 1
        if image_id == self.next_id:  # After a late one.
            self.next_id += 1
        else:
            place = self._place(image_id, in_order=in_order)
            self._is_ordered &= place not in (Place.LATE, Place.REPEATED)
            if place is Place.RESTART:
                self._restarts.append(len(self._first))
        self._first.append(image_id)
        self._last.append(image_id)
        self._following = self.next_id if image_id + 1 == self.next_id else -1

    @property
    def first_recorded_id(self) -> int | None:
        """The id of the first image of the run; None before it."""
        return self._first[0] if self._first else None

    @property
    def ranges(self) -> Iterator[tuple[int, int]]:
        """(first, last) of consecutive ids, in order of arrival."""
        return zip(self._first, self._last, strict=True)

    def skipped(self) -> Iterator[tuple[int, int]]:
        """Return the ranges (first, last) of ids that are missing between two restarts."""
        if self._is_ordered:
            for last, following in zip(self._last, self._first[1:], strict=False):
                if following > last + 1:
                    yield last + 1, following - 1
            return
        ranges = list(self.ranges)
        for start, end in itertools.pairwise((0, *self._restarts, len(ranges))):
            # Late ids below the first one of the stream do not make those between them skipped.
            newest = ranges[start][0] - 1 if ranges else 0
            for first, last in sorted(ranges[start:end]):
                if first > newest + 1:
                    yield newest + 1, first - 1
                newest = max(newest, last)

    def ids_of(self, writer: int, number_of_writers: int, by_arrival: bool) -> Iterator[int]:
        """Return the ids that were forwarded to `writer`, in order."""
        if by_arrival:
            return itertools.islice(self._ids(), writer, None, number_of_writers)
        return itertools.chain.from_iterable(
            range(first + (writer - first) % number_of_writers, last + 1, number_of_writers)
            for first, last in self.ranges
        )

    def _ids(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def _damaged_with_pixels(self, without_pixels: Sequence[int]) -> Sequence[int]:
        """Return the damaged ids, without those of images that are overwritten or failed.

        An id that was recorded several times may be damaged once and overwritten another time. It is unknown
        here which of its images was overwritten, so as many as possible count as bad, and no bad image counts
        as good.
        """
        common = set(self.damaged_ids).intersection(without_pixels) if without_pixels else set()
        if not common:
            return self.damaged_ids
        n_bad = Counter(image_id for image_id in (*self.damaged_ids, *without_pixels) if image_id in common)
        n_both = n_bad - self._n_recorded(sorted(common))
        damaged = []
        for image_id in self.damaged_ids:
            if n_both[image_id] > 0:
                n_both[image_id] -= 1
            else:
                damaged.append(image_id)
        return damaged

    def _n_recorded(self, ids: Sequence[int]) -> Counter[int]:
        """Return how often each of `ids`, which are sorted, was recorded."""
        if not self.epoch:
            return Counter(ids)
        found: Counter[int] = Counter()
        for first, last in self.ranges:
            found.update(ids[bisect_left(ids, first) : bisect_right(ids, last)])
        return found

    def result(
        self, overwritten: Sequence[int], failed: Sequence[int], list_limit: int | None
    ) -> dict[str, object]:
        """Return the account as JSON values, given the ids that the writers could not record.

        Lists are cut to `list_limit` entries, if any; `lists_truncated` says so. The counts are always exact.
        """
        damaged = self._damaged_with_pixels([*overwritten, *failed])
        skipped = list(itertools.islice(self.skipped(), None if list_limit is None else list_limit + 1))
        lists = (damaged, overwritten, failed, skipped)
        return {
            "count": self.n_images,
            "n_good": self.n_images - len(damaged) - len(overwritten) - len(failed),
            "n_damaged": len(damaged),
            "n_overwritten": len(overwritten),
            "n_failed": len(failed),
            "n_skipped": self.n_skipped,
            "n_dropped": self.n_dropped if self.is_numbered else None,
            "n_malformed": self.n_malformed,
            "n_before_start_id": self.n_before_start_id,
            "n_restarts": self.n_restarts,
            "first_id": self.first_recorded_id,
            "last_id": self._last[-1] if self.n_images else None,
            "recording_s": round(max(0.0, self.last_at - self.first_at), 6),
            "damaged_ids": list(damaged[:list_limit]),
            "overwritten_ids": list(overwritten[:list_limit]),
            "failed_ids": list(failed[:list_limit]),
            "skipped": [list(ids) for ids in skipped[:list_limit]],
            "lists_truncated": list_limit is not None and any(len(ids) > list_limit for ids in lists),
        }
