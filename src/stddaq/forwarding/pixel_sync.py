"""Which images have their pixels, if each pair forwards every N-th image whole. No I/O.

The metadata come through a stream of their own, and say which images there are and in which order. An image
leaves when its pixels have arrived. They are lost when the pair that brings them, which delivers in order,
has delivered those of a later image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from stddaq.dataplane.metadata import ID_MISSMATCH, ImageMetadata
from stddaq.forwarding.image_keys import AMBIGUOUS, ImageKeys
from stddaq.forwarding.part_sync import MARGIN

DEFAULT_TIMEOUT_S = 0.1
QUEUE_SIZE = 10_000
# After this time nothing from before a restart is on its way any more.
RESTART_TIMEOUT_S = 1.0


@dataclass(slots=True)
class WholeImage:
    """An image whose metadata have arrived.

    Attributes:
        number: running number in its metadata stream; 0: none.
        mark: of its receiver; 0: none. -1 until the pixels arrive.
        is_lost: its pixels did not arrive.
    """

    key: int
    pair: int
    number: int
    since: float
    metadata: ImageMetadata
    mark: int = -1
    is_lost: bool = False

    @property
    def image_id(self) -> int:
        """Its id."""
        return self.metadata.image_id


class PixelSync:
    """The images that are on their way; see the module.

    Attributes:
        n_parts_received: messages of receivers.
        n_repeated, n_late: those that came twice, or after their image had left.
        n_ambiguous: those that may belong to images before or after a restart of the ids.
        n_incomplete: images without pixels.
        longest_queue: most images that have waited at once.
    """

    def __init__(self, n_pairs: int, n_slots: int, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        self._n_pairs, self._timeout, self._most_behind = n_pairs, timeout, n_slots - MARGIN
        # The last sender is the metadata stream.
        self._keys = ImageKeys([n_pairs] * n_pairs + [1], max(timeout, RESTART_TIMEOUT_S))
        self._queue: deque[WholeImage] = deque()
        self._images: dict[int, WholeImage] = {}
        # Marks of pixels that came before their metadata, in the order of their arrival.
        self._early: dict[int, int] = {}
        self._released = self._newest = self._newest_id = -1
        self.n_parts_received = self.n_repeated = self.n_late = self.n_incomplete = 0
        self.n_ambiguous = 0
        self.longest_queue = 0

    @property
    def n_waiting(self) -> int:
        """Images that wait for pixels, or for an image before them."""
        return len(self._queue)

    @property
    def n_restarts(self) -> int:
        """How often the image ids started again."""
        return self._keys.n_restarts

    @property
    def due_at(self) -> float:
        """When the image that has waited longest is given up; infinite if none waits."""
        return self._queue[0].since + self._timeout if self._queue else float("inf")

    def add_metadata(self, metadata: ImageMetadata, now: float) -> None:
        """Add a message of the metadata stream."""
        forwarding = metadata.forwarding
        key = self._keys.key(self._n_pairs, metadata.image_id, forwarding.number, now, forwarding.message)
        if key <= self._released or key in self._images:
            self._count_useless(key)
            return
        pair = metadata.image_id % self._n_pairs
        number = forwarding.message or forwarding.number
        image = WholeImage(key, pair, number, now, metadata, self._early.pop(key, -1))
        self._images[key] = image
        self._queue.append(image)
        self.longest_queue = max(self.longest_queue, len(self._queue))

    def add_pixels(self, metadata: ImageMetadata, now: float) -> None:
        """Add the message of a receiver."""
        image_id, forwarding = metadata.image_id, metadata.forwarding
        self.n_parts_received += 1
        key = self._keys.key(image_id % self._n_pairs, image_id, forwarding.number, now, forwarding.message)
        if key > self._newest:
            self._newest, self._newest_id = key, image_id
        image = self._images.get(key)
        if image is not None and image.mark < 0:
            image.mark = forwarding.mark
        elif image is not None or key < 0 or key in self._early:
            self._count_useless(key)
        elif key <= self._released:
            self.n_late += 1
        else:
            self._early[key] = forwarding.mark
            if len(self._early) > QUEUE_SIZE:
                del self._early[next(iter(self._early))]
                self.n_late += 1

    def _count_useless(self, key: int) -> None:
        if key == AMBIGUOUS:
            self.n_ambiguous += 1
        else:
            self.n_repeated += 1

    def take(self, now: float) -> Iterator[WholeImage]:
        """Yield the images that leave at `now`, in order."""
        while self._queue:
            image = self._queue[0]
            if image.mark < 0:
                if not self._is_hopeless(image, now):
                    return
                image.is_lost = True
                self.n_incomplete += 1
            self._queue.popleft()
            del self._images[image.key]
            self._released = image.key
            self._forget_early()
            if image.mark <= 0:
                self._judge_by_ids(image)
            yield image

    def _forget_early(self) -> None:
        """Forget pixels whose metadata do not come any more: filtered, or lost."""
        early = self._early
        while early and (first := next(iter(early))) <= self._released:
            del early[first]

    def _is_hopeless(self, image: WholeImage, now: float) -> bool:
        return (
            now >= image.since + self._timeout
            or self._keys.has_passed(image.pair, image.key)
            or len(self._queue) > QUEUE_SIZE
        )

    def _judge_by_ids(self, image: WholeImage) -> None:
        """Set the status of an image without mark whose slot may have been used again.

        Pairs may be some images behind; a newest id that is far behind has restarted.
        """
        behind = self._newest_id - image.image_id
        if behind >= self._most_behind or (behind <= -MARGIN and not image.is_lost):
            image.metadata.status = ID_MISSMATCH
