"""What a driver had received at some moment of a run, as its status messages report it."""

from __future__ import annotations

from dataclasses import dataclass

from stddaq.client import DriverStatus


@dataclass(frozen=True, slots=True)
class RunCounts:
    """What a driver had received at some moment of a run.

    Attributes:
        n_images: images of the run so far.
        rows: images sent to each writer, hence the row of the next one in its file; empty when the driver
            does not report it.
        n_restarts: restarts of the image ids.
        n_of_parts: images of each of several drivers; `rows` are then those of the first.
    """

    n_images: int = 0
    rows: tuple[int, ...] = ()
    n_damaged: int = 0
    n_overwritten: int = 0
    n_failed: int = 0
    n_skipped: int = 0
    n_restarts: int = 0
    n_of_parts: tuple[int, ...] = ()

    @classmethod
    def of(cls, status: DriverStatus) -> RunCounts:
        """Return the counts of a status message."""
        parts = status.raw.get("parts") or ()
        writers = (parts[0] if parts else status.raw).get("writers") or ()
        return cls(
            status.n_received if status.n_received is not None else status.count or 0,
            tuple(int(writer.get("n_forwarded", 0)) for writer in writers),
            status.n_damaged or 0,
            status.n_overwritten or 0,
            status.n_failed or 0,
            status.n_skipped or 0,
            int(status.raw.get("n_restarts") or 0),
            tuple(int(part.get("n_received") or 0) for part in parts),
        )

    def n_recorded_since(self, status: DriverStatus) -> int:
        """Return the number of images that were recorded after these counts, in every part."""
        if not self.n_of_parts:
            return (status.count or 0) - self.n_images
        counts = (int(part.get("count") or 0) for part in status.raw.get("parts") or ())
        return min((n - before for n, before in zip(counts, self.n_of_parts, strict=False)), default=0)

    @property
    def n_bad(self) -> int:
        """Return the number of damaged, overwritten, failed and skipped images."""
        return self.n_damaged + self.n_overwritten + self.n_failed + self.n_skipped

    def bad_since(self, before: RunCounts) -> dict[str, int]:
        """Return the number of bad images after `before` by kind, without the kinds that did not occur."""
        bad = {
            "damaged": self.n_damaged - before.n_damaged,
            "overwritten": self.n_overwritten - before.n_overwritten,
            "failed": self.n_failed - before.n_failed,
            "skipped": self.n_skipped - before.n_skipped,
        }
        return {kind: n for kind, n in bad.items() if n > 0}
