"""The order of images that several senders forward, each in order: a key for every image. No I/O.

Images of a source of stddaq are ordered by their number in its ring, which is never used twice. Those of a
std_daq source (C++) have none; they are ordered by id, and by the restart that they belong to. Each sender
restarts by itself, because one may still send the end of a run when others have started the next one.

A sender that is behind the others brings the rest of an earlier epoch if it hung, and images of the newest
one if it was away or had no image in a run shorter than there are senders. The running numbers of its
messages say which. C++ senders have none; for a while they are taken to bring the rest of the epoch that has
such an id: in the newest one an old image would be announced as the new image of the same id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Numbers and ids have 64 bits; the bits above them count the restarts.
EPOCH = 1 << 64
# An id that is further behind the newest one is not late but belongs to a restart.
MAX_LATE_IDS = 1000
# Epochs whose ids are known, for senders that are behind.
KEPT_EPOCHS = 16
# Instead of a key: the image came twice, or it may belong to either of two epochs.
REPEATED, AMBIGUOUS = -1, -2


@dataclass(slots=True)
class _Sender:
    """What has arrived from a sender.

    Attributes:
        step: from each of its ids to the next one.
        last: the key that arrived last, in which epoch, with which running number, and when.
        behind_since: when its first image came after the others had gone on to a later epoch.
    """

    step: int = 1
    last: int = -1
    epoch: int = 0
    message: int = 0
    is_numbered: bool = False
    at: float = -math.inf
    behind_since: float = math.inf

    def n_until(self, message: int) -> int:
        """Return how many messages it has sent since the last one that arrived; 0: unknown, or none."""
        return max(0, message - self.message) if message and self.message else 0


@dataclass(slots=True)
class _Ids:
    """The lowest and the highest id of an epoch, from the senders that have every image."""

    first: int = EPOCH
    last: int = -1

    def __contains__(self, image_id: int) -> bool:
        return self.first <= image_id <= self.last

    def n_of_sender(self, image_id: int, step: int) -> int:
        """Return how many of them the sender of `image_id` has."""
        residue = image_id % step
        return max(0, (self.last - residue) // step - (self.first - 1 - residue) // step)


class ImageKeys:
    """The keys of one stream of images.

    Attributes:
        n_restarts: how often ids or numbers started again.
    """

    def __init__(self, steps: Sequence[int], timeout: float) -> None:
        """`steps`: for each sender, from one of its ids to the next one.

        After `timeout` nothing is on its way any more that was sent before, unless a process hangs.
        """
        self._senders = [_Sender(step) for step in steps]
        # Senders that do not say which one they are.
        self._unnamed = _Sender()
        self._timeout = timeout
        self._epoch, self._epoch_since = 0, -math.inf
        self._ids = {0: _Ids(0)}
        self.n_restarts = 0

    def key(self, sender: int, image_id: int, number: int, now: float, message: int = 0) -> int:
        """Return the key of an image that `sender` has delivered; `REPEATED` or `AMBIGUOUS` if it has none.

        The sender is -1 if its message does not name it. `message`: its running number; 0: none.
        """
        source = self._senders[sender] if sender >= 0 else self._unnamed
        value, is_numbered = number or image_id, number > 0
        key = source.epoch * EPOCH + value
        if key > source.last and source.epoch == self._epoch and is_numbered == source.is_numbered:
            source.last, source.at, source.message = key, now, message
            return key
        if sender >= 0 and source.epoch != self._epoch and not (is_numbered or source.is_numbered):
            is_certain = source.message > 0
            key = self._place_behind(source, value, now, message)
            # After an ambiguous image, the number of the next message says nothing.
            message *= is_certain or source.epoch == self._epoch
        else:
            key = self._place(source, value, is_numbered, now, message, is_named=sender >= 0)
        source.is_numbered, source.at, source.message = is_numbered, now, message
        return key

    def has_passed(self, sender: int, key: int) -> bool:
        """Return whether a sender has delivered a later image than that of `key`."""
        return self._senders[sender].last > key

    def _place(
        self, source: _Sender, value: int, is_numbered: bool, now: float, message: int, *, is_named: bool
    ) -> int:
        last = source.last % EPOCH
        is_idle = now - source.at > self._timeout
        if source.epoch != self._epoch and now - self._epoch_since > self._timeout:
            # What was on its way before the restart has arrived: a sender that lags was away.
            epoch = self._epoch
        elif source.last < 0:
            epoch = self._epoch
        elif is_numbered != source.is_numbered:
            epoch = source.epoch + 1
        elif value > last:
            epoch = source.epoch
        elif is_named and value == last and not is_idle and not source.n_until(message):
            return REPEATED
        elif (is_named and not is_numbered) or is_idle or last - value > MAX_LATE_IDS:
            epoch = source.epoch + 1
        else:
            return source.epoch * EPOCH + value  # Another part of an image that may still wait.
        return self._enter(source, epoch, value, now)

    def _place_behind(self, source: _Sender, value: int, now: float, message: int) -> int:
        """Return the key of an image without number, of a sender that is behind the others."""
        last = source.last % EPOCH if source.last >= 0 else -1
        is_idle = now - source.at > self._timeout
        n_sent = source.n_until(message)
        if value == last and not is_idle and not n_sent:
            return REPEATED
        if is_idle or source.behind_since == math.inf:
            source.behind_since = now
        self._follow_ids()
        self._correct(source)
        first = max(source.epoch + (value <= last), self._epoch - KEPT_EPOCHS)
        epochs = [epoch for epoch in range(first, self._epoch) if self._may_have(epoch, value)]
        epochs.append(self._epoch)
        is_ambiguous = False
        if n_sent:
            misfits = [abs(self._n_between(source, epoch, value) - n_sent) for epoch in epochs]
            epoch, is_ambiguous = epochs[misfits.index(min(misfits))], misfits.count(min(misfits)) > 1
            if value in self._ids[self._epoch] and n_sent == self._n_between(source, self._epoch + 1, value):
                epoch = self._epoch + 1  # It is the first one that restarts again.
        else:
            since = self._epoch_since if last < 0 else source.behind_since
            epoch = epochs[0] if now - since <= self._timeout else self._epoch
        if epoch >= self._epoch:
            source.behind_since = math.inf
        key = self._enter(source, epoch, value, now)
        return AMBIGUOUS if is_ambiguous else key

    def _correct(self, source: _Sender) -> None:
        """Move the last image of a sender to a later epoch if the assumed one never had its id."""
        while 0 <= source.last < self._epoch * EPOCH and not self._may_have(
            source.epoch, source.last % EPOCH
        ):
            source.epoch, source.last = source.epoch + 1, source.last + EPOCH

    def _is_over(self, epoch: int) -> bool:
        """Return whether all ids of an epoch are known, from a sender that has every image."""
        return any(sender.step == 1 and sender.epoch > epoch for sender in self._senders)

    def _may_have(self, epoch: int, value: int) -> bool:
        return epoch in self._ids and (not self._is_over(epoch) or value in self._ids[epoch])

    def _n_between(self, source: _Sender, epoch: int, value: int) -> int:
        """Return how many images a sender had from the last one that arrived to that of `epoch`."""
        last, step = source.last % EPOCH, source.step
        if epoch == source.epoch:
            return (value - last) // step
        rest = max(0, self._ids[source.epoch].last - last) if source.epoch in self._ids else 0
        kept = range(max(source.epoch + 1, epoch - KEPT_EPOCHS), epoch)
        middle = (self._ids.get(between) for between in kept)
        n_before = rest // step + sum(ids.n_of_sender(value, step) for ids in middle if ids)
        first = self._ids[epoch].first if epoch in self._ids else value
        return n_before + max(0, value - first) // step + 1

    def _enter(self, source: _Sender, epoch: int, value: int, now: float) -> int:
        """Return the key of an image of `epoch`, which its sender has reached."""
        if epoch != source.epoch:
            self._follow_ids()
        if epoch > self._epoch:
            self._ids[epoch] = _Ids()
            self._ids.pop(epoch - KEPT_EPOCHS, None)
            self._epoch, self._epoch_since = epoch, now
            self.n_restarts += 1
        if epoch in self._ids and source.step == 1:
            self._ids[epoch].first = min(self._ids[epoch].first, value)
        source.epoch, source.last = epoch, epoch * EPOCH + value
        return source.last

    def _follow_ids(self) -> None:
        """Add the ids that have arrived to those of their epochs."""
        for sender in (*self._senders, self._unnamed):
            ids = self._ids.get(sender.epoch)
            if ids is not None and sender.step == 1 and sender.last >= 0 and not sender.is_numbered:
                ids.last = max(ids.last, sender.last % EPOCH)
