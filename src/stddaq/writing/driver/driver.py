"""The driver: carries out commands of clients, admits one run at a time, and keeps the last result.

An asyncio loop owns the state; the distributor's thread owns images and sockets.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stddaq.config import DetectorConfig
from stddaq.config.services import pending_changes
from stddaq.daemon import log
from stddaq.daemon.config_loading import validated_in_process
from stddaq.daemon.isolation import run_in_thread
from stddaq.daemon.tasks import start_logged_task
from stddaq.dataplane.metadata import compression_of
from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.wire.driver_messages import (
    BUSY_REASON,
    AnnotateCommand,
    CommandError,
    ErrorType,
    PlainCommand,
    StartCommand,
    Status,
    parse_command,
)
from stddaq.wire.fields import shown_message
from stddaq.wire.run_defaults import DEFAULT_N_IMAGE
from stddaq.writing.driver.active_run import ActiveRun, RunError
from stddaq.writing.driver.distributor import Distributor
from stddaq.writing.driver.doorbell import Doorbell
from stddaq.writing.driver.repair import repair_as
from stddaq.writing.driver.run import RunCourse
from stddaq.writing.driver.run_metadata import layers_of, missing_metadata
from stddaq.writing.driver.run_totals import RunTotals
from stddaq.writing.driver.start_check import PlannedFiles, check_start, free_bytes
from stddaq.writing.driver.state import State, StateMachine
from stddaq.writing.driver.status import Client, Watchers, encode, status_message
from stddaq.writing.driver.writers import Writers

T = TypeVar("T")

CHECK_TIMEOUT_S = 10.0
MAX_DRY_RUNS = 4
# Of a run: they are in its master file, and in each reply to `last_result`.
MAX_ANNOTATIONS, MAX_METADATA_BYTES = 100, 2**16
REPAIR_TIMEOUT_S = 60.0
# A retiring driver stays this long after its last run, so that clients can request the account.
RESULT_TIMEOUT_S = 2.0


class Driver:
    """The driver belongs to the asyncio loop in which it is created.

    Attributes:
        watchers: the connected clients.
        totals: the images of all runs.
        n_refused: commands refused, by kind of error.
        n_finished: runs that have ended, by outcome: `file_saved` or `error`.
    """

    def __init__(
        self,
        config: DetectorConfig,
        suffix: str,
        distributor: Distributor,
        roots: Sequence[Path],
        config_path: Path,
        overwrite: bool = False,
    ) -> None:
        """With `overwrite` every run may replace existing files."""
        self._overwrite = overwrite
        self._config_path = config_path
        # A changed file stays one while no key of the driver changes; a child process takes 0.3 s for it.
        self._validated = functools.lru_cache(maxsize=1)(validated_in_process)
        self._config, self._suffix, self._distributor, self._roots = config, suffix, distributor, roots
        self._machine = StateMachine()
        self._writers = Writers(distributor, suffix, by_arrival=config.image_division == "arrival")
        self.watchers = Watchers(self._status, asyncio.get_running_loop())
        self._progress = Doorbell(self.watchers.notify_progress)
        self.totals = RunTotals(config.number_of_writers)
        self.n_refused: Counter[ErrorType] = Counter()
        self.n_finished: Counter[str] = Counter()
        self._n_dry_runs = 0
        self._course: asyncio.Task[None] | None = None
        self._retired = asyncio.Event()
        # The last run: its account, the files that are not closed, their user, and its end.
        self._last_result: dict[str, Any] | None = None
        self._unclosed: list[Path] = []
        self._unclosed_uid = 0
        self._run_ended_at = -math.inf

    @property
    def status(self) -> Status:
        """The status that clients see."""
        return self._machine.state.status

    async def receive(self, client: Client, frame: str | bytes) -> None:
        """Carry out the command in a client's frame and reply."""
        try:
            command = parse_command(frame)
        except CommandError as error:
            client.send(encode(self._refusal(error)))
            return
        # Devices ask for the status at each point of a scan, the page checks while a person types.
        if command.command not in ("status", "check"):
            # Free metadata may be long.
            log.event("received %s", shown_message(command, without=("overwrite", "metadata")))
        if isinstance(command, StartCommand):
            await (self._dry_run if command.command == "check" else self._start)(client, command)
        elif isinstance(command, AnnotateCommand):
            self._annotate(client, command)
        elif command.command == "repair":
            await self._repair(client)
        else:
            self._reply_plain(client, command)

    def request_stop(self) -> None:
        """End the run in any state. Without a run this does nothing."""
        if self._machine.run:
            self._machine.run.stop_requested.set()

    async def retire(self) -> None:
        """Admit no further run. Return when the current one has ended and its account could be read."""
        self._machine.retire()
        self._notice_retirement()
        await self._retired.wait()
        await asyncio.sleep(self._run_ended_at + RESULT_TIMEOUT_S - time.monotonic())

    async def shut_down(self, timeout: float) -> None:
        """Stop the current run, if any, and wait up to `timeout` seconds for its end."""
        self.request_stop()
        if self._course:
            await asyncio.wait([self._course], timeout=timeout)

    # Commands.

    def _reply_plain(self, client: Client, command: PlainCommand) -> None:
        if command.command == "stop":
            self.request_stop()
        reply = self._status() | {"command": command.command}
        if command.command == "last_result":
            reply["result"] = self._last_result
        client.send(encode(reply))

    async def _start(self, client: Client, start: StartCommand) -> None:
        # No other code runs between this check and the change of state: of two starts one is admitted.
        if refusal := self._refusal_if_busy():
            log.event("start rejected: %s", refusal["detail"])
            client.send(encode(refusal | {"command": "start"}))
            return
        try:
            client.requester.check(start.writer_id)
        except CommandError as error:
            log.event("start refused: %s", error)
            client.send(encode(self._refusal(error) | {"command": "start"}))
            return
        run = self._planned(start)
        self._machine.enter(State.CHECKING_START, run=run)
        try:
            await self._check(run)
        except BaseException as error:
            self._rest()
            if not isinstance(error, CommandError):
                raise
            log.event("start refused: %s", error)
            client.send(encode(self._refusal(error) | {"command": "start"}))
            return
        self._enter(State.STARTED, replied_to=client)
        client.send(encode(self._status() | {"command": "start"} | _missing_metadata(run)))
        self.totals.begin(run.account, self._writers.n_forwarded)
        self._course = start_logged_task(self._carry_out(run))

    def _annotate(self, client: Client, command: AnnotateCommand) -> None:
        """Add metadata to the run, until its master file is made."""
        run = self._machine.run
        try:
            if run is None or run.is_finishing or not self._machine.state.is_run:
                raise CommandError("no_run", mismatch("annotate", "a run that is being recorded", "none"))
            added = [*run.added_nexus, *([command.nexus] if command.nexus else [])]
            layers = layers_of(self._config, run.start, added)
            missing = missing_metadata(layers, run.start, run.started_at.isoformat())
            metadata = run.metadata | command.metadata
            if len(added) > MAX_ANNOTATIONS or len(encode(metadata)) > MAX_METADATA_BYTES:
                expected = f"{MAX_ANNOTATIONS} times nexus and {MAX_METADATA_BYTES} bytes of metadata at most"
                raise CommandError("invalid_field", mismatch("annotate", expected, "more"))
        except CommandError as error:
            client.send(encode(self._refusal(error) | {"command": "annotate"}))
            return
        run.added_nexus, run.missing_metadata, run.metadata = added, missing, metadata
        client.send(encode(self._status() | {"command": "annotate"} | _missing_metadata(run)))

    def _planned(self, start: StartCommand) -> ActiveRun:
        if self._overwrite:
            start = dataclasses.replace(start, overwrite=True)
        n_writers = self._config.number_of_writers
        return ActiveRun(start, PlannedFiles.of(start, n_writers, self._writers.have_metadata_writer))

    async def _dry_run(self, client: Client, start: StartCommand) -> None:
        """Reply whether this run could be started. Other clients notice nothing."""
        if self._n_dry_runs >= MAX_DRY_RUNS:
            error = CommandError(
                "busy", mismatch("check", f"at most {MAX_DRY_RUNS} at a time", "another one")
            )
            client.send(encode(_refusal(error) | {"command": "check"}))
            return
        run = self._planned(start)
        self._n_dry_runs += 1
        try:
            client.requester.check(start.writer_id)
            await self._check_in_thread(lambda: self._check_files(run), run)
            n_free_bytes = await self._check_in_thread(lambda: free_bytes(start), run)
        except CommandError as error:
            client.send(encode(_refusal(error) | {"command": "check"}))
            return
        finally:
            self._n_dry_runs -= 1
        is_known = start.n_image != DEFAULT_N_IMAGE and not compression_of(self._suffix)
        reply = {
            "command": "check",
            "needed_bytes": start.n_image * self._config.image_bytes if is_known else None,
            "free_bytes": n_free_bytes,
            "planned_files": run.files.as_json(),
        }
        client.send(encode(self._status() | reply | _missing_metadata(run)))

    @staticmethod
    async def _check_in_thread(check: Callable[[], T], run: ActiveRun) -> T:
        try:
            return await run_in_thread(check, CHECK_TIMEOUT_S, f"path: file system of {run.start.path}")
        except TimeoutError as error:
            raise CommandError("path_not_usable", str(error)) from error

    async def _check(self, run: ActiveRun) -> None:
        await self._check_in_thread(lambda: self._check_files(run), run)
        try:
            # Before clients see the run, so that no number of the last one is shown as its own.
            await self._writers.call(lambda: self._distributor.begin_run(run.id))
        except RunError as error:
            raise CommandError("busy", str(error)) from error

    def _check_files(self, run: ActiveRun) -> None:
        if changed := pending_changes(self._config, self._config_path, self._validated):
            advice = (
                "the services have not restarted since the configuration was changed; try again in a moment"
            )
            found = f"{', '.join(changed)} changed in {self._config_path}"
            raise CommandError(
                "busy", mismatch("configuration", "that of the running services", found, advice)
            )
        compressed = bool(compression_of(self._suffix))
        started_at = run.started_at.isoformat()
        run.missing_metadata = missing_metadata(layers_of(self._config, run.start), run.start, started_at)
        run.old_files = check_start(run.start, run.files, self._config, self._roots, compressed=compressed)

    async def _repair(self, client: Client) -> None:
        """Repair files of the last run that a writer did not close, so that every reader can open them."""
        if refusal := self._refusal_if_busy():
            client.send(encode(refusal | {"command": "repair"}))
            return
        self._machine.enter(State.REPAIRING)
        try:
            repaired = await self._repair_unclosed() if self._unclosed else []
        except (OSError, StdDaqError) as error:
            reason = f"the files of the last run cannot be repaired: {error}"
            refusal = self._refusal(CommandError("path_not_usable", reason))
            client.send(encode(refusal | {"command": "repair"}))
        else:
            client.send(encode(self._status() | {"command": "repair", "repaired": repaired}))
        finally:
            self._rest()

    async def _repair_unclosed(self) -> list[dict[str, Any]]:
        switch = self._config.switch_user_active
        return await repair_as(
            self._unclosed_uid,
            self._unclosed,
            switch_user_active=switch,
            roots=self._roots,
            timeout=REPAIR_TIMEOUT_S,
        )

    def _refusal_if_busy(self) -> dict[str, Any] | None:
        """Return the refusal of a start or repair; None when it is admitted."""
        if self._machine.is_retiring:
            reason = "the driver is busy: it is about to restart; try again in a moment"
        elif self._machine.state is not State.IDLE:
            state = self._machine.state.name.lower()
            reason = mismatch("the driver is busy", "state idle", f"state {state}")
        else:
            return None
        return self._refusal(CommandError("busy", reason))

    # The run.

    async def _carry_out(self, run: ActiveRun) -> None:
        """Carry out a run. The driver is idle and usable afterwards in any case."""
        course = RunCourse(run, self._config, self._suffix, self._distributor, self._writers, self._roots)
        try:
            reason = await course.carry_out(self._enter, self._progress.ring, self.watchers.notify)
            self._unclosed, self._unclosed_uid = run.unclosed_files(), run.start.writer_id
            self._last_result = course.result(reason)
            self._enter(State.ERROR if reason else State.FILE_SAVED, reason)
            self.n_finished["error" if reason else "file_saved"] += 1
            if run.missing_metadata:
                lacks = ", ".join(run.missing_metadata)
                log.event(
                    "run %s: no NXmx file, because values are missing or contradict others: %s", run.id, lacks
                )
            outcome = f"error: {reason}" if reason else "file_saved"
            log.event("run %s: %s, %d images", run.id, outcome, run.account.n_images)
        finally:
            self.totals.end()
            self._run_ended_at = time.monotonic()
            self._rest()

    # The state.

    def _enter(self, state: State, reason: str = "", replied_to: Client | None = None) -> None:
        """Change the state and notify all clients, except one that receives the status as its reply."""
        self._machine.enter(state, reason)
        log.logger.debug("state %s", state.name.lower())
        self.watchers.notify(except_for=replied_to)

    def _rest(self) -> None:
        was_run = self._machine.state.is_run
        self._machine.rest()
        if was_run:
            self.watchers.notify()
        self._notice_retirement()

    def _notice_retirement(self) -> None:
        if self._machine.state is State.RETIRED:
            self._retired.set()

    def _status(self) -> dict[str, Any]:
        return status_message(self._machine, self._writers)

    def _refusal(self, error: CommandError) -> dict[str, Any]:
        self.n_refused[error.error] += 1
        return _refusal(error)


def _missing_metadata(run: ActiveRun) -> dict[str, Any]:
    """Return what a reply says about the NXmx file that a client asks for."""
    return {} if run.missing_metadata is None else {"nexus_missing": run.missing_metadata}


def _refusal(error: CommandError) -> dict[str, Any]:
    if error.error == "busy":
        # Clients of the C++ driver compare this reason.
        return {"status": "rejected", "reason": BUSY_REASON, "detail": str(error), "error": "busy"}
    return {"status": "error", "reason": str(error), "error": error.error}
