"""One run of a driver as a device sees it: started, followed to so many images, ended.

Works with our driver, whose files can be read while they grow, and with others, which say only `status`,
`count` and `reason`, and whose files can be read when they are closed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stddaq.client import DriverClient, DriverStatus, RunFailedError
from stddaq.client.errors import (
    CommandRefusedError,
    ConnectionLostError,
    DriverBusyError,
    DriverError,
    DriverTimeoutError,
    DriverUnreachableError,
)
from stddaq.errors import FileLayoutError, StdDaqError
from stddaq.files.names import find_run
from stddaq.files.opening import open_file
from stddaq.files.raw_rows import RawRows, raw_file_of
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError
from stddaq_ophyd.core.paths import PathInfo

# A driver gives up on a writer, or on the files, before this.
READY_TIMEOUT_S = 30.0
# A driver tells its state ten times a second; one that starts is not in its former state for so long.
CONNECT_TIMEOUT_S = 5.0
# What a driver takes to close large files on a slow file system.
CLOSE_TIMEOUT_S = 120.0
IDLE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class RunCounts:
    """What a driver had received at some moment of a run.

    Attributes:
        n_images: of the run so far.
        rows: images sent to each writer, which is the row of the next one in its file; empty when the driver
            does not say.
        n_restarts: how often the image ids have begun again.
    """

    n_images: int = 0
    rows: tuple[int, ...] = ()
    n_damaged: int = 0
    n_overwritten: int = 0
    n_failed: int = 0
    n_skipped: int = 0
    n_restarts: int = 0

    @classmethod
    def of(cls, status: DriverStatus) -> RunCounts:
        """What a status says of it."""
        writers = status.raw.get("writers") or ()
        return cls(
            status.n_received if status.n_received is not None else status.count or 0,
            tuple(int(writer.get("n_forwarded", 0)) for writer in writers),
            status.n_damaged or 0,
            status.n_overwritten or 0,
            status.n_failed or 0,
            status.n_skipped or 0,
            int(status.raw.get("n_restarts") or 0),
        )

    def bad_since(self, before: RunCounts) -> dict[str, int]:
        """How many images were lost after `before`, by the way in which they were; empty when none was."""
        lost = {
            "damaged": self.n_damaged - before.n_damaged,
            "overwritten": self.n_overwritten - before.n_overwritten,
            "not written": self.n_failed - before.n_failed,
            "skipped": self.n_skipped - before.n_skipped,
        }
        return {how: n for how, n in lost.items() if n > 0}


# Called with the number of images that are there of those waited for, and what the driver says.
OnProgress = Callable[[int, RunCounts], None]


class DriverRun:
    """One run of the driver at `url`; see the module. Its methods block; all but `cancel` are for one thread.

    Attributes:
        is_live: whether the files can be read while they grow.
        raw_files: of writer 0, 1, ..., as this process sees them; known while the run is live, or at its end.
        error: why the run failed, the first reason only.
    """

    def __init__(self, url: str, paths: PathInfo, options: Mapping[str, Any], who: str) -> None:
        """`options` are further fields of the driver's `start`; `who` begins every message."""
        self.paths = paths
        self._who, self._url, self._options = who, url, dict(options)
        self._client = DriverClient(url)
        self._cancelled = threading.Event()
        self._status: DriverStatus | None = None
        self._run_id: str | None = None
        self._is_open = False
        self.is_live = False
        self.raw_files: tuple[Path, ...] = ()
        self.image_shape: tuple[int, int] | None = None
        self.dtype: str | None = None
        self.error: AcquisitionError | None = None

    @property
    def is_open(self) -> bool:
        """Whether the run is going on, as far as we know."""
        return self._is_open

    @property
    def state(self) -> str:
        """The last state of the driver, for messages."""
        return self._status.status if self._status else "unknown"

    @property
    def where(self) -> str:
        """Directory and names of the files, for messages."""
        return f"{self.paths.directory}/{self.paths.prefix}*.h5"

    def open(self) -> None:
        """Start the run; when this returns, every image that is published from now on is recorded.

        Raises `AcquisitionError` with the driver's reason; then nothing is left open.
        """
        try:
            self._client.connect(CONNECT_TIMEOUT_S)
            self._start()
            self._status = self._client.wait_until_ready(READY_TIMEOUT_S)
            self._look_at_files()
        except BaseException as error:
            reason = self._failure("cannot begin to record", error)
            self.close()
            if isinstance(error, StdDaqError):
                raise reason from error
            raise

    def _start(self) -> None:
        try:
            self._status = self._client.start(
                self.paths.directory, file_prefix=self.paths.prefix, **self._options
            )
        except DriverTimeoutError:
            self._is_open = True  # It may have been admitted.
            raise
        self._run_id = self._status.run_id
        self._is_open = True

    def _look_at_files(self) -> None:
        """See whether the files can be read while they grow, and what is in them."""
        assert self._status is not None
        files = [self.paths.read_directory / Path(name).name for name in self._status.files.get("raw", ())]
        if self._run_id is None or not files:
            return
        for path in files:
            raw = self._look_at_file(path)
            if raw is None or raw.origin.run_id != self._run_id:
                return
            self.image_shape, self.dtype = raw.image_shape, raw.dtype.str
        self.raw_files, self.is_live = tuple(files), True

    def _look_at_file(self, path: Path) -> RawRows | None:
        """What the file says of itself; None when it cannot be read while it grows."""
        try:
            with open_file(path, allow_unclosed=True) as opened:
                return raw_file_of(path, opened)
        except FileLayoutError as error:
            if path.exists():
                return None
            raise AcquisitionError(
                f"the driver records to {self.where}, but {path} is not there; read_directory must be the "
                "same directory as this process sees it"
            ) from error

    def received(self) -> RunCounts:
        """What has been received by now. Raises `AcquisitionError` when the run is over."""
        try:
            self._status = self._client.status() if self._run_id else self._client.latest
        except DriverError as error:
            raise self._failure("the driver is lost", error) from error
        if not self._is_ours(self._status):
            raise self._failure("the run has ended", self._end())
        return RunCounts.of(self._status)

    def wait_for(
        self,
        n_images: int,
        before: RunCounts,
        patience: float,
        *,
        restart_on_progress: bool = False,
        on_progress: OnProgress = lambda n, received: None,
    ) -> RunCounts:
        """Wait until `n_images` more than `before` are recorded, and can be read if the run is live.

        `patience` in seconds, of the whole, or with `restart_on_progress` of each image. `on_progress` is
        called in another thread. Raises `AcquisitionError`.
        """
        latest, progressed_at = before, time.monotonic()
        deadline = progressed_at + patience
        so_far = 0

        def ended(status: DriverStatus) -> bool:
            nonlocal latest, deadline, so_far
            self._status = status
            if self._cancelled.is_set() or not self._is_ours(status):
                return True
            latest = RunCounts.of(status)
            n = (status.count or 0) - before.n_images
            if n > so_far:
                so_far = n
                if restart_on_progress:
                    deadline = time.monotonic() + patience
                on_progress(min(n, n_images), latest)
            return n >= n_images

        while so_far < n_images:
            try:
                status = self._client.wait_for(ended, max(0.0, deadline - time.monotonic()))
            except DriverTimeoutError:
                if time.monotonic() < deadline:
                    continue
                n = max(so_far, latest.n_images - before.n_images)
                raise self._failure(
                    f"received {n} of {n_images} images within {patience:g} s"
                    f"{' of the last' if restart_on_progress and n else ''}"
                ) from None
            except DriverError as error:
                raise self._failure(f"recorded {so_far} of {n_images} images", error) from error
            if self._cancelled.is_set():
                raise AcquisitionStoppedError(
                    f"{self._who}: stopped, recorded {so_far} of {n_images} images to {self.where}"
                )
            if not self._is_ours(status):
                raise self._failure(f"recorded {so_far} of {n_images} images", self._end())
        return latest

    def cancel(self) -> None:
        """Let `wait_for` raise `AcquisitionStoppedError`. Safe from any thread."""
        self._cancelled.set()

    def resume(self) -> None:
        """Take a `cancel` back."""
        self._cancelled.clear()

    def close(self) -> None:
        """End the run and wait until the driver is idle; afterwards the files are closed. Never raises.

        What goes wrong is in `error`, unless something else went wrong before.
        """
        try:
            if self._is_open:
                self._end_run()
        finally:
            self._is_open = False
            self._client.close()

    def _end_run(self) -> None:
        try:
            if self._is_ours(self._client.latest):
                self._client.stop()
            self._status = self._client.wait_until_saved(CLOSE_TIMEOUT_S)
            self._client.wait(("idle",), IDLE_TIMEOUT_S)
        except ConnectionLostError as error:
            self._note("the driver is lost", error)
            self._end_run_anew()
        except DriverError as error:
            self._note("the run failed", error)
            with contextlib.suppress(DriverError):
                self._client.wait(("idle",), IDLE_TIMEOUT_S)
        if not self.raw_files:
            self._find_files()

    def _end_run_anew(self) -> None:
        """Connect again: the driver may be there, and the run going on."""
        with contextlib.suppress(DriverError), DriverClient(self._url) as client:
            latest = client.latest
            if latest.is_busy and latest.run_id == self._run_id:
                client.stop()
                client.wait(("idle",), CLOSE_TIMEOUT_S)

    def _find_files(self) -> None:
        try:
            self.raw_files = find_run(self.paths.read_directory, self.paths.prefix).raw
        except FileLayoutError as error:
            self._note("its files are not there", error)

    def _is_ours(self, status: DriverStatus) -> bool:
        return status.is_busy and status.run_id == self._run_id

    def _end(self) -> Exception | None:
        """Why the run ended by itself."""
        try:
            self._client.wait_until_saved(CLOSE_TIMEOUT_S)
        except DriverError as error:
            return error
        return None

    def _note(self, what: str, cause: Exception) -> None:
        self.error = self.error or self._failure(what, cause)

    def _failure(self, what: str, cause: BaseException | None = None) -> AcquisitionError:
        """The error to raise, and to keep if it is the first."""
        why = f": {_words(cause, self._url)}" if cause is not None else ""
        error = AcquisitionError(
            f"{self._who}: {what}{why}; files {self.where}, driver {self._url} is {self.state}"
        )
        self.error = self.error or error
        return error


def _words(cause: BaseException, url: str) -> str:
    """The cause, with what can be done about it."""
    if isinstance(cause, DriverBusyError):
        return f"{cause}; somebody else's run goes on, which `stddaq stop {url}` ends"
    if isinstance(cause, DriverUnreachableError):
        return f"{cause} `stddaq up` starts the services"
    if isinstance(cause, CommandRefusedError | RunFailedError):
        return cause.reason
    return str(cause) or type(cause).__name__
