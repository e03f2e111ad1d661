"""Which images of a ring buffer without cursor (a std_daq service in C++) may have been overwritten.

Nothing in such a ring says which image a slot holds, so the newest published id decides: an image is suspect
as soon as a later image of its slot was published, or may be in the making. The ids come from the source
itself, not through the driver, whose messages wait in queues while the source continues. That costs 2 us per
image of the stream; a ring with a cursor does not need it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import zmq

from stddaq.dataplane import connections
from stddaq.dataplane.id_order import LATE_IDS, IdOrder, Place
from stddaq.dataplane.ipc_sockets import Connection
from stddaq.dataplane.metadata import ImageMetadata, MetadataRules, parse
from stddaq.dataplane.ring_layout import CODE_SHIFT

# An image is judged this long after its copy, when announcements that were under way have arrived. A longer
# time is safer, but the source must not reach the slot again meanwhile: 10 ms for 1000 slots at the rate of
# the fastest detector, 50 ms for the rings of real deployments.
LONGEST_HOLD_S = 0.05
HOLD_ROUNDS = 0.4
FASTEST_SOURCE_HZ = 40_000
# Until the source's own announcements arrive, only the driver's messages are known, which may wait long.
UNCONFIRMED_HOLD_S = 0.1
# Share of the slots that a source may be writing ahead of its announcements.
MARGIN_FRACTION = 0.05
MIN_MARGIN = 16
CATCH_UP_LIMIT_S = 1.0
RECEIVE_BATCH = 1000
# The first byte of every announcement but that of image 0, whose id is not in the message. Sources of stddaq
# do not count subscriptions to a topic, so that they start when a driver is there.
TOPIC = b"\x08"


@dataclass(slots=True)
class _Epoch:
    """Ids published between two restarts, from the first to the newest.

    Attributes:
        repeated: ids that were announced again: their slots were written again.
        unclear: an id that was late, or the first of a restart, while no id beyond `newest` has arrived.
    """

    first: int
    newest: int
    repeated: deque[int] = field(default_factory=lambda: deque(maxlen=LATE_IDS))
    unclear: int | None = None

    def add_late(self, image_id: int, place: Place) -> None:
        """Add an id that is not beyond the newest one."""
        if place is Place.REPEATED:
            self.repeated.append(image_id)
        if place is Place.REPEATED or image_id < self.first:
            self.unclear = image_id
        self.first = min(self.first, image_id)


class Epochs:
    """The published ids, as far as they matter for images that are still to be judged. No I/O."""

    def __init__(self, n_slots: int) -> None:
        self._n_slots = n_slots
        self._margin = max(MIN_MARGIN, int(n_slots * MARGIN_FRACTION))
        self._epochs: deque[_Epoch] = deque()
        self._published, self._judged = IdOrder(), IdOrder()

    def publish(self, image_id: int) -> None:
        """Add the next published id."""
        order, epochs = self._published, self._epochs
        if image_id == order.next_id:
            order.next_id = image_id + 1
            place = Place.GAP
        else:
            place = order.place(image_id, in_order=False)
        if place is Place.GAP:
            epochs[-1].newest, epochs[-1].unclear = image_id, None
        elif place in (Place.FIRST, Place.RESTART):
            epochs.append(_Epoch(order.first_id, image_id))
        else:
            epochs[-1].add_late(image_id, place)

    def has_reached(self, image_id: int) -> bool:
        """Return whether the announcement of the next image to judge, or a later one, has arrived."""
        epochs = self._epochs
        # The images of the first epoch are judged once the ids of those to judge have restarted.
        skip = int(bool(epochs) and self._judged.is_restart(image_id, in_order=False))
        return any(epoch.newest >= image_id for epoch in list(epochs)[skip:])

    def is_suspect(self, image_id: int) -> bool:
        """Return whether the slot of an image may hold another by now. Call it in the order of arrival."""
        epochs, judged = self._epochs, self._judged
        if image_id == judged.next_id:
            judged.next_id += 1
        elif judged.place(image_id, in_order=False) is Place.RESTART and len(epochs) > 1:
            epochs.popleft()
        while len(epochs) > 1 and not epochs[0].first <= image_id <= epochs[0].newest:
            epochs.popleft()
        if not epochs:
            return False
        if image_id in epochs[0].repeated:
            epochs[0].repeated.remove(image_id)
            return True
        unclear = epochs[-1].unclear
        if unclear is not None and self._wrote_slot_of(image_id, unclear + 1, unclear):
            return True
        return any(
            self._wrote_slot_of(image_id, image_id + 1 if position == 0 else later.first, later.newest)
            for position, later in enumerate(epochs)
        )

    def _wrote_slot_of(self, image_id: int, first: int, newest: int) -> bool:
        """Return whether an id from `first` to the margin beyond `newest` lies in the slot of `image_id`."""
        return (image_id - first) % self._n_slots <= newest + self._margin - first


class PublishedIds:
    """Follows the ids that the source of a ring buffer publishes.

    It connects once, as the service's own user, but subscribes only while a source without cursor is read:
    each subscriber costs the source time.

    Attributes:
        has_unnumbered: whether an announcement without a sequence number of the ring has arrived.
    """

    def __init__(self, stream: str, rules: MetadataRules, n_slots: int, ring_code: int) -> None:
        """Connect to the metadata stream `stream`, an endpoint."""
        self._rules, self._n_slots, self._ring_code = rules, n_slots, ring_code
        self.has_unnumbered = False
        self._hold = min(LONGEST_HOLD_S, HOLD_ROUNDS * n_slots / FASTEST_SOURCE_HZ)
        self._epochs = Epochs(n_slots)
        self._is_following = self._is_confirmed = False
        self._context = zmq.Context()
        self._socket = connections.open_socket(self._context, zmq.SUB)
        # With room for two rounds, the oldest queued announcement is newer than every image in the ring.
        self._socket.rcvhwm = max(connections.RECEIVE_LIMIT, 2 * n_slots)
        self._connection = Connection(self._socket, stream)

    @property
    def hold(self) -> float:
        """Seconds after its copy when an image can be judged."""
        return self._hold if self._is_confirmed else UNCONFIRMED_HOLD_S

    def follow(self) -> None:
        """Subscribe, if not subscribed already."""
        if not self._is_following:
            self._socket.subscribe(TOPIC)
            self._epochs = Epochs(self._n_slots)
            self._is_following, self._is_confirmed = True, False
            self.has_unnumbered = False

    def ignore(self) -> None:
        """Unsubscribe and forget all ids."""
        if self._is_following:
            self._socket.unsubscribe(TOPIC)
            self._is_following = False
            self.discard()

    def discard(self) -> None:
        """Forget all ids that have been published so far. Call it once in a while when no image is read."""
        self._connection.check()
        self._epochs = Epochs(self._n_slots)
        deadline = time.monotonic() + CATCH_UP_LIMIT_S
        while self._connection.receive(RECEIVE_BATCH) and time.monotonic() < deadline:
            pass

    def expect(self, image_id: int) -> None:
        """Add an id that arrived by another way: all that is known until the source's own ids arrive."""
        if not self._is_confirmed:
            self._epochs.publish(image_id)

    def catch_up(self) -> None:
        """Add all ids that have been published so far."""
        self._connection.check()
        for image_id in self._arrived():
            if not self._is_confirmed:
                self._is_confirmed = True
                self._epochs = Epochs(self._n_slots)
            self._epochs.publish(image_id)

    def _arrived(self) -> Iterator[int]:
        deadline = time.monotonic() + CATCH_UP_LIMIT_S
        while time.monotonic() < deadline and (messages := self._connection.receive(RECEIVE_BATCH)):
            for metadata in map(parse, messages):
                if metadata is not None and self._rules.accepts(metadata):
                    if metadata.sequence >> CODE_SHIFT != self._ring_code:
                        self.has_unnumbered = True
                    yield metadata.image_id

    def has_reached(self, metadata: ImageMetadata) -> bool:
        """Return whether the source's own announcement of an image, or a later one, has arrived here.

        Until its first announcement arrives, the ids that arrived by another way are all that is known.
        """
        return not self._is_confirmed or self._epochs.has_reached(metadata.image_id)

    def is_suspect(self, metadata: ImageMetadata) -> bool:
        """Return whether the slot of an image may hold another by now. Call it in the order of the ids."""
        return self._epochs.is_suspect(metadata.image_id)

    def close(self) -> None:
        """Disconnect."""
        self._context.destroy(linger=0)
