"""The course of one run, in the order of its states.

The asyncio loop owns the course; the distributor's thread forwards the images and reports by callbacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.errors import StdDaqError
from stddaq.files.limits import MASTER_FILE_TIMEOUT_S
from stddaq.text import command_line, os_error_text
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.driver.active_run import ActiveRun, RunError
from stddaq.writing.driver.distributor import SUBSCRIPTION_TIMEOUT_S, Distributor, RecordingJob
from stddaq.writing.driver.master_file import create_in_own_process
from stddaq.writing.driver.old_files import remove_as
from stddaq.writing.driver.run_metadata import layers_as_json, layers_of
from stddaq.writing.driver.state import State
from stddaq.writing.driver.writers import Writers

POLL_S = 0.01
REMOVAL_TIMEOUT_S = 10.0
# A message lists at most this many ids or ranges; the counts are always exact.
LIST_LIMIT = 1000


class Enter(Protocol):
    """Changes the state of the driver and notifies its clients."""

    def __call__(self, state: State) -> None:
        """Enter `state`."""
        ...


class RunCourse:
    """Carries out one run, from `creating_file` until all files are closed."""

    def __init__(
        self,
        run: ActiveRun,
        config: DetectorConfig,
        source: str,
        distributor: Distributor,
        writers: Writers,
        roots: Sequence[Path] = (),
    ) -> None:
        """Files are made below `roots`, if there are any."""
        self._roots = roots
        self._run, self._config, self._source = run, config, source
        self._distributor, self._writers = distributor, writers

    async def carry_out(
        self, enter: Enter, on_progress: Callable[[], None], on_complete: Callable[[], None]
    ) -> str:
        """Carry out the run. Return why it failed, or an empty string. Raise nothing.

        `on_progress` is called in the distributor's thread when all images so far are readable, `on_complete`
        in the loop when those of the run are.
        """
        reason = await self._attempt(self._record(enter, on_progress, on_complete))
        if reason:
            await self._attempt(self._close_after_error())
            if self._is_complete():
                log.logger.warning("run %s is complete, but late: %s", self._run.id, reason)
                self._run.late = reason
                reason = await self._attempt(self._save_late(enter, on_complete))
        if reason and (paths := self._run.unclosed_files()):
            command = command_line("stddaq", "repair", *paths)
            reason += f"; after the exit of its writer, {command} makes its file readable"
        return reason

    async def _attempt(self, step: Coroutine[Any, Any, None]) -> str:
        try:
            await step
        except RunError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  (a defect must not leave the driver busy)
            log.logger.exception("run %s failed unexpectedly", self._run.id)
            return f"unexpected {type(error).__name__}: {error}"
        return ""

    async def _record(
        self, enter: Enter, on_progress: Callable[[], None], on_complete: Callable[[], None]
    ) -> None:
        run, writers = self._run, self._writers
        enter(State.CREATING_FILE)
        await writers.wait_until_connected()
        await self._remove_old_files()
        await writers.create_files(run)
        enter(State.FILE_CREATED)
        if not run.stop_requested.is_set():
            await self._wait_for_images(enter, on_progress)
        if run.stop_requested.is_set() and not run.failure:
            enter(State.STOP)
        await writers.call(self._distributor.end_recording)
        if run.failure:
            raise RunError(run.failure)
        run.is_recorded = True
        # Still `recording` (or `stop`) until all images are in the files, so that the count is exact.
        await writers.confirm_last_image(run)
        if run.account.n_images:
            on_complete()
        enter(State.SAVING_FILE)
        run.is_saving = True
        await writers.close_files(run)
        await self._finish()

    async def _remove_old_files(self) -> None:
        run = self._run
        if not run.old_files:
            return
        try:
            await remove_as(
                run.start.writer_id,
                run.old_files,
                switch_user_active=self._config.switch_user_active,
                roots=self._roots,
                timeout=REMOVAL_TIMEOUT_S,
            )
        except (OSError, StdDaqError) as error:
            reason = os_error_text(error) if isinstance(error, OSError) else error
            raise RunError(f"a file of the old run cannot be removed: {reason}") from error

    def _is_complete(self) -> bool:
        """Whether late writers have written all images and closed their files by now."""
        run = self._run
        return run.is_recorded and run.is_late and not run.is_finishing and self._writers.have_saved_all(run)

    async def _save_late(self, enter: Enter, on_complete: Callable[[], None]) -> None:
        """Save a run whose files became complete after a timeout."""
        if not self._run.is_saving:
            if self._run.account.n_images:
                on_complete()
            enter(State.SAVING_FILE)
        await self._finish()

    async def _finish(self) -> None:
        """Create the master file of closed raw files, and check the conditions of a strict run."""
        run = self._run
        run.is_finishing = True
        # The account in the master file lists the file itself.
        run.has_master = True
        try:
            await self._create_master_file()
        except BaseException:
            run.has_master = False
            raise
        n_overwritten = self._writers.n_overwritten()
        if run.start.strict and n_overwritten:
            raise RunError(
                f"{n_overwritten} images were overwritten in the ring buffer before they were written"
            )

    async def _wait_for_images(self, enter: Enter, on_progress: Callable[[], None]) -> None:
        """Record until all images have arrived, a stop is requested, or the data path fails.

        Only `first_image_timeout` and a stop limit the time, because the source decides when it sends images.
        """
        run = self._run
        await self._wait_for_subscription()
        job = self._recording_job(on_progress)
        await self._writers.call(lambda: self._distributor.record(job))
        # This state is entered when a client can trigger the camera without missing an image.
        enter(State.WAITING_FOR_FIRST_IMAGE)
        await _first_of(
            run.first_image, run.recorded, run.stop_requested, timeout=run.start.first_image_timeout
        )
        if run.first_image.is_set():
            enter(State.RECORDING)
        elif not (run.recorded.is_set() or run.stop_requested.is_set()):
            run.failure = f"no image arrived within {run.start.first_image_timeout:g} s"
            return
        await _first_of(run.recorded, run.stop_requested)

    async def _wait_for_subscription(self) -> None:
        deadline = time.monotonic() + SUBSCRIPTION_TIMEOUT_S
        while time.monotonic() < deadline and not await self._writers.call(self._distributor.is_subscribed):
            await asyncio.sleep(POLL_S)
        if problem := await self._writers.call(self._distributor.subscription_problem):
            raise RunError(problem)

    def _recording_job(self, on_progress: Callable[[], None]) -> RecordingJob:
        run, loop = self._run, asyncio.get_running_loop()
        return RecordingJob(
            run.start.n_image,
            run.start.start_id,
            self._config.image_division == "arrival",
            run.start.end_on_restart,
            run.account,
            on_first_image=lambda: _from_thread(loop, run.first_image.set),
            on_end=lambda failure: _from_thread(loop, run.end_recording, failure),
            on_caught_up=on_progress,
        )

    async def _create_master_file(self) -> None:
        run = self._run
        layers = layers_of(self._config, run.start, run.added_nexus)
        create = pb.CreateMasterFile(
            path=str(run.files.master),
            raw_files=[str(path) for path in run.files.raw],
            metadata_file=str(run.files.metadata or ""),
            account=json.dumps(self.result("", list_limit=None)),
            overwrite=run.start.overwrite,
            nexus=layers_as_json(layers),
            nxmx=str(run.files.nxmx) if run.missing_metadata == [] else "",
        )
        if await self._writers.create_master_file(run, create, MASTER_FILE_TIMEOUT_S):
            return
        try:
            await create_in_own_process(
                create,
                run.start.writer_id,
                switch_user_active=self._config.switch_user_active,
                roots=self._roots,
                timeout=MASTER_FILE_TIMEOUT_S,
            )
        except (OSError, RuntimeError, StdDaqError) as error:
            raise RunError(f"the master file was not created: {error}") from error

    async def _close_after_error(self) -> None:
        await self._writers.call(self._distributor.end_recording)
        await self._writers.close_files_after_error(self._run)

    def result(self, reason: str, list_limit: int | None = LIST_LIMIT) -> dict[str, Any]:
        """Return the account of the run, with `reason` if it failed.

        The driver's last result lists up to `list_limit` ids of each kind; the master file lists all.
        """
        run = self._run
        overwritten, failed = self._writers.overwritten_ids(), self._writers.failed_ids(run)
        return {
            "run_id": run.id,
            "outcome": "error" if reason else "file_saved",
            **({"reason": reason} if reason else {}),
            **({"late": run.late} if run.late else {}),
            "source": self._source,
            "image_division": self._config.image_division,
            "number_of_writers": self._config.number_of_writers,
            "n_image": run.start.n_image,
            "start_id": run.start.start_id,
            **run.account.result(overwritten, failed, list_limit),
            "files": run.made_files(),
            **({"metadata": run.metadata} if run.metadata else {}),
            **({"nexus_missing": run.missing_metadata} if run.missing_metadata else {}),
            "started_at": run.started_at.isoformat(),
            "finished_at": datetime.now(UTC).isoformat(),
            "duration_s": round(run.duration(), 6),
        }


async def _first_of(*events: asyncio.Event, timeout: float | None = None) -> None:
    """Wait until one of the events is set."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _from_thread(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    """Run `function` in the loop, unless the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
