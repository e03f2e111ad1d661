"""Reading a ring buffer while its source writes it: does a slot hold the image that was announced?

The verdict has two sources. A cursor beside the ring says at once what each slot holds. A ring without cursor
(a std_daq service in C++) is judged a hold time after the copy, from the ids that its source has published;
until then the copies wait in `HeldImages`, in order. So do images whose source has ended: a source without
cursor may continue on its ring. Writers, live streams and processing stages all use this module; forwarders
and users' services can.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from stddaq.config import DetectorConfig
from stddaq.daemon.log import logger
from stddaq.dataplane import endpoints
from stddaq.dataplane.metadata import ImageMetadata, MetadataRules, ring_suffix
from stddaq.dataplane.published_ids import PublishedIds
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.dataplane.ring_layout import CODE_SHIFT

T = TypeVar("T")

# Longest wait after the hold time for the source's own announcement of an image. It arrives late when this
# process was stopped, or its I/O thread had no processor.
REACH_LIMIT_S = 0.5
REACH_POLL_S = 0.005
# Images whose source has ended wait this long for announcements of a source without cursor.
ENDED_HOLD_S = 0.3


class RingReader:
    """One ring buffer and the ids that its source publishes.

    Attributes:
        ring: the ring buffer; `refresh` may replace it.
        rules: what the metadata of an image must say.
        published_ids: followed only for a source without cursor.
    """

    def __init__(self, config: DetectorConfig, suffix: str) -> None:
        """Attach to the ring of `suffix` (of a ring or a metadata stream).

        Raises `EndpointError` and `GeometryError`.
        """
        self._config, self.suffix = config, suffix
        self.rules = MetadataRules(config, suffix)
        stream = endpoints.metadata_stream(config.detector_name, ring_suffix(suffix))
        self.ring = RingBuffer(config, suffix)
        self._ring_code = self.ring.code
        self.published_ids = PublishedIds(stream, self.rules, config.n_slots, self._ring_code)
        self._refusal: str | None = None

    def has_cursor_for(self, metadata: ImageMetadata) -> bool:
        """Return whether the cursor gives the verdict on this image, so that `holds` may be called.

        A sequence number of this ring is judged by the cursor alone. A cursor without it, because this ring
        is younger than the announcement, belongs to another ring than the one that the source writes. A
        number of another ring was passed on by a std_daq stage (C++), which copies fields it does not know.
        """
        return metadata.sequence >> CODE_SHIFT == self._ring_code

    def has_cursor_for_all(self, sequences: Iterable[int]) -> bool:
        """Return whether the cursor gives the verdict on all images with these sequence numbers."""
        return {sequence >> CODE_SHIFT for sequence in sequences} == {self._ring_code}

    def holds(self, metadata: ImageMetadata) -> bool:
        """Return whether the slot holds the complete image. Thread-safe; call it before and after a copy."""
        return self.ring.holds(metadata.image_id, metadata.sequence)

    def is_certain(self, metadata: ImageMetadata) -> bool:
        """Return whether the cursor alone judges the images just copied, from this one on. 1 us.

        Otherwise their source has ended, and they are to be held: a source without cursor, which does not
        change the cursor, may have continued on its ring.
        """
        ring = self.ring
        if ring.has_source_of(metadata.sequence):
            return True
        if not ring.has_source():
            self.published_ids.follow()
        return False

    def is_there(self, metadata: ImageMetadata) -> bool:
        """Return whether an image of either kind is to be copied."""
        return self.holds(metadata) if self.has_cursor_for(metadata) else self.expect(metadata)

    def slots_left(self, metadata: ImageMetadata) -> int:
        """Return how many images the source can publish before it reaches the slot; needs the cursor."""
        return self._config.n_slots - (self.ring.sequence - metadata.sequence)

    def expect(self, metadata: ImageMetadata) -> bool:
        """Follow the published ids, because an image without cursor is about to be copied.

        Return False if it is not to be copied: no source has ever written to its slot, so this ring is not
        the one that the source writes.
        """
        self.published_ids.follow()
        self.published_ids.expect(metadata.image_id)
        self.ring.claim()
        return self.ring.is_written(metadata.image_id)

    def watch_source(self) -> None:
        """Follow the ids of a source without cursor from its first image on. 10 us.

        Following only once that image has arrived is too late if this process was stopped meanwhile. Call it
        before the first image, and once a second or less while no image is held.
        """
        if self.ring.has_source():
            self.published_ids.ignore()
        else:
            self.published_ids.follow()
            self.catch_up()

    def catch_up(self) -> None:
        """Add all ids that have been published so far."""
        self.published_ids.catch_up()
        if self.published_ids.has_unnumbered:
            self.ring.claim()

    def refuse(self, metadata: ImageMetadata) -> None:
        """Keep the reason why this image does not fit, for `log_refusal`."""
        self._refusal = self.rules.problem(metadata)

    def log_refusal(self) -> None:
        """Log the last reason why an image did not fit, if there was one since the last call."""
        if self._refusal:
            logger.warning("images do not fit the configuration: %s", self._refusal)
            self._refusal = None

    def refresh(self) -> None:
        """Attach to a new ring if this one was removed. Call it only while no image is being read."""
        self.ring.check_now(self._use)

    def _use(self, ring: RingBuffer) -> None:
        self.ring = ring

    def close(self) -> None:
        """Disconnect from the source and detach."""
        self.published_ids.close()
        self.ring.close()


@dataclass(slots=True)
class _Held(Generic[T]):
    """`overwritten`: which images are known to be. `images`: to judge the others; empty: all known."""

    item: T
    images: Sequence[ImageMetadata]
    overwritten: Sequence[bool]
    copied_at: float


class HeldImages(Generic[T]):
    """Copies of images, in order, until it is certain whether their slots still held them.

    An item is whatever the caller made of one or more images. The clock is an argument for tests.

    Attributes:
        read_until: the time until which the caller has read the messages that say what followed on the ring.
            Images whose source has ended are held until they are read.
    """

    def __init__(
        self,
        reader: RingReader,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reader, self._clock, self._sleep = reader, clock, sleep
        self._held: deque[_Held[T]] = deque()
        self.read_until = float("inf")

    def __len__(self) -> int:
        return len(self._held)

    def add_judged(self, item: T, verdict: Sequence[bool]) -> None:
        """Add a copy whose verdict is known; it waits only for those before it."""
        self._held.append(_Held(item, (), verdict, 0.0))

    def add(
        self,
        item: T,
        images: Sequence[ImageMetadata],
        copied_at: float,
        overwritten: Sequence[bool] | None = None,
    ) -> None:
        """Add a copy, made at `copied_at`, of images that are judged later.

        `overwritten`: which of them are known to be, from the cursor.
        """
        found = overwritten or [False] * len(images)
        if self._reader.ring.is_replaced():
            # The ids of a ring that was replaced before the copy was complete are those of the new ring.
            has_cursor_for = self._reader.has_cursor_for
            found = [known or not has_cursor_for(image) for known, image in zip(found, images, strict=True)]
        self._held.append(_Held(item, () if all(found) else images, found, copied_at))

    @property
    def due_in(self) -> float:
        """Seconds until the first item can be released; infinite when there is none."""
        if not self._held:
            return float("inf")
        first = self._held[0]
        if not first.images:
            return 0.0
        return max(0.0, first.copied_at + self._hold_of(first) - self._clock())

    def _hold_of(self, held: _Held[T]) -> float:
        if any(map(self._reader.has_cursor_for, held.images)):
            return ENDED_HOLD_S
        return self._reader.published_ids.hold

    def release(self, *, wait: bool = False) -> Iterator[tuple[T, Sequence[bool]]]:
        """Remove the items that are due, and yield each with its verdict: which images are overwritten.

        With `wait`, sleep until all of them are due.
        """
        caught_up_at = float("-inf")
        while self._held:
            held = self._held[0]
            verdict = held.overwritten
            if held.images:
                # What was published until the end of the hold time counts; the first id also shortens it.
                if caught_up_at < held.copied_at + self._hold_of(held):
                    self._reader.catch_up()
                    caught_up_at = self._clock()
                is_unread = self.read_until < held.copied_at + self._hold_of(held)
                if is_unread and not wait and not self._is_decided(held):
                    return
                due_in = self.due_in or self._unreached_for(held)
                if due_in:
                    if not wait:
                        return
                    self._sleep(due_in)
                    caught_up_at = float("-inf")
                    continue
                known = zip(held.overwritten, held.images, strict=True)
                verdict = [found or self._is_overwritten(metadata) for found, metadata in known]
            self._held.popleft()
            yield held.item, verdict

    def _unreached_for(self, held: _Held[T]) -> float:
        """Seconds to wait before the next look at ids that have not arrived; 0: judge the images now."""
        has_cursor_for, reached = self._reader.has_cursor_for, self._reader.published_ids.has_reached
        if all(has_cursor_for(metadata) or reached(metadata) for metadata in held.images):
            return 0.0
        limit = held.copied_at + self._hold_of(held) + REACH_LIMIT_S
        return REACH_POLL_S if self._clock() < limit else 0.0

    def _is_decided(self, held: _Held[T]) -> bool:
        """Return whether messages that wait cannot change the verdict."""
        reader = self._reader
        return all(
            not reader.has_cursor_for(metadata) or reader.ring.is_claimed(metadata.sequence)
            for metadata in held.images
        )

    def _is_overwritten(self, metadata: ImageMetadata) -> bool:
        if self._reader.has_cursor_for(metadata):
            return self._reader.ring.is_claimed(metadata.sequence)
        published_ids = self._reader.published_ids
        # Nothing is known of the slot of an image that the source's own announcements have not reached.
        is_unknown = not published_ids.has_reached(metadata)
        return published_ids.is_suspect(metadata) or is_unknown

    def drop(self) -> list[T]:
        """Remove all items, and return them."""
        items = [held.item for held in self._held]
        self._held.clear()
        return items
