"""The account of one staging: every recorded image is in a document, or an orphan with a reason."""

from __future__ import annotations

from collections import Counter

from stddaq.text import mismatch
from stddaq_ophyd.core.errors import AcquisitionError
from stddaq_ophyd.core.flight import Flight

# Why recorded images are in no document.
EARLIER = "earlier triggers"
UNREAD = "points without an event"
UNCOLLECTED = "flights without documents"
OUTSIDE = "outside of points or in failed ones"


class Account:
    """Counts the images of points and flights when nothing can be published of them any more.

    Attributes:
        n_announced: recorded images that are in documents.
        orphans: recorded images that are in no document, by reason; complete after `close`.
    """

    def __init__(self, device: str) -> None:
        """`device` begins every message."""
        self._device = device
        self.n_announced = 0
        self.orphans: Counter[str] = Counter()

    def add_early(self, n_images: int) -> None:
        """Count images that came before the first one of their point."""
        self.orphans[EARLIER] += n_images

    def add_point(self, n_images: int, *, is_published: bool) -> None:
        """Count the images of a point."""
        if is_published:
            self.n_announced += n_images
        else:
            self.orphans[UNREAD] += n_images

    def add_flight(self, flight: Flight) -> None:
        """Count the images of a flight."""
        n_discarded = flight.stream.n_discarded if flight.stream else 0
        self.n_announced += flight.images.n_taken - n_discarded
        self.orphans[UNCOLLECTED] += flight.images.n_ready - flight.images.n_taken + n_discarded
        self.orphans[EARLIER] += flight.images.n_early

    def close(self, n_recorded: int) -> AcquisitionError | None:
        """Count what is left of the recorded images; return the error when more are known than recorded."""
        del self.orphans[OUTSIDE]
        n_known = self.n_announced + self.orphans.total()
        self.orphans[OUTSIDE] = max(0, n_recorded - n_known)
        self.orphans = +self.orphans
        if n_known > n_recorded:
            return AcquisitionError(mismatch(self._device, f"{n_known} recorded images", str(n_recorded)))
        return None
