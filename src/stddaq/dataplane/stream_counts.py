"""Counts of one metadata stream, from running numbers and image ids.

Used by every receiver of the stream: image subscribers for their statistics, the driver for the account of a
run. The registered counts only grow; a statistics line or a metrics page prints differences.
"""

from __future__ import annotations

from stddaq.daemon import metrics
from stddaq.daemon.metrics import Registry
from stddaq.dataplane.id_order import IdOrder, Place

# A larger step of the running numbers is no loss: the source has started with numbers from the clock, because
# its ring was removed. They grow by a million a second between two rings; announcements do not in a minute.
MAX_DROPPED_AT_ONCE = 1_000_000


class StreamCounts(IdOrder):
    """What was received, and what is known to be missing. Feed it every message, in order; no I/O.

    Attributes:
        n_images: messages that are image metadata, whether they fit the configuration or not.
        n_dropped: messages that the source announced and that did not arrive here, from running numbers.
        n_skipped: image ids that are missing between two received ones.
        n_late: images that arrived after a higher id, and were counted as skipped until then.
        n_restarts: how often image ids started again from a lower or equal id.
        n_malformed: messages that are not the metadata of an image of this detector.
    """

    __slots__ = (
        "_next_number",
        "n_dropped",
        "n_images",
        "n_late",
        "n_malformed",
        "n_restarts",
        "n_skipped",
    )

    def __init__(self) -> None:
        super().__init__()
        self.n_images = self.n_dropped = self.n_skipped = self.n_restarts = self.n_malformed = 0
        self.n_late = 0
        # Running numbers start at 1: 0 says that none has arrived yet.
        self._next_number = 0

    @property
    def is_numbered(self) -> bool:
        """Whether the source numbers its messages, so that `n_dropped` is known."""
        return self._next_number != 0

    @property
    def last_number(self) -> int:
        """The running number of the last message; -1 before the first."""
        return self._next_number - 1

    def receive(self, image_id: int, number: int) -> None:
        """Count an image: its id, and the running number of its message (0: the stream has none). 0.2 us."""
        self.n_images += 1
        if image_id == self.next_id:
            self.next_id = image_id + 1
        else:
            self._place(image_id, in_order=number != 0)
        if number:
            if number > self._next_number and self._next_number:
                self._miss(number - self._next_number)
            self._next_number = number + 1

    def receive_number(self, number: int) -> None:
        """Count a message by its running number only; for receivers that follow the image ids themselves."""
        if number:
            if number > self._next_number and self._next_number:
                self._miss(number - self._next_number)
            self._next_number = number + 1

    def _miss(self, n_messages: int) -> None:
        if n_messages <= MAX_DROPPED_AT_ONCE:
            self.n_dropped += n_messages

    def receive_malformed(self) -> None:
        """Count a message that cannot be parsed. It arrived, so its running number is not dropped."""
        self.n_malformed += 1
        if self._next_number:
            self._next_number += 1

    def refuse(self) -> None:
        """Count a message, already received with its number, that does not fit the configuration."""
        self.n_malformed += 1

    def register(self, registry: Registry, source: str) -> None:
        """Add the counts to those of the service. `source`: suffix of the stream."""
        registry.add(metrics.IMAGES_RECEIVED, lambda: self.n_images, source=source)
        registry.add(metrics.MESSAGES_LOST, lambda: self.n_dropped, source=source)
        registry.add(metrics.IDS_SKIPPED, lambda: self.n_skipped + self.n_late, source=source)
        registry.add(metrics.IDS_RESTARTED, lambda: self.n_restarts)
        registry.add(metrics.MESSAGES_REJECTED, lambda: self.n_malformed, reason="malformed")

    def _place(self, image_id: int, *, in_order: bool) -> Place:
        """Count a gap, a late id or a restart: `image_id` does not continue the stream."""
        before = self.next_id
        place = self.place(image_id, in_order=in_order)
        if place is Place.RESTART:
            self.n_restarts += 1
        elif place is Place.GAP:
            self.n_skipped += image_id - before
        elif place is Place.LATE and image_id > self.first_id:
            self.n_skipped -= 1
            self.n_late += 1
        return place
