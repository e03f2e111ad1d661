"""Runs as clients of the older REST see them: one acquisition, whose file they name themselves.

The driver is that of today. Its master file also gets the name that the client has asked for, as a link.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stddaq.client.async_driver import AsyncDriverClient
from stddaq.client.errors import DriverError
from stddaq.client.status import END_STATES, DriverStatus
from stddaq.daemon.log import logger
from stddaq.daemon.tasks import start_logged_task
from stddaq.errors import StdDaqError
from stddaq.open_directory import OpenDirectory
from stddaq.text import mismatch, os_error_text, shown
from stddaq.web.live.driver_feed import UNREACHABLE, DriverFeed

SYNC_TIMEOUT_S = 60.0
# Clients poll for this state, which a fast run leaves between two polls.
WAITING_SHOWN_S = 0.2
MAX_LOGGED = 1000
_STATES = {"recording": "ACQUIRING_IMAGES", "stop": "FLUSHING_IMAGES", "saving_file": "FLUSHING_IMAGES"}
WAITING, FINISHED, FAILED = "WAITING_IMAGES", "FINISHED", "FAILED"


class OlderRestError(StdDaqError, ValueError):
    """A request of the older REST cannot be carried out."""


@dataclass
class Acquisition:
    """A run, with the fields of the older REST."""

    n_images: int = 0
    output_file: str | None = None
    run_id: int | str | None = None
    state: str = FINISHED
    message: str = ""
    n_completed: int = 0
    n_requested: int = 0
    start_time: float | None = None
    stop_time: float | None = None
    waiting_shown_until: float = field(default=float("inf"), repr=False)

    def see(self, status: DriverStatus) -> None:
        """Take over what the driver says about this run."""
        self.n_completed = max(self.n_completed, status.count or 0)
        self.n_requested = max(self.n_requested, status.n_received or 0, self.n_completed)
        self.state = _STATES.get(status.status, WAITING)
        if self.state != WAITING:
            self.waiting_shown_until = min(self.waiting_shown_until, time.monotonic() + WAITING_SHOWN_S)

    def end(self, message: str, state: str = FINISHED) -> None:
        self.state, self.message, self.stop_time = state, message, time.time()

    def as_json(self, *, may_wait: bool = False) -> dict[str, Any]:
        """Return it as JSON; if `may_wait`, a run that has just left the state of waiting still waits."""
        state, message = self.state, self.message
        if may_wait and time.monotonic() < self.waiting_shown_until < float("inf"):
            state, message = WAITING, ""
            self.waiting_shown_until = 0.0
        return {
            "state": state,
            "message": message,
            "info": {"n_images": self.n_images, "output_file": self.output_file, "run_id": self.run_id},
            "stats": {
                "n_write_completed": self.n_completed,
                "n_write_requested": self.n_requested,
                "start_time": self.start_time,
                "stop_time": self.stop_time,
            },
        }


class OlderWriter:
    """The one writer of the older REST. It lives in one event loop.

    Attributes:
        finished: acquisitions that have made a file, newest first.
    """

    def __init__(self, driver: DriverFeed, roots: Sequence[Path]) -> None:
        self._driver, self._roots = driver, tuple(roots)
        self._acquisition, self.finished = Acquisition(), deque[Acquisition](maxlen=MAX_LOGGED)
        self._run: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def status(self) -> dict[str, Any]:
        """Return the state of the writer, and its last acquisition."""
        return {"state": await self._state(), "acquisition": self._acquisition.as_json(may_wait=True)}

    async def _state(self) -> str:
        if self._run is not None:
            return "WRITING"
        try:
            async with self._driver.client() as client:
                status = (await client.status()).status
        except (DriverError, OSError):
            status = UNREACHABLE
        if status == UNREACHABLE:
            return "UNKNOWN"
        return "READY" if status in ("idle", *END_STATES) else "WRITING"

    async def start(self, output_file: str, n_images: int, run_id: int | str | None, uid: int) -> None:
        """Start a run. Raise `OlderRestError`, `DriverError`."""
        path = Path(output_file)
        if not path.is_absolute() or path.suffix != ".h5" or not path.stem:
            expected = "an absolute path that ends in .h5"
            raise OlderRestError(mismatch("output_file", expected, shown(output_file)))
        async with self._turn:
            if self._run is not None:
                raise OlderRestError("the writer is writing; stop it first")
            await asyncio.to_thread(_check_new, path, self._roots)
            wanted = Acquisition(
                n_images, output_file, run_id or time.time_ns(), WAITING, start_time=time.time()
            )
            client = self._driver.client()
            async with contextlib.AsyncExitStack() as opened:
                await opened.enter_async_context(client)
                await client.start(
                    path.parent, n_image=n_images, file_prefix=f"{path.stem}_", writer_id=max(0, uid)
                )
                self._acquisition = wanted
                keep = opened.pop_all()
            self._run = start_logged_task(self._follow(client, keep, wanted))

    async def _follow(
        self,
        client: AsyncDriverClient,
        opened: contextlib.AsyncExitStack,
        acquisition: Acquisition,
    ) -> None:
        try:
            async with opened:
                async for status in client.watch_run():
                    acquisition.see(status)
                    if status.is_end:
                        await self._end(acquisition, status)
                        return
        except (DriverError, OSError) as error:
            acquisition.end(f"ERROR:{error}", FAILED)
        except Exception as error:
            acquisition.end(f"ERROR:unexpected {type(error).__name__}: {error}", FAILED)
            raise
        finally:
            self._run = None

    async def _end(self, acquisition: Acquisition, status: DriverStatus) -> None:
        if status.status == "error":
            acquisition.end(f"ERROR:{status.reason}", FAILED)
            return
        assert acquisition.output_file is not None
        try:
            await asyncio.to_thread(_link, Path(acquisition.output_file), status.files, self._roots)
        except (OSError, StdDaqError) as error:
            text = os_error_text(error) if isinstance(error, OSError) else str(error)
            logger.warning("%s cannot be made: %s", shown(acquisition.output_file), text)
            acquisition.end(f"ERROR:{acquisition.output_file}: {text}", FAILED)
            return
        is_complete = acquisition.n_completed >= acquisition.n_images
        acquisition.end("Completed." if is_complete else "Interrupted.")
        self.finished.appendleft(acquisition)

    async def wait(self) -> None:
        """Wait for the end of the run. Raise `OlderRestError` after a minute; the run goes on."""
        if (run := self._run) is None:
            return
        try:
            await asyncio.wait_for(asyncio.shield(run), SYNC_TIMEOUT_S)
        except TimeoutError:
            raise OlderRestError(f"the run has not ended within {SYNC_TIMEOUT_S:g} s; it goes on") from None

    async def stop(self) -> None:
        """End the run, if there is one, and wait until its files are closed. Raise `DriverError`."""
        async with self._driver.client() as client:
            await client.stop()
            await self.wait()
            await client.wait(["idle"], SYNC_TIMEOUT_S)

    def last(self) -> dict[str, Any]:
        """Return the last acquisition as it is, with the state of the writer after its request."""
        return {
            "state": "WRITING" if self._run is not None else "READY",
            "acquisition": self._acquisition.as_json(),
        }


def _check_new(path: Path, roots: Sequence[Path]) -> None:
    """Raise `OlderRestError` or `OSError` unless a file can be made at `path`."""
    if not roots:
        raise OlderRestError(mismatch("output_file", "a service started with --root", "one without"))
    with OpenDirectory(path.parent, roots=roots) as directory:
        if directory.status(path.name) is not None:
            found = f"{shown(str(path))}, which exists"
            raise OlderRestError(mismatch("output_file", "a new file", found))


def _link(path: Path, files: Mapping[str, Any], roots: Sequence[Path]) -> None:
    """Give the master file its other name. Raise `OSError`."""
    master = Path(str(files.get("master"))).name
    with OpenDirectory(path.parent, roots=roots) as directory:
        os.symlink(master, path.name, dir_fd=directory.fd)
        if os.geteuid() == 0 and (status := directory.status(master)):
            os.chown(path.name, status.st_uid, status.st_gid, dir_fd=directory.fd, follow_symlinks=False)
