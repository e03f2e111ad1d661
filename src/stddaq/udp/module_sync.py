"""Which images are complete: the frames of several modules come together, in any interleaving. No I/O.

The modules of a detector send the frames of an image at almost the same time. `ModuleSync` is fed the message
of each converted frame and yields images in the order of their ids: complete ones at once, incomplete ones
when what they lack cannot arrive any more. Each module sends its frames in order, so a module that has sent a
later frame has lost the ones before. Nothing waits longer than a timeout.

Ids that restart are told from late ones per source (a module, of a GigaFRoST through one of two receivers).
Images are ordered by the restart that they belong to, then by id; each source restarts by itself, because one
may still send the end of a scan when others have started the next one.
"""

from __future__ import annotations

import heapq
import struct
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stddaq.dataplane.id_order import IdOrder, Place
from stddaq.dataplane.metadata import GOOD_IMAGE, ID_MISSMATCH, MISSING_PACKETS
from stddaq.udp.frame_message import BY_CONVERTER, FRAME_MESSAGE_BYTES, ID_BYTES, IN_ORDER

DEFAULT_TIMEOUT_S = 1.0
# Share of the slots that a converter may be writing ahead of the last message that arrived from it.
MARGIN_FRACTION = 0.05
MIN_MARGIN = 16
# Modules of a GigaFRoST have two receivers each, used in turn.
N_LINK_SETS = 2
# Ids have 64 bits; the bits above them count the restarts.
_EPOCH = 1 << 64
# Id, missing packets, module; link set and scan of a GigaFRoST; mark of the converter, or the number of a
# receiver that a C++ converter passes on.
_FIELDS = struct.Struct("<QQH4xBxI32xI")


@dataclass(slots=True)
class _Source:
    """The frames of one module through one receiver.

    Attributes:
        last: key of the frame that arrived last (the epoch and the id).
        first: key of the first frame of its epoch.
    """

    epoch: int = 0
    last: int = -1
    first: int = -1
    scan_id: int = 0
    order: IdOrder = field(default_factory=IdOrder)


@dataclass(slots=True)
class ModuleImage:
    """An image of which at least one frame has arrived.

    Attributes:
        message: the message that arrived first, completed to 64 bytes.
        scan_id: of a GigaFRoST. Frames of another scan are not part of the image.
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
        n_late, n_repeated: frames of images that have left, and second frames of a module for an image.
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
        """`modules` make an image. A message counts for its module modulo `n_modules`."""
        self._modules, self._n_modules = list(modules), n_modules
        self._bits = {module: 1 << position for position, module in enumerate(modules)}
        self._all = (1 << len(self._modules)) - 1
        self._queue_size, self._timeout, self._n_slots = queue_size, timeout, n_slots
        self._margin = max(MIN_MARGIN, int(n_slots * MARGIN_FRACTION))
        self._is_gigafrost = is_gigafrost
        self._sources = {
            (module, link_set): _Source() for module in modules for link_set in range(N_LINK_SETS)
        }
        self._images: dict[int, ModuleImage] = {}
        self._keys: list[int] = []  # A heap.
        self._arrivals: deque[ModuleImage] = deque()
        self._released = -1
        # The newest epoch: since when, and the scan that it started with.
        self._epoch, self._epoch_since, self._scan_id = 0, float("-inf"), 0
        self.n_messages = self.n_malformed = self.n_late = self.n_repeated = 0
        self.n_incomplete = self.n_restarts = 0
        self.n_lost: Counter[int] = Counter()

    @property
    def n_waiting(self) -> int:
        """Images that wait for modules, or for an image before them."""
        return len(self._images)

    @property
    def due_at(self) -> float:
        """When incomplete images are given up for the one that has waited longest; infinite if none waits."""
        return self._arrivals[0].since + self._timeout if self._arrivals else float("inf")

    def add(self, message: bytes, now: float) -> bool:
        """Add the message of a frame. Return whether images may be taken."""
        if len(message) != FRAME_MESSAGE_BYTES:
            if not ID_BYTES <= len(message) < FRAME_MESSAGE_BYTES:
                self.n_malformed += 1
                return False
            message = message.ljust(FRAME_MESSAGE_BYTES, b"\0")
        image_id, n_missing, module, link_set, scan_id, mark = _FIELDS.unpack(message)
        module %= self._n_modules
        bit = self._bits.get(module)
        if bit is None:
            self.n_malformed += 1
            return False
        self.n_messages += 1
        if not self._is_gigafrost:
            link_set = scan_id = 0
        elif mark:
            link_set &= 1
        else:
            # C++ receivers do not say which one it was; two receivers take the images in turn.
            link_set = image_id & 1
        if not mark & BY_CONVERTER:
            # Only receivers of stddaq give numbers.
            is_in_order, mark = mark > 0, 0
        else:
            is_in_order = mark & IN_ORDER > 0
        source = self._sources[module, link_set]
        key = source.epoch * _EPOCH + image_id
        is_same_scan = scan_id == source.scan_id
        if key > source.last and is_in_order and is_same_scan and source.epoch == self._epoch:
            source.last = key
        else:
            key = self._place(source, image_id, scan_id, is_in_order, now)
            if key < 0:
                self.n_repeated += 1
                return False
        source.scan_id = scan_id
        image = self._images.get(key)
        if image is None:
            if key <= self._released:
                self.n_late += 1
                return False
            image = self._images[key] = ModuleImage(key, message, link_set, scan_id, now)
            heapq.heappush(self._keys, key)
            self._arrivals.append(image)
        elif image.scan_id != scan_id:
            self.n_late += 1  # Of another scan with the same ids: its own image has left.
            return False
        elif image.arrived & bit:
            self.n_repeated += 1
            return False
        image.arrived |= bit
        image.marks.append((module, mark))
        if not mark:
            image.n_unmarked += 1
        if n_missing:
            image.status = MISSING_PACKETS
        # The first image is complete, or this module has passed it without its frame.
        first = self._images[self._keys[0]]
        return first.arrived == self._all or not first.arrived & bit or len(self._keys) > self._queue_size

    def _place(self, source: _Source, image_id: int, scan_id: int, in_order: bool, now: float) -> int:
        """Return the key of a frame that may be the first, late or after a restart; -1 if it is repeated."""
        if source.epoch != self._epoch and now - self._epoch_since > self._timeout:
            # What was under way before the restart has arrived: a source that lags was away, it is not late.
            return self._enter(source, self._epoch, image_id, scan_id, now)
        if source.epoch != self._epoch and scan_id == self._scan_id != 0:
            # The others have started this scan before.
            return self._enter(source, self._epoch, image_id, scan_id, now)
        if source.last < 0:
            return self._enter(source, source.epoch, image_id, scan_id, now)
        last_id = source.last % _EPOCH
        is_other_scan = scan_id != source.scan_id
        if in_order:
            is_restart = image_id <= last_id or is_other_scan
        elif image_id == last_id and not is_other_scan:
            return -1
        else:
            is_restart = self._is_restart_of_cpp(source, image_id, is_other_scan)
        if is_restart:
            return self._enter(source, source.epoch + 1, image_id, scan_id, now)
        key = source.epoch * _EPOCH + image_id
        source.last = max(source.last, key)
        return key

    @staticmethod
    def _is_restart_of_cpp(source: _Source, image_id: int, is_other_scan: bool) -> bool:
        """Return whether a C++ receiver, which may send frames again or late, has restarted with this id."""
        order = source.order
        if image_id == order.next_id:
            order.next_id += 1
            return False
        return order.place(image_id, in_order=is_other_scan) is Place.RESTART

    def _enter(self, source: _Source, epoch: int, image_id: int, scan_id: int, now: float) -> int:
        """Start an epoch of a source with this frame. Return its key."""
        source.epoch = epoch
        source.first = source.last = epoch * _EPOCH + image_id
        source.order = IdOrder()
        source.order.place(image_id, in_order=False)
        if epoch > self._epoch:
            self._epoch, self._epoch_since, self._scan_id = epoch, now, scan_id
            self.n_restarts += 1
        return source.last

    def take(self, now: float) -> Iterator[ModuleImage]:
        """Yield the images that leave at `now`, in order; `lacking` names the modules of incomplete ones."""
        while self._keys:
            image = self._images[self._keys[0]]
            if image.arrived != self._all:
                if not self._is_hopeless(image, now):
                    return
                self._give_up(image)
            heapq.heappop(self._keys)
            del self._images[image.key]
            self._released = image.key
            while self._arrivals and self._arrivals[0].key <= image.key:
                self._arrivals.popleft()
            if image.n_unmarked and self._may_be_overwritten(image):
                image.status = ID_MISSMATCH
            yield image

    def _is_hopeless(self, image: ModuleImage, now: float) -> bool:
        """Return whether an incomplete image is given up."""
        if now >= self.due_at or len(self._keys) > self._queue_size:
            return True
        return all(
            self._sources[module, image.link_set].last > image.key
            for module, bit in self._bits.items()
            if not image.arrived & bit
        )

    def _give_up(self, image: ModuleImage) -> None:
        image.lacking = [module for module, bit in self._bits.items() if not image.arrived & bit]
        image.status = MISSING_PACKETS
        self.n_incomplete += 1
        self.n_lost.update(image.lacking)

    def _may_be_overwritten(self, image: ModuleImage) -> bool:
        """Return whether a converter may have written the slot again, by the frames that arrived from it."""
        image_id = image.image_id
        for source in self._sources.values():
            if source.last <= image.key:
                continue
            is_same_epoch = source.epoch == image.key // _EPOCH
            first = image_id + 1 if is_same_epoch else source.first % _EPOCH
            if (image_id - first) % self._n_slots <= source.last % _EPOCH + self._margin - first:
                return True
        return False
