"""The images of one run as a series for a single consumer, without I/O.

The driver's statuses say which images are rows of the run, so a row is sent when the driver has received it
as well. Every row is sent, with its pixels or as lost: the number of an image is its row in the files. Where
that is impossible the series ends with an error.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from stddaq.client.status import DriverStatus
from stddaq.daemon import log
from stddaq.wire.stins import SeriesMaker
from stddaq.wire.zmtp import Buffer

MAX_WAITING_BYTES = 512 * 2**20
# More lost announcements than this at once end the series.
MAX_LOST_AT_ONCE = 10_000
# The source announces an image to the driver and to the stream at the same time.
LATE_IMAGES_TIMEOUT_S = 2.0

# Why the series of a run ends without a further status, by whether the run has ended.
_END_WITHOUT_STATUS = {
    False: "the driver was restarted or does not answer",
    True: "the next run began before the last images of this one were sent",
}

Message = tuple[Sequence[Buffer], memoryview | None]


class Row:
    """A row of the run: its pixels, or why it has none."""

    __slots__ = ("image", "image_id", "is_settled", "status")

    def __init__(self, image_id: int | None, status: str | None = None) -> None:
        self.image_id, self.status = image_id, status
        self.image: memoryview | None = None
        self.is_settled = status is not None

    def settle(self, image: memoryview | None, status: str | None) -> None:
        """Set the pixels, or None, and the status of a row that is not good."""
        self.image, self.status, self.is_settled = image, status, True


class RunSeries:
    """The series of one run after the other; see the module.

    Attributes:
        has_consumer: whether a consumer is connected.
        n_dropped: images of runs that were not sent, because their series has ended with an error.
        is_numbered: whether the source numbers its announcements, so that lost ones are known.
    """

    def __init__(
        self, maker: SeriesMaker, image_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`image_bytes`: of one image, which decides how many may wait."""
        self._clock = clock
        self.has_consumer = self.is_numbered = False
        self.n_dropped = 0
        self._maker, self._max_rows = maker, max(2, MAX_WAITING_BYTES // image_bytes)
        self._rows: deque[Row] = deque()
        self._others: deque[bytes] = deque()  # Headers and ends, which are sent before rows.
        self._run: DriverStatus | None = None
        # While a run is followed: before its first image, its images, after its end.
        self._is_followed = self._is_open = self._has_failed = False
        self._n_sent = self._n_dropped = 0
        # Until when the first and the last image are waited for.
        self._open_by = self._end_at = float("inf")

    def update(self, status: DriverStatus | None) -> None:
        """Follow the driver; None: the connection is lost."""
        run_id = status.run_id if status else None
        if self._run is not None and run_id != self._run.run_id:
            if self._is_followed and self._run.is_end and run_id is None:
                # The run is over for the driver, but not for the consumer.
                if not self._is_open:
                    self._open(self._run)
                return
            if self._is_followed:
                self.fail(_END_WITHOUT_STATUS[self._run.is_end])
            self._run = None
        if status is None or run_id is None:
            return
        if self._run is None:
            self._is_followed, self._has_failed = not status.is_end, False
            self._open_by = self._end_at = float("inf")
            self._n_sent = 0
            self._rows.clear()
        self._run = status
        if not self._is_followed:
            return
        if not self._is_open and (status.raw.get("first_id") is not None or status.is_end):
            self._open(status)
        if self._is_followed and status.raw.get("n_dropped"):
            self.fail("the driver has lost announcements, so the rows of the files are not known")
        if status.is_end:
            self._end_at = min(self._end_at, self._clock() + LATE_IMAGES_TIMEOUT_S)

    def _open(self, status: DriverStatus) -> None:
        """Begin the series, with the rows from the first image of the run on."""
        first_id = status.raw.get("first_id")
        ids = [row.image_id for row in self._rows]
        if not self.has_consumer:
            self.fail("no consumer is connected")
        elif self._others:
            self.fail("the consumer has not received the end of the run before")
        elif first_id is not None and first_id not in ids:
            # The status may arrive before the announcement.
            self._open_by = min(self._open_by, self._clock() + LATE_IMAGES_TIMEOUT_S)
            if self._clock() > self._open_by:
                self.fail("no consumer was connected when its first image came, or the source is another one")
        else:
            # Earlier images with that id were published before the run.
            n_before = len(ids) if first_id is None else len(ids) - 1 - ids[::-1].index(first_id)
            for _ in range(n_before):
                self._rows.popleft()
            self._is_open = True
            master = str(status.files.get("master"))
            self._others.append(self._maker.header(master, run_id=status.run_id, n_image=status.n_image))

    def expect(self, image_id: int, n_dropped: int) -> Row | None:
        """Add the next announced image. Return its row, to be settled; None if it is of no run.

        `n_dropped`: how many announcements this stream has lost until now.
        """
        n_lost, self._n_dropped = n_dropped - self._n_dropped, n_dropped
        run = self._run
        self.n_dropped += self._has_failed and run is not None and not run.is_end
        if not self._is_followed or run is None or (run.is_end and len(self._rows) >= self._n_left(run)):
            return None
        if n_lost > MAX_LOST_AT_ONCE:
            self._rows.clear()
            if self._is_open:
                self.fail(f"{n_lost} announcements were lost at once")
                return None
        else:
            self._rows.extend(Row(None, "dropped") for _ in range(n_lost))
        if image_id < run.raw.get("start_id", 0):
            return None
        row = Row(image_id)
        self._rows.append(row)
        while len(self._rows) > self._max_rows:
            if self._is_open:
                self.fail(f"more than {self._max_rows} images wait for the consumer or for the driver")
                return None
            self._rows.popleft()
        return row

    def _n_left(self, run: DriverStatus) -> int:
        """Return how many rows, which the driver has received, are to be sent yet."""
        return (run.n_received or 0) - self._n_sent

    def disconnect(self, n_dropped: int) -> None:
        """Forget what the consumer, which has left, has not received."""
        if self._is_open:
            self.fail("the consumer has left")
        self._others.clear()
        self._rows.clear()
        self._n_dropped = n_dropped

    def stop(self) -> None:
        """End the series of a run that was not sent completely."""
        run = self._run
        if self._is_open and run is not None and not (run.is_end and self._n_left(run) <= 0):
            self.fail("the stream is stopped")

    def fail(self, reason: str) -> None:
        """End the series of this run with an error, or do not begin it."""
        assert self._run is not None
        if self._is_open:
            self._others.append(self._maker.end(self._n_sent, reason))
            self.n_dropped += len(self._rows)
            self._has_failed = True
            log.logger.error(
                "run %s: row %d and later are not sent: %s", self._run.run_id, self._n_sent, reason
            )
        else:
            log.logger.warning("run %s is not sent: %s", self._run.run_id, reason)
        self._finish()

    def _finish(self) -> None:
        self._rows.clear()
        self._is_followed = self._is_open = False

    def next_message(self) -> Message | None:
        """Return what to send next, with the buffer of the pool that it uses; None if nothing is due."""
        if self._others:
            return [self._others.popleft()], None
        run = self._run
        if run is None or not self._is_open:
            return None
        if self._n_left(run) > 0:
            if self._rows and self._rows[0].is_settled:
                return self._send(self._rows.popleft())
            if self._clock() > self._end_at and self.is_numbered:
                return self._send(self._rows.popleft() if self._rows else Row(None))
            if self._clock() > self._end_at:
                self.fail(f"{self._n_left(run)} images did not arrive, and the source does not say which")
        elif run.is_end:
            self._finish()
            return [self._maker.end(self._n_sent, run.reason)], None
        return None

    def _send(self, row: Row) -> Message:
        number = self._n_sent
        self._n_sent += 1
        if row.image is None or row.image_id is None:
            return [self._maker.lost_image(number, row.image_id, row.status or "dropped"), b""], None
        return [self._maker.image(number, row.image_id, row.status), row.image], row.image
