"""The images that a source publishes next: ids, number, free-running or on trigger. No I/O."""

from __future__ import annotations

from stddaq.sources.image_ids import ImageIds
from stddaq.sources.pacer import UNLIMITED
from stddaq.text import mismatch
from stddaq.wire.simulator_messages import RequestError


class ImagePlan:
    """The images still to be published.

    Attributes:
        ids: ids of the current epoch.
        position: position of the next image within them.
        per_epoch: number of ids until they restart.
        free_running: images are published at the rate; otherwise only on trigger.
        n_published: images published so far.
        n_left: images until the source ends.
        n_triggered: triggered images that are not published yet.
        n_restarts: restarts of the ids.
    """

    def __init__(self, ids: ImageIds, n_images: int | None, free_running: bool) -> None:
        """`n_images`: end after this many; None: never."""
        self.free_running = free_running
        self.n_published = self.n_triggered = 0
        self.n_left = UNLIMITED if n_images is None else n_images
        self.n_restarts = -1
        self.restart(ids)

    def restart(self, ids: ImageIds) -> None:
        """Start an epoch with `ids`."""
        self.ids, self.position, self.per_epoch = ids, 0, ids.per_epoch
        self.n_restarts += 1

    def advance(self) -> None:
        """Count the next image as published."""
        self.position += 1
        self.n_published += 1
        self.n_left -= 1
        if not self.free_running:
            self.n_triggered -= 1

    @property
    def next_id(self) -> int:
        """Id of the next image."""
        return self.ids[self.position]

    @property
    def n_wanted(self) -> int:
        """Images to publish without a further request."""
        return self.n_left if self.free_running else min(self.n_triggered, self.n_left)

    @property
    def n_limit(self) -> int | None:
        """Images until the source ends; None: it does not end."""
        return self.n_left if self.n_left < UNLIMITED // 2 else None

    def start(self) -> None:
        """Publish at the rate until `stop`; discard triggered images."""
        self.free_running, self.n_triggered = True, 0

    def stop(self) -> None:
        """Publish only on trigger; discard triggered images."""
        self.free_running, self.n_triggered = False, 0

    def trigger(self, n_images: int) -> tuple[int, int]:
        """Add up to `n_images`. Return the id of the first one and their number. Raise `RequestError`."""
        if self.free_running:
            raise RequestError(mismatch("trigger", "a stopped source", "a free-running one", "stop it first"))
        first = self.position + self.n_triggered
        n_images = min(n_images, self.n_left - self.n_triggered)
        if n_images <= 0:
            raise RequestError(mismatch("trigger", "a source with images left", "one that has published all"))
        self.n_triggered += n_images
        return self.ids[first], n_images

    def rearm(self, first_id: int, last_id: int) -> None:
        """Start an epoch at `first_id`; `last_id` is the highest id of the detector. Raise `RequestError`."""
        if self.ids.listed is not None:
            raise RequestError(
                mismatch("rearm", "a source that counts its ids", "one with the ids of a file")
            )
        if first_id > last_id:
            raise RequestError(mismatch("first_id", f"0 to {last_id} for this detector", f"{first_id}"))
        if self.n_triggered:
            raise RequestError(mismatch("rearm", "no pending images", f"{self.n_triggered} triggered images"))
        self.restart(ImageIds(first_id, last_id, self.ids.skip_every))
