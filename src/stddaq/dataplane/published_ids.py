"""Which images of a ring buffer without cursor (a C++ source) may have been overwritten.

Nothing in such a ring says what a slot holds, so the newest announced id decides: a slot is suspect as soon
as a later image of it was announced, or may be in the making. The announcements are heard from the source
itself, not through the driver, whose messages wait in queues while the source goes on. That costs 2 us per
image of the stream; sources of ours do not need it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import zmq

from stddaq.dataplane import endpoints
from stddaq.dataplane.metadata import ImageMetadata, MetadataRules, parse

# An image is judged a while after it was copied: by then announcements that were under way have come. Longer
# is safer, but the ring must not have gone round by then: 10 ms for 1000 slots at the rate of the fastest
# detector, 50 ms for the rings of real deployments.
LONGEST_HOLD_S = 0.05
HOLD_ROUNDS = 0.4
FASTEST_SOURCE_HZ = 40_000
UNHEARD_HOLD_S = 0.1
# Share of the slots that a source may be writing ahead of its announcements.
MARGIN_FRACTION = 0.05
MIN_MARGIN = 16
CATCH_UP_LIMIT_S = 1.0


@dataclass(slots=True)
class _Pass:
    """Ids announced between two restarts, from the first to the newest."""

    first: int
    newest: int


class Passes:
    """What was announced, as far as it matters for images that are still to be judged."""

    def __init__(self, n_slots: int) -> None:
        self._n_slots = n_slots
        self._margin = max(MIN_MARGIN, int(n_slots * MARGIN_FRACTION))
        self._passes: deque[_Pass] = deque()
        self._judged = -1

    def announce(self, image_id: int) -> None:
        """Take the next announcement into account."""
        passes = self._passes
        if passes and image_id > passes[-1].newest:
            passes[-1].newest = image_id
        else:
            passes.append(_Pass(image_id, image_id))

    def is_suspect(self, image_id: int) -> bool:
        """Whether the slot of an image may hold another by now. Ask in the order of the announcements."""
        passes = self._passes
        if len(passes) > 1 and image_id <= self._judged:
            passes.popleft()
        while len(passes) > 1 and not passes[0].first <= image_id <= passes[0].newest:
            passes.popleft()
        self._judged = image_id
        return any(
            self._wrote_slot_of(image_id, image_id + 1 if position == 0 else later.first, later.newest)
            for position, later in enumerate(passes)
        )

    def _wrote_slot_of(self, image_id: int, first: int, newest: int) -> bool:
        """Whether an id from `first` to the margin beyond `newest` lies in the slot of `image_id`."""
        return (image_id - first) % self._n_slots <= newest + self._margin - first


class Announcements:
    """Hears what the source of a ring buffer announces, while it is asked to.

    Connected for good, which has to happen as the service's own user, but subscribed only while a foreign
    source is recorded: other subscribers are counted by sources, and cost them time.
    """

    def __init__(self, stream: str, rules: MetadataRules, n_slots: int) -> None:
        """Connect to the metadata stream `stream`, an endpoint."""
        self._rules, self._n_slots = rules, n_slots
        self._hold = min(LONGEST_HOLD_S, HOLD_ROUNDS * n_slots / FASTEST_SOURCE_HZ)
        self._passes = Passes(n_slots)
        self._is_listening = self._has_heard = False
        self._context = zmq.Context()
        self._socket = endpoints.open_socket(self._context, zmq.SUB)
        # As long as not even this is full, the oldest unheard announcement is newer than all in the ring.
        self._socket.rcvhwm = max(endpoints.RECEIVE_LIMIT, 2 * n_slots)
        self._socket.connect(stream)

    @property
    def hold(self) -> float:
        """Seconds after which an image can be judged.

        As long as nothing was heard, the driver's messages are all that is known, and they may wait long.
        """
        return self._hold if self._has_heard else UNHEARD_HOLD_S

    def listen(self) -> None:
        """Begin to hear; nothing changes when that is so already."""
        if not self._is_listening:
            self._socket.subscribe(b"")
            self._passes = Passes(self._n_slots)
            self._is_listening, self._has_heard = True, False

    def ignore(self) -> None:
        """Hear no more, and forget what was heard."""
        if self._is_listening:
            self._socket.unsubscribe(b"")
            self._is_listening = False
            self.catch_up()

    def expect(self, image_id: int) -> None:
        """Note an image that came by way of the driver: all that is known until the source is heard."""
        if not self._has_heard:
            self._passes.announce(image_id)

    def catch_up(self) -> None:
        """Take everything that was announced so far into account."""
        deadline = time.monotonic() + CATCH_UP_LIMIT_S
        while time.monotonic() < deadline:
            try:
                metadata = parse(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            if metadata is None or not self._rules.accepts(metadata):
                continue
            if not self._has_heard:
                self._has_heard = True
                self._passes = Passes(self._n_slots)
            self._passes.announce(metadata.image_id)

    def is_suspect(self, metadata: ImageMetadata) -> bool:
        """Whether the slot of an image may hold another by now. Ask in the order of the announcements."""
        return self._passes.is_suspect(metadata.image_id)

    def close(self) -> None:
        """Disconnect."""
        self._context.destroy(linger=0)
