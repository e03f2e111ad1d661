"""Which images are complete: the frames of several modules come together, in any interleaving. No I/O.

The modules of a detector send the frames of an image at almost the same time. `ModuleSync` is fed the message
of each converted frame and yields images in the order of their ids: complete ones at once, incomplete ones
when what they lack cannot arrive any more. Each module sends its frames in order, so a module that has sent a
later frame has lost the ones before. Nothing waits longer than a timeout.

Late ids are distinguished from restarts per source (a module, of a GigaFRoST through one of two receivers;
see `source_order`). Images are ordered by the restart that they belong to, then by id; each source restarts
by itself, because one may still send the end of an acquisition when others have started the next one.

A module that lacks the end of one acquisition and the start of the next shows no restart. The messages of a
GigaFRoST name the scan. Eigers and Jungfraus name no acquisition, and the clocks of their modules differ, but
the frames of an image reach this machine at almost the same time. An image whose frames did not is not good.
"""

from __future__ import annotations

import heapq
import struct
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stddaq.dataplane.id_order import LATE_IDS
from stddaq.dataplane.metadata import GOOD_IMAGE, ID_MISSMATCH, MISSING_PACKETS
from stddaq.udp.frame_message import BY_CONVERTER, FRAME_MESSAGE_BYTES, ID_BYTES, IN_ORDER
from stddaq.udp.source_order import DoubtfulFrames, Place

DEFAULT_TIMEOUT_S = 1.0
# When too many images wait, the first one is given up only if it has waited so long: after a pause, all
# messages of one converter may arrive before those of the others.
QUEUE_GRACE_S = 0.02
# Share of the slots that a converter may be writing ahead of the last message that arrived from it.
MARGIN_FRACTION = 0.05
MIN_MARGIN = 16
# Modules of a GigaFRoST have two receivers each, used in turn.
N_LINK_SETS = 2
# Ids have 64 bits; the bits above them count the restarts.
_EPOCH = 1 << 64
# Id, missing packets, module; link set and scan of a GigaFRoST, time of reception of the others; mark of the
# converter, or the number of a receiver that a C++ converter passes on.
_GIGAFROST_FIELDS = struct.Struct("<QQH4xBxI32xI")
_FIELDS = struct.Struct("<QQH32xQ2xI")
# Frames of one image are not received further apart than this share of the timeout; nor than the second one,
# if some module had sent a later frame meanwhile.
SKEW_FRACTION, OVERTAKEN_FRACTION = 1 / 10, 1 / 40


@dataclass(slots=True, eq=False)
class _Source:
    """The frames of one module through one receiver.

    Attributes:
        bit: of the module, among those that have arrived for an image.
        epoch: -1 before the first frame.
        last: key of the frame that arrived last (the epoch and the id).
        received: when that frame was received, ns; 0: not known.
        first: key of the first frame of its epoch.
        doubtful: frames that may not be right, of a C++ receiver.
        is_trusted: the next frame is right, whatever its id.
    """

    module: int
    bit: int
    epoch: int = -1
    last: int = -1
    received: int = 0
    first: int = -1
    scan_id: int = 0
    doubtful: DoubtfulFrames = field(default_factory=DoubtfulFrames)
    is_trusted: bool = False


@dataclass(slots=True)
class ModuleImage:
    """An image of which at least one frame has arrived.

    Attributes:
        message: the message that arrived first, completed to 64 bytes.
        scan_id: of a GigaFRoST. Frames of another scan are not part of the image.
        received: when that frame was received, ns; 0: not known.
        arrived: bit set of the modules that have arrived, by their positions.
        marks: (module, mark) of the frames that have arrived.
        n_unmarked: those without mark, of C++ converters.
        status: of the metadata stream.
        lacking: modules that did not arrive, once the image is given up.
    """

    key: int
    message: bytes
    link_set: int
    scan_id: int
    received: int
    since: float
    arrived: int = 0
    n_unmarked: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)
    status: int = GOOD_IMAGE
    lacking: Sequence[int] = ()

    @property
    def image_id(self) -> int:
        """Its id."""
        return self.key % _EPOCH


class ModuleSync:
    """The images of one detector; see the module.

    Attributes:
        n_messages: messages of frames.
        n_malformed: messages that are none, or of a module that is not expected.
        n_repeated: second frames of a module for an image.
        n_doubtful: frames that may be of another acquisition than the others of their images.
        n_incomplete: images given up.
        n_lost: frames that incomplete images lacked, by module.
        n_restarts: how often the ids started again.
    """

    def __init__(
        self,
        modules: Sequence[int],
        n_modules: int,
        queue_size: int,
        n_slots: int,
        *,
        is_gigafrost: bool,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """`modules` make an image. A message counts for its module modulo `n_modules`.

        At most `queue_size` images wait for longer than a moment, and at most `n_slots` at all, unless
        `queue_size` is larger.
        """
        self._n_modules = n_modules
        self._all = (1 << len(modules)) - 1
        self._queue_size, self._timeout, self._n_slots = queue_size, timeout, n_slots
        self._most_waiting = max(queue_size, n_slots)
        self._skew, self._overtaken = (
            round(timeout * share * 1e9) for share in (SKEW_FRACTION, OVERTAKEN_FRACTION)
        )
        self._margin = max(MIN_MARGIN, int(n_slots * MARGIN_FRACTION))
        self._is_gigafrost = is_gigafrost
        self._sources = [
            {module: _Source(module, 1 << position) for position, module in enumerate(modules)}
            for _ in range(N_LINK_SETS)
        ]
        self._in_doubt: set[_Source] = set()
        self._images: dict[int, ModuleImage] = {}
        self._keys: list[int] = []  # A heap.
        self._arrivals: deque[ModuleImage] = deque()
        self._released = self._newest = -1
        self._first: ModuleImage
        # The newest epoch: since when, when its first frame and the one before were received, and the scan
        # that it started with.
        self._epoch, self._epoch_since, self._scan_id = 0, float("-inf"), 0
        self._epoch_received = self._received_before = 0
        self._n_late = 0
        self.n_messages = self.n_malformed = self.n_repeated = self.n_doubtful = 0
        self.n_incomplete = self.n_restarts = 0
        self.n_lost: Counter[int] = Counter()

    @property
    def n_late(self) -> int:
        """Frames of images that have left, and those with wrong ids."""
        return self._n_late + sum(source.doubtful.n_late for source in self._all_sources())

    def _all_sources(self) -> Iterator[_Source]:
        return (source for sources in self._sources for source in sources.values())

    @property
    def n_waiting(self) -> int:
        """Images that wait for modules, or for an image before them."""
        return len(self._images)

    @property
    def due_at(self) -> float:
        """When `take` has something to do if no frame arrives; infinite if nothing waits."""
        doubts = (source.doubtful.since for source in self._in_doubt)
        due_at = min(self._overdue_at(), min(doubts, default=float("inf")) + self._timeout / 2)
        if len(self._keys) > self._queue_size:
            due_at = min(due_at, self._first.since + QUEUE_GRACE_S)
        return due_at

    def _overdue_at(self) -> float:
        """Return when incomplete images are given up for the one that has waited longest."""
        return self._arrivals[0].since + self._timeout if self._arrivals else float("inf")

    def add(self, message: bytes, now: float) -> bool:
        """Add the message of a frame. Return whether images may be taken."""
        if len(message) != FRAME_MESSAGE_BYTES:
            if not ID_BYTES <= len(message) < FRAME_MESSAGE_BYTES:
                self.n_malformed += 1
                return False
            message = message.ljust(FRAME_MESSAGE_BYTES, b"\0")
        if self._is_gigafrost:
            image_id, n_missing, module, link_set, scan_id, mark = _GIGAFROST_FIELDS.unpack(message)
            # C++ receivers do not say which one it was; two receivers take the images in turn.
            link_set = link_set & 1 if mark else image_id & 1
            received = 0
        else:
            image_id, n_missing, module, received, mark = _FIELDS.unpack(message)
            link_set = scan_id = 0
        source = self._sources[link_set].get(module % self._n_modules)
        if source is None:
            self.n_malformed += 1
            return False
        self.n_messages += 1
        if mark & BY_CONVERTER:
            is_in_order = mark & IN_ORDER
        else:
            # Only receivers of stddaq give numbers.
            is_in_order, mark = mark, 0
        key, is_certain = source.epoch * _EPOCH + image_id, True
        step = key - source.last
        if (
            step > 0
            and (is_in_order or (step <= LATE_IDS and not source.doubtful.messages))
            and scan_id == source.scan_id
            and source.epoch == self._epoch
        ):
            source.last = key
        else:
            place = self._place(source, message, image_id, scan_id, received, bool(is_in_order), now)
            if place is None:
                return bool(self._keys)
            key, is_certain = place
        source.scan_id, source.received = scan_id, received
        bit = source.bit
        image = self._images.get(key)
        if image is None:
            if key <= self._released:
                self._n_late += 1
                return bool(self._keys)
            image = self._images[key] = ModuleImage(key, message, link_set, scan_id, received, now)
            heapq.heappush(self._keys, key)
            self._arrivals.append(image)
            self._newest = max(self._newest, key)
            self._first = self._images[self._keys[0]]
        elif image.scan_id != scan_id:
            self._n_late += 1  # Of another scan with the same ids: its own image has left.
            return True
        elif image.arrived & bit:
            self.n_repeated += 1
            return True
        elif received and not -self._overtaken <= received - image.received <= self._overtaken:
            is_certain = is_certain and not self._are_apart(image, received)
        image.arrived |= bit
        image.marks.append((source.module, mark))
        if not mark:
            image.n_unmarked += 1
        if n_missing:
            image.status = MISSING_PACKETS
        if not is_certain:
            image.status = ID_MISSMATCH
            self.n_doubtful += 1
        # The first image is complete, or this module has passed it without its frame.
        arrived = self._first.arrived
        return arrived == self._all or not arrived & bit or len(self._keys) > self._most_waiting

    def _are_apart(self, image: ModuleImage, received: int) -> bool:
        """Return whether a frame was received too early or too late for an image."""
        if not received or not image.received:
            return False
        if abs(received - image.received) > self._skew:
            return True
        before = max(received, image.received) - self._overtaken
        return any(source.last > image.key and source.received < before for source in self._all_sources())

    def _place(
        self,
        source: _Source,
        message: bytes,
        image_id: int,
        scan_id: int,
        received: int,
        is_in_order: bool,
        now: float,
    ) -> tuple[int, bool] | None:
        """Return the key of a frame that may be the first, late or of a restart, and whether it is certain.

        None if the frame is repeated, or must wait for those after it.
        """
        is_certain = True
        if source.epoch != self._epoch:
            if self._is_of_newest_epoch(source, scan_id, received, now):
                return self._enter(source, self._epoch, image_id, scan_id, received, now), True
            # Others have restarted. This may be an end of the epoch before, or a frame of the newest.
            is_certain = received <= self._epoch_received if received else scan_id != self._scan_id
            if source.epoch < 0:
                return self._enter(source, self._epoch - 1, image_id, scan_id, received, now), is_certain
        last_id = source.last % _EPOCH
        is_other_scan = scan_id != source.scan_id
        if is_in_order or is_other_scan or source.is_trusted:
            if image_id <= last_id or is_other_scan:
                key = self._enter(source, source.epoch + 1, image_id, scan_id, received, now)
                return key, is_certain or source.epoch == self._epoch
        else:
            place = source.doubtful.place(message, image_id, source.first % _EPOCH, last_id, now)
            if place is Place.REPEATED:
                self.n_repeated += 1
                return None
            if place is not Place.NEXT:
                self._in_doubt.add(source)
                if place is Place.CONFIRMED:
                    self._accept_doubtful(source, now)
                return None
        source.last = source.epoch * _EPOCH + image_id
        return source.last, is_certain

    def _is_of_newest_epoch(self, source: _Source, scan_id: int, received: int, now: float) -> bool:
        """Return whether a frame of a source that is in an older epoch, or in none, is of the newest one."""
        if self._epoch == 0:
            return True
        if scan_id == self._scan_id != 0 and scan_id != source.scan_id:
            return True  # The others have started this scan before.
        # Later, what was under way before the restart has arrived: a source that lags was away.
        if received and self._epoch_received:
            before = self._received_before or self._epoch_received
            return received > self._epoch_received and received - before > self._skew
        return now - self._epoch_since > self._timeout

    def _accept_doubtful(self, source: _Source, now: float) -> None:
        """Add the doubtful frames of a source: they are right, and the first one may restart the ids."""
        self._in_doubt.discard(source)
        messages = source.doubtful.accept(source.last % _EPOCH)
        self.n_messages -= len(messages)  # They were counted when they arrived.
        source.is_trusted = True
        for message in messages:
            self.add(message, now)
            source.is_trusted = False

    def _enter(
        self, source: _Source, epoch: int, image_id: int, scan_id: int, received: int, now: float
    ) -> int:
        """Start an epoch of a source with this frame. Return its key."""
        source.epoch = epoch
        source.first = source.last = epoch * _EPOCH + image_id
        source.doubtful.discard()
        if epoch > self._epoch:
            self._epoch, self._epoch_since, self._scan_id = epoch, now, scan_id
            self._epoch_received, self._received_before = received, source.received
            self.n_restarts += 1
        elif epoch == self._epoch and received < self._epoch_received:
            # The first module to show the restart may have lost the first frames.
            self._epoch_received = received
        return source.last

    def take(self, now: float) -> Iterator[ModuleImage]:
        """Yield the images that leave at `now`, in order; `lacking` names the modules of incomplete ones."""
        for source in list(self._in_doubt):
            if not source.doubtful.messages:
                self._in_doubt.discard(source)
            elif source.doubtful.since + self._timeout / 2 <= now:
                self._accept_doubtful(source, now)
        while self._keys:
            image = self._images[self._keys[0]]
            if image.arrived != self._all:
                if not self._is_hopeless(image, now):
                    return
                self._give_up(image)
            heapq.heappop(self._keys)
            del self._images[image.key]
            self._released = image.key
            if self._keys:
                self._first = self._images[self._keys[0]]
            while self._arrivals and self._arrivals[0].key <= image.key:
                self._arrivals.popleft()
            is_behind = self._newest - image.key >= self._n_slots - self._margin
            if image.n_unmarked and (is_behind or self._in_doubt) and self._may_be_overwritten(image):
                image.status = ID_MISSMATCH
            yield image

    def _is_hopeless(self, image: ModuleImage, now: float) -> bool:
        """Return whether an incomplete image is given up."""
        n_waiting = len(self._keys)
        if now >= self._overdue_at() or n_waiting > self._most_waiting:
            return True
        if n_waiting > self._queue_size and now >= image.since + QUEUE_GRACE_S:
            return True
        sources = self._sources[image.link_set].values()
        return all(source.last > image.key for source in sources if not image.arrived & source.bit)

    def _give_up(self, image: ModuleImage) -> None:
        sources = self._sources[image.link_set].values()
        image.lacking = [source.module for source in sources if not image.arrived & source.bit]
        image.status = MISSING_PACKETS
        self.n_incomplete += 1
        self.n_lost.update(image.lacking)

    def _may_be_overwritten(self, image: ModuleImage) -> bool:
        """Return whether a converter may have written the slot again, by the frames that arrived from it."""
        image_id = image.image_id
        for source in self._all_sources():
            if any((image_id - other) % self._n_slots == 0 for other in source.doubtful.ids()):
                return True
            if source.last <= image.key:
                continue
            is_same_epoch = source.epoch == image.key // _EPOCH
            first = image_id + 1 if is_same_epoch else source.first % _EPOCH
            if (image_id - first) % self._n_slots <= source.last % _EPOCH + self._margin - first:
                return True
        return False
