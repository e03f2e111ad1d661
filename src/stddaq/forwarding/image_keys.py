"""The order of images that several senders forward, each in order: a key for every image. No I/O.

Images of a source of stddaq are ordered by their number in its ring, which is never used twice. Those of a
std_daq source (C++) have none; they are ordered by id, and by the restart that they belong to. Each sender
restarts by itself, because one may still send the end of a run when others have started the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

# Numbers and ids have 64 bits; the bits above them count the restarts.
EPOCH = 1 << 64
# An id that is further behind the newest one is not late but belongs to a restart.
MAX_LATE_IDS = 1000


@dataclass(slots=True)
class _Sender:
    """Attributes: `last`, the key that arrived last, and `at`, when."""

    last: int = -1
    epoch: int = 0
    is_numbered: bool = False
    at: float = float("-inf")


class ImageKeys:
    """The keys of one stream of images.

    Attributes:
        n_restarts: how often ids or numbers started again.
    """

    def __init__(self, n_senders: int, timeout: float) -> None:
        """After `timeout` nothing is on its way any more that was sent before."""
        self._senders = [_Sender() for _ in range(n_senders)]
        # Senders that do not say which one they are.
        self._unnamed = _Sender()
        self._timeout = timeout
        self._epoch, self._epoch_since = 0, float("-inf")
        self.n_restarts = 0

    def key(self, sender: int, image_id: int, number: int, now: float) -> int:
        """Return the key of an image that `sender` has delivered; -1 if it was the last one, too.

        The sender is -1 if its message does not name it.
        """
        source = self._senders[sender] if sender >= 0 else self._unnamed
        value, is_numbered = number or image_id, number > 0
        key = source.epoch * EPOCH + value
        if key > source.last and source.epoch == self._epoch and is_numbered == source.is_numbered:
            source.last, source.at = key, now
            return key
        key = self._place(source, value, is_numbered, now, is_named=sender >= 0)
        source.is_numbered, source.at = is_numbered, now
        return key

    def has_passed(self, sender: int, key: int) -> bool:
        """Return whether a sender has delivered a later image than that of `key`."""
        return self._senders[sender].last > key

    def _place(self, source: _Sender, value: int, is_numbered: bool, now: float, *, is_named: bool) -> int:
        last = source.last % EPOCH
        is_idle = now - source.at > self._timeout
        if source.epoch != self._epoch and now - self._epoch_since > self._timeout:
            # What was on its way before the restart has arrived: a sender that lags was away.
            epoch = self._epoch
        elif source.last < 0:
            epoch = source.epoch
        elif is_numbered != source.is_numbered:
            epoch = source.epoch + 1
        elif value > last:
            epoch = source.epoch
        elif is_named and value == last and not is_idle:
            return -1
        elif (is_named and not is_numbered) or is_idle or last - value > MAX_LATE_IDS:
            epoch = source.epoch + 1
        else:
            return source.epoch * EPOCH + value  # Another part of an image that may still wait.
        if epoch > self._epoch:
            self._epoch, self._epoch_since = epoch, now
            self.n_restarts += 1
        source.epoch, source.last = epoch, epoch * EPOCH + value
        return source.last
