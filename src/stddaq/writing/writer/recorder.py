"""What a writer's loop needs from the code that writes: images, or the metadata of one detector type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period
from stddaq.wire.std_daq import writer_action_pb2 as pb

RecordImages = Sequence[pb.RecordImage]


class Recorder(Protocol):
    """Writes the file of one run at a time. The driver receives the errors of `open` and `close` as reasons.

    Attributes:
        batch_limit: most images that `record` accepts in one call.
    """

    batch_limit: int

    def prepare(self) -> None:
        """Do before a run what only the service's own user may do. Raise `StdDaqError`."""
        ...

    def open(self, action: pb.CreateWriterFile) -> None:
        """Create the file of a run. Raise `OSError` or `StdDaqError`; then no file was created."""
        ...

    def record(self, images: RecordImages) -> None:
        """Write the images. Never raises because of one image."""
        ...

    def caught_up(self, until: float) -> None:
        """Note that all images that arrived before this time (of the monotonic clock) are recorded."""

    def settle(self) -> None:
        """Wait a few milliseconds until each recorded image is known to be good or overwritten."""
        ...

    def flush(self) -> bool:
        """Make the images known to be good visible to other processes. Return whether others remain."""
        ...

    def show_alive(self) -> bool:
        """Show other processes that the open file is being written. Return False once it is lost.

        A file that is no longer at its path is lost.
        """
        ...

    def close(self, *, discard_if_empty: bool = False) -> None:
        """Flush and close the file, or remove it if it is empty and shall be discarded. Raise `OSError`."""
        ...

    def progress(self, reported: tuple[int, int] = (0, 0)) -> pb.WriterProgress:
        """Return the account of the run so far, with the ids of overwritten and failed images.

        `reported`: how many of each were reported before; their ids are left out.
        """
        ...

    def register(self, registry: Registry) -> None:
        """Add its counters to those of the service."""
        ...

    def statistics(self, period: Period) -> dict[str, object]:
        """Return the pairs of the statistics line."""
        ...

    def end_period(self) -> None:
        """Log what does not fit the statistics line, and start the next period."""
        ...
