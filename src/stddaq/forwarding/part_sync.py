"""Which images are complete: their parts come through several pairs, in any interleaving. No I/O.

Images leave in order. An incomplete one is given up when what it lacks cannot arrive any more: each pair
delivers in order, so a pair that has delivered a later part has lost the ones before. Nothing waits longer
than a timeout.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stddaq.dataplane.metadata import ID_MISSMATCH, ImageMetadata
from stddaq.forwarding.image_keys import AMBIGUOUS, REPEATED, ImageKeys

DEFAULT_TIMEOUT_S = 1.0
QUEUE_SIZE = 1000
# Slots that a receiver without marks may be writing ahead of its messages.
MARGIN = 50


@dataclass(slots=True)
class PartedImage:
    """An image of which at least one part has arrived.

    Attributes:
        metadata: of the part that arrived last.
        arrived: bit set of the parts that have arrived.
        marks: (part, mark) of the parts that have arrived.
        n_unnamed: parts of C++ peers, which do not say which one they are.
        n_unmarked: parts without mark, of C++ receivers.
        lacking: parts that did not arrive, once the image is given up; as many as are missing if unnamed.
    """

    key: int
    number: int
    since: float
    metadata: ImageMetadata
    arrived: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)
    n_unnamed: int = 0
    n_unmarked: int = 0
    lacking: Sequence[int] = ()

    @property
    def image_id(self) -> int:
        """Its id."""
        return self.metadata.image_id


class PartSync:
    """The images that are on their way; see the module.

    Attributes:
        n_parts_received: parts.
        n_repeated, n_late: parts that came twice, or after their image had left.
        n_ambiguous: parts that may belong to images before or after a restart of the ids.
        n_incomplete: images given up.
        longest_queue: most images that have waited at once.
    """

    def __init__(self, n_parts: int, n_slots: int, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        self._n_parts, self._all = n_parts, (1 << n_parts) - 1
        self._timeout, self._most_behind = timeout, n_slots - MARGIN
        self._keys = ImageKeys([1] * n_parts, timeout)
        self._images: dict[int, PartedImage] = {}
        self._heap: list[int] = []
        self._arrivals: deque[PartedImage] = deque()
        self._released = self._newest = self._newest_id = -1
        self.n_parts_received = self.n_repeated = self.n_late = self.n_incomplete = 0
        self.n_ambiguous = self.longest_queue = 0

    @property
    def n_waiting(self) -> int:
        """Images that wait for parts, or for an image before them."""
        return len(self._images)

    @property
    def n_restarts(self) -> int:
        """How often the image ids started again."""
        return self._keys.n_restarts

    @property
    def due_at(self) -> float:
        """When the image that has waited longest is given up; infinite if none waits."""
        return self._arrivals[0].since + self._timeout if self._arrivals else float("inf")

    def add(self, metadata: ImageMetadata, now: float) -> bool:
        """Add the message of a part. Return whether images may be taken."""
        forwarding = metadata.forwarding
        part = forwarding.pair - 1
        if part >= self._n_parts:
            part = -1
        self.n_parts_received += 1
        key = self._keys.key(part, metadata.image_id, forwarding.number, now, forwarding.message)
        image = self._images.get(key)
        if image is None:
            if key <= self._released:
                self._count_useless(key)
                return False
            image = self._images[key] = PartedImage(key, forwarding.number, now, metadata)
            heapq.heappush(self._heap, key)
            self._arrivals.append(image)
            self.longest_queue = max(self.longest_queue, len(self._images))
        if part < 0:
            image.n_unnamed += 1
        elif image.arrived >> part & 1:
            self.n_repeated += 1
            return False
        else:
            image.arrived |= 1 << part
        image.metadata = metadata
        if key > self._newest:
            self._newest, self._newest_id = key, metadata.image_id
        if forwarding.mark and part >= 0:
            image.marks.append((part, forwarding.mark))
        else:
            image.n_unmarked += 1
        first = self._images[self._heap[0]]
        return self._is_complete(first) or (part >= 0 and not first.arrived >> part & 1) or self._is_full

    def _count_useless(self, key: int) -> None:
        if key == AMBIGUOUS:
            self.n_ambiguous += 1
        elif key == REPEATED:
            self.n_repeated += 1
        else:
            self.n_late += 1

    @property
    def _is_full(self) -> bool:
        return len(self._images) > QUEUE_SIZE

    def _is_complete(self, image: PartedImage) -> bool:
        return image.arrived.bit_count() + image.n_unnamed >= self._n_parts

    def take(self, now: float) -> Iterator[PartedImage]:
        """Yield the images that leave at `now`, in order; `lacking` names the parts of incomplete ones."""
        while self._heap:
            image = self._images[self._heap[0]]
            if not self._is_complete(image):
                if not self._is_hopeless(image, now):
                    return
                image.lacking = self._lacking(image)
                self.n_incomplete += 1
            heapq.heappop(self._heap)
            del self._images[image.key]
            self._released = image.key
            while self._arrivals and self._arrivals[0].key <= image.key:
                self._arrivals.popleft()
            # Ids that have restarted may have reached any slot.
            behind = self._newest_id - image.image_id
            if image.n_unmarked and not 0 <= behind < self._most_behind:
                image.metadata.status = ID_MISSMATCH
            yield image

    def _is_hopeless(self, image: PartedImage, now: float) -> bool:
        if now >= self.due_at or self._is_full:
            return True
        return not image.n_unnamed and all(
            self._keys.has_passed(part, image.key) for part in self._lacking(image)
        )

    def _lacking(self, image: PartedImage) -> list[int]:
        lacking = [part for part in range(self._n_parts) if not image.arrived >> part & 1]
        return lacking[image.n_unnamed :]
