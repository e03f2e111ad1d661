"""The driver's state machine: what a run is, from `start` to `idle`, and what every client is told of it.

Lives in one asyncio loop, which alone changes the state; images and writers are the distributor's thread's
business. A run is one coroutine, `_run`, that reads like the order of the states.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import shlex
import time
import uuid
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon.isolation import run_in_thread
from stddaq.dataplane.metadata import compression_of
from stddaq.errors import StdDaqError
from stddaq.wire.driver_messages import (
    CommandError,
    PlainCommand,
    StartCommand,
    Status,
    parse_command,
)
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.driver.account import RunAccount
from stddaq.writing.driver.distributor import META, SUBSCRIPTION_TIMEOUT_S, Distributor, Recording
from stddaq.writing.driver.master_process import create_in_own_process
from stddaq.writing.driver.repair import repair_as
from stddaq.writing.driver.start_check import RunFiles, check_start
from stddaq.writing.driver.writer_peer import Answer

# A writer that is being started may take so long to connect; within 2 s a run without it is an error.
WRITER_CONNECT_S = 1.5
POLL_S = 0.01
CHECK_TIMEOUT_S = 10.0
# The master file of a run with very many gaps takes its time: 0.3 s for a thousand, 3 s for ten thousand.
MASTER_FILE_PATIENCE_S = 600.0
# How long the client of a run that has ended may ask for its account before a retiring driver ends.
RESULT_LINGER_S = 2.0
REPAIR_TIMEOUT_S = 60.0
# A status that says that all images so far are readable takes 0.1 ms for each client.
PROGRESS_SPACING_S = 0.002
# Ids or ranges that a message names one by one; the counts are always exact.
LIST_LIMIT = 1000
# At counters that another thread changes; the second look mostly finds them as they were.
MAX_LOOKS = 100


class RunError(StdDaqError):
    """The run cannot go on."""


class Client(Protocol):
    """Somebody who is connected: gets one JSON object per call, at once or never."""

    def tell(self, message: str) -> None:
        """Send, without waiting. A client that does not read is the server's business."""
        ...


class Run:
    """One run: what was asked, what came of it."""

    def __init__(self, start: StartCommand, files: RunFiles, account: RunAccount) -> None:
        self.id = uuid.uuid4().hex
        self.start, self.files, self.account = start, files, account
        self.started_at = datetime.now(UTC)
        self.began = time.monotonic()
        self.stop_requested = asyncio.Event()
        self.first_image = asyncio.Event()
        self.recorded = asyncio.Event()
        self.trouble = ""
        # Names of the writers, as far as they have confirmed it.
        self.created: set[str] = set()
        self.closed: set[str] = set()

    def unclosed_files(self) -> list[Path]:
        """Files that were created, and that their writer has not closed."""
        by_writer = {str(i): path for i, path in enumerate(self.files.raw)}
        if self.files.metadata:
            by_writer[META] = self.files.metadata
        return [path for name, path in by_writer.items() if name in self.created - self.closed]


class Driver:
    """The one run at a time, and the clients that watch it."""

    def __init__(
        self, config: DetectorConfig, suffix: str, distributor: Distributor, roots: Sequence[Path]
    ) -> None:
        self._config, self._suffix, self._distributor, self._roots = config, suffix, distributor, roots
        self._by_arrival = config.image_division == "arrival"
        self._status: Status = "idle"
        self._reason = ""
        self._run: Run | None = None
        self._last_result: dict[str, Any] | None = None
        self._task: asyncio.Task[None] | None = None
        # Of the last run, and the user that they belong to.
        self._unclosed: tuple[list[Path], int] = [], 0
        self._starting = False
        self._stop_early = False
        self._retiring = False
        self._run_ended = -math.inf
        self._telling: asyncio.TimerHandle | None = None
        self._told_at = -math.inf
        self.clients: set[Client] = set()

    # What clients say.

    async def answer(self, client: Client, frame: str | bytes) -> None:
        """Carry out one frame of a client, and reply to it."""
        try:
            command = parse_command(frame)
        except CommandError as error:
            client.tell(_encode({"status": "error", "reason": str(error), "error": error.error}))
            return
        if command.command != "status":  # Devices ask at each point of a scan.
            log.event("received %s", command.model_dump_json(exclude_defaults=True, exclude={"overwrite"}))
        if isinstance(command, StartCommand):
            await self._start(client, command)
        elif command.command == "repair":
            await self._repair(client)
        else:
            self._answer_plain(client, command)

    def _answer_plain(self, client: Client, command: PlainCommand) -> None:
        if command.command == "stop":
            self.request_stop()
        reply = self._message() | {"command": command.command}
        if command.command == "last_result":
            reply["result"] = self._last_result
        client.tell(_encode(reply))

    async def _start(self, client: Client, start: StartCommand) -> None:
        refusal: dict[str, Any] = {"status": "error", "command": "start"}
        if self._retiring:
            log.event("start rejected: the driver is about to end")
            reason = "the driver is about to end and be started again; try again in a moment"
            client.tell(_encode(refusal | {"status": "rejected", "reason": reason, "error": "busy"}))
            return
        # Between this look and setting `_starting` nothing else can run: of two starts one is admitted.
        if self._starting or self._task:
            log.event("start rejected: the driver is busy")
            client.tell(_encode(refusal | self._busy()))
            return
        self._starting, self._stop_early = True, False
        try:
            with_metadata = len(self._distributor.peers) > len(self._distributor.writers)
            files = RunFiles.of(start, self._config.number_of_writers, with_metadata)
            compressed = bool(compression_of(self._suffix))
            await run_in_thread(
                lambda: check_start(start, files, self._config, self._roots, compressed=compressed),
                CHECK_TIMEOUT_S,
                start.path,
            )
        except TimeoutError:
            reason = f"path: the file system of {start.path} did not answer within {CHECK_TIMEOUT_S:g} s"
            client.tell(_encode(refusal | {"reason": reason, "error": "path_not_usable"}))
            return
        except CommandError as error:
            log.event("start refused: %s", error)
            client.tell(_encode(refusal | {"reason": str(error), "error": error.error}))
            return
        finally:
            self._starting = False
        self._run = Run(start, files, RunAccount())
        if self._stop_early:
            self._run.stop_requested.set()
        self._enter("started", replied_to=client)
        client.tell(_encode(self._message() | {"command": "start"}))
        self._task = asyncio.create_task(self._conduct(self._run))

    def _busy(self) -> dict[str, Any]:
        what = f"its state is {self._status}" if self._task else "it checks a start, or repairs files"
        return {"status": "rejected", "reason": f"the driver is busy: {what}", "error": "busy"}

    async def _repair(self, client: Client) -> None:
        """Make the files of the last run, which a writer left behind unclosed, openable for everyone."""
        reply: dict[str, Any] = {"command": "repair"}
        if self._starting or self._task:
            client.tell(_encode(reply | self._busy()))
            return
        self._starting = True
        paths, uid = self._unclosed
        switch, repaired = self._config.switch_user_active, []
        try:
            if paths:
                repaired = await run_in_thread(
                    lambda: repair_as(uid, paths, switch_user_active=switch, within=REPAIR_TIMEOUT_S),
                    REPAIR_TIMEOUT_S + 1.0,
                    "repair",
                )
        except OSError as error:  # A timeout is one, too.
            reason = f"the files of the last run cannot be repaired: {error}"
            client.tell(_encode(reply | {"status": "error", "reason": reason, "error": "path_not_usable"}))
            return
        finally:
            self._starting = False
        client.tell(_encode(self._message() | reply | {"repaired": repaired}))

    def request_stop(self) -> None:
        """End the run, whatever its state; nothing when there is none."""
        self._stop_early = True
        if self._run:
            self._run.stop_requested.set()

    # The course of a run.

    async def _conduct(self, run: Run) -> None:
        """Carry out a run; whatever happens, the driver is idle and usable afterwards."""
        reason = await self._attempt(self._record(run))
        if reason:
            await self._attempt(self._close_after_error(run))
            if paths := run.unclosed_files():
                reason += f"; when its writer has ended: {shlex.join(['stddaq', 'repair', *map(str, paths)])}"
        self._unclosed = run.unclosed_files(), run.start.writer_id
        try:
            self._last_result = self._result(run, reason)
            self._enter("error" if reason else "file_saved", reason)
            outcome = f"error: {reason}" if reason else "file_saved"
            log.event("run %s: %s, %d images", run.id, outcome, run.account.count)
        finally:
            self._run_ended = time.monotonic()
            self._run = self._task = None
            self._enter("idle")

    async def _attempt(self, step: Coroutine[Any, Any, None]) -> str:
        """Why the step failed; an empty string when it did not."""
        try:
            await step
        except RunError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  (a defect must not leave the driver busy)
            log.logger.exception("the run failed unexpectedly")
            return f"unexpected {type(error).__name__}: {error}"
        return ""

    async def _record(self, run: Run) -> None:
        """All states between `started` and `file_saved`."""
        self._enter("creating_file")
        await self._wait_for_writers()
        await self._call(lambda: self._distributor.begin_run(run.id))
        await self._ask_all(self._create_file_actions(run))
        self._enter("file_created")
        if not run.stop_requested.is_set():
            await self._wait_for_images(run)
        if run.stop_requested.is_set() and not run.trouble:
            self._enter("stop")
        await self._call(self._distributor.end_recording)
        if run.trouble:
            raise RunError(run.trouble)
        # Still `recording` (or `stop`) until all images are in the files: then the count is exact.
        await self._ask_all(self._same_action(confirm_last_image=pb.ConfirmLastImage()))
        self._check_all_written()
        self._enter("saving_file")
        await self._ask_all(self._same_action(close_file=pb.CloseWriterFile()))
        await self._finish(run)

    async def _wait_for_images(self, run: Run) -> None:
        """`waiting_for_first_image` and `recording`, until all images are there, or a stop, or trouble."""
        deadline = time.monotonic() + SUBSCRIPTION_TIMEOUT_S
        while not await self._call(self._distributor.is_subscribed) and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        loop = asyncio.get_running_loop()

        def end(trouble: str) -> None:
            # Ending the recording of a run that is in trouble already brings no reason of its own.
            run.trouble = run.trouble or trouble
            run.recorded.set()

        recording = Recording(
            run.start.n_image,
            run.start.start_id,
            self._by_arrival,
            run.start.end_on_restart,
            run.account,
            on_first_image=lambda: _from_thread(loop, run.first_image.set),
            on_end=lambda trouble: _from_thread(loop, end, trouble),
            on_caught_up=lambda: _from_thread(loop, self._tell_progress),
        )
        # Announced when it is true: whoever triggers the camera upon it misses nothing.
        await self._call(lambda: self._distributor.record(recording))
        self._enter("waiting_for_first_image")
        await _first_of(
            run.first_image, run.recorded, run.stop_requested, timeout=run.start.first_image_timeout
        )
        if run.first_image.is_set():
            self._enter("recording")
        elif not (run.recorded.is_set() or run.stop_requested.is_set()):
            run.trouble = f"no image came within {run.start.first_image_timeout:g} s"
            return
        await _first_of(run.recorded, run.stop_requested)

    def _check_all_written(self) -> None:
        """Raise `RunError` when a writer does not account for each image that it got."""
        for peer in self._distributor.peers:
            accounted = peer.reported.n_written + peer.reported.n_failed
            if accounted != peer.n_forwarded:
                raise RunError(
                    f"{peer.title} has written {peer.reported.n_written} of the {peer.n_forwarded} "
                    "images that it got"
                )

    async def _finish(self, run: Run) -> None:
        """What belongs to a run whose raw files are complete and closed."""
        failed = [peer for peer in self._distributor.writers if peer.reported.n_failed]
        if failed:
            raise RunError(
                "; ".join(f"writer {p.name} failed to write {p.reported.n_failed} images" for p in failed)
            )
        await self._create_master_file(run)
        n_overwritten = sum(peer.reported.n_overwritten for peer in self._distributor.writers)
        if run.start.strict and n_overwritten:
            raise RunError(
                f"{n_overwritten} images were overwritten in the ring buffer before they were written"
            )

    async def _close_after_error(self, run: Run) -> None:
        """Let the writers that are still there close valid files."""
        await self._call(self._distributor.end_recording)
        # Empty files of a run that recorded nothing would only be in the way of the next try.
        actions = self._same_action(close_file=pb.CloseWriterFile(discard_if_empty=not run.account.count))
        connected = {p.name: actions[p.name] for p in self._distributor.peers if p.connected}
        await self._answers(connected)

    # The writers.

    async def _wait_for_writers(self) -> None:
        deadline = time.monotonic() + WRITER_CONNECT_S
        while missing := [peer.title for peer in self._distributor.peers if not peer.connected]:
            if time.monotonic() > deadline:
                raise RunError(f"not connected: {', '.join(missing)}; nothing was created")
            await asyncio.sleep(POLL_S)

    def _create_file_actions(self, run: Run) -> dict[str, pb.WriterAction]:
        start, n_writers = run.start, self._config.number_of_writers
        common = pb.CreateWriterFile(
            writer_id=start.writer_id,
            overwrite=start.overwrite,
            number_of_writers=n_writers,
            division=pb.by_arrival if self._by_arrival else pb.by_image_id,
            run_id=run.id,
            source=self._suffix,
        )
        actions: dict[str, pb.WriterAction] = {}
        for i, path in enumerate(run.files.raw):
            action = pb.WriterAction(create_file=common)
            action.create_file.path = str(path)
            action.create_file.expected_images = -(-start.n_image // n_writers)
            actions[str(i)] = action
        if run.files.metadata:
            action = pb.WriterAction(create_file=common)
            action.create_file.path = str(run.files.metadata)
            actions[META] = action
        return actions

    def _same_action(
        self,
        confirm_last_image: pb.ConfirmLastImage | None = None,
        close_file: pb.CloseWriterFile | None = None,
    ) -> dict[str, pb.WriterAction]:
        return {
            peer.name: pb.WriterAction(confirm_last_image=confirm_last_image, close_file=close_file)
            for peer in self._distributor.peers
        }

    async def _answers(
        self, actions: dict[str, pb.WriterAction], patience: float | None = None
    ) -> dict[str, Answer]:
        answers = await asyncio.wrap_future(self._distributor.ask(actions, patience))
        if run := self._run:
            done = {name for name, answer in answers.items() if not answer.reason}
            run.created |= {name for name in done if actions[name].HasField("create_file")}
            run.closed |= {name for name in done if actions[name].HasField("close_file")}
        return answers

    async def _ask_all(self, actions: dict[str, pb.WriterAction], patience: float | None = None) -> None:
        """Ask all writers named, wait for their answers. Raises `RunError` with every failure."""
        answers = await self._answers(actions, patience)
        for peer in self._distributor.peers:
            # A foreign writer reports no numbers; what it confirms is all that it got.
            if (answer := answers.get(peer.name)) and not answer.reason and not peer.is_ours:
                peer.reported.n_written = peer.n_forwarded
        reasons = [answer.reason for answer in answers.values() if answer.reason]
        reasons += [f"{p.title}: {p.reported.failure}" for p in self._distributor.peers if p.reported.failure]
        if reasons:
            raise RunError("; ".join(dict.fromkeys(reasons)))

    async def _create_master_file(self, run: Run) -> None:
        action = pb.CreateMasterFile(
            path=str(run.files.master),
            raw_files=[str(path) for path in run.files.raw],
            metadata_file=str(run.files.metadata or ""),
            account=json.dumps(self._result(run, "", list_limit=None)),
            overwrite=run.start.overwrite,
        )
        ours = next((peer for peer in self._distributor.writers if peer.is_ours), None)
        if ours:
            # Our writers act as the user that owns the files, and have HDF5 loaded.
            request = pb.WriterAction(create_master_file=action)
            await self._ask_all({ours.name: request}, patience=MASTER_FILE_PATIENCE_S)
            return
        try:
            await create_in_own_process(
                action, run.start.writer_id, switch_user_active=self._config.switch_user_active
            )
        except (OSError, RuntimeError, StdDaqError) as error:
            raise RunError(f"the master file was not made: {error}") from error

    async def _call(self, function: Any) -> Any:
        return await asyncio.wrap_future(self._distributor.call(function))

    # What clients are told.

    def _enter(self, status: Status, reason: str = "", replied_to: Client | None = None) -> None:
        """Change the state, and tell everybody at once (but not a client that gets it as its reply)."""
        self._status, self._reason = status, reason
        log.logger.debug("state %s", status)
        self.tell_all(except_for=replied_to)

    def tell_all(self, except_for: Client | None = None) -> None:
        """Send the status to every client."""
        if not self.clients:
            return
        message = _encode(self._message())
        for client in self.clients:
            if client is not except_for:
                client.tell(message)

    def _tell_progress(self) -> None:
        """Tell everybody that all images so far are readable, though not more often than they can use it.

        Whoever waits for the images of one point of a scan learns of them at once, and not at 10 Hz.
        """
        if self._telling:
            return
        loop = asyncio.get_running_loop()
        wait = self._told_at + PROGRESS_SPACING_S - loop.time()
        if wait > 0:
            self._telling = loop.call_later(wait, self._tell_progress_now)
        else:
            self._tell_progress_now()

    def _tell_progress_now(self) -> None:
        self._telling = None
        self._told_at = asyncio.get_running_loop().time()
        self.tell_all()

    def greeting(self) -> str:
        """The status, for a client that has just connected."""
        return _encode(self._message())

    def _message(self) -> dict[str, Any]:
        # `run_id` even when there is no run: by it clients know a driver that marks its replies.
        message: dict[str, Any] = {"status": self._status, "run_id": None}
        run = self._run
        if self._status in ("recording", "stop", "saving_file", "file_saved", "error"):
            message["count"] = self._count()
        if self._reason:
            message["reason"] = self._reason
        if run:
            writers = self._distributor.writers
            # After the count and before what else is said of these images, for they keep coming.
            forwarded = self._forwarded()
            message |= {
                "run_id": run.id,
                "n_image": run.start.n_image,
                "n_received": run.account.count,
                "n_damaged": len(run.account.damaged_ids),
                "n_overwritten": sum(peer.reported.n_overwritten for peer in writers),
                "n_failed": sum(peer.reported.n_failed for peer in writers),
                "n_skipped": run.account.n_skipped,
                "n_restarts": run.account.restarts,
                "writers": [
                    {"writer": int(p.name), "n_forwarded": n, "n_written": p.reported.n_written}
                    for p, n in zip(writers, forwarded, strict=True)
                ],
                "files": run.files.as_json(),
            }
        return message

    def _forwarded(self) -> list[int]:
        """Images sent to each writer, all at one moment, though the distributor's thread goes on.

        Two looks in a row that find the same: there was no image between them. Whoever reads growing files
        has to know which images are yet to come between those that are there.
        """
        found: list[int] = []
        for _ in range(MAX_LOOKS):
            before, found = found, [peer.n_forwarded for peer in self._distributor.writers]
            if found == before:
                break
        return found

    def _count(self) -> int:
        """Images recorded: written and readable by other processes, or failed.

        Of a foreign writer, which reports nothing before the end, those that it got.
        """
        return sum(
            peer.reported.n_written + peer.reported.n_failed if peer.is_ours else peer.n_forwarded
            for peer in self._distributor.writers
        )

    def _result(self, run: Run, reason: str, list_limit: int | None = LIST_LIMIT) -> dict[str, Any]:
        """The account of a run, as in the master file, which lists everything; see `RunAccount`."""
        overwritten: list[int] = []
        failed: list[int] = []
        for number, peer in enumerate(self._distributor.writers):
            overwritten += peer.reported.overwritten_ids
            failed += self._failed_ids(run, number)
        finished = datetime.now(UTC)
        return {
            "run_id": run.id,
            "outcome": "error" if reason else "file_saved",
            **({"reason": reason} if reason else {}),
            "source": self._suffix,
            "image_division": self._config.image_division,
            "number_of_writers": self._config.number_of_writers,
            "n_image": run.start.n_image,
            "start_id": run.start.start_id,
            **run.account.result(sorted(overwritten), sorted(failed), list_limit),
            "files": run.files.as_json(),
            "started_at": run.started_at.isoformat(),
            "finished_at": finished.isoformat(),
            "duration_s": round(time.monotonic() - run.began, 6),
        }

    def _failed_ids(self, run: Run, number: int) -> list[int]:
        """Ids that a writer got and did not confirm; what it named itself, when it confirmed the rest."""
        peer = self._distributor.writers[number]
        reported = peer.reported
        if reported.n_written + len(reported.failed_ids) == peer.n_forwarded:
            return reported.failed_ids
        ids = run.account.ids_of(number, self._config.number_of_writers, self._by_arrival)
        named = set(reported.failed_ids)
        others = (image_id for image_id in ids if image_id not in named)
        # What a writer claims beyond what it got is not believed.
        return [
            *reported.failed_ids,
            *itertools.islice(others, min(reported.n_written, peer.n_forwarded), None),
        ]

    async def retire(self) -> None:
        """Admit no further run; return when the present one has ended and its account could be asked for."""
        self._retiring = True
        while self._starting or self._task:
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(self._run_ended + RESULT_LINGER_S - time.monotonic())

    async def shut_down(self, within: float) -> None:
        """End the run that goes on, if any, as by `stop`; give up after `within` seconds."""
        self.request_stop()
        if task := self._task:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), within)


async def _first_of(*events: asyncio.Event, timeout: float | None = None) -> None:
    """Wait until one of the events is set."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _from_thread(loop: asyncio.AbstractEventLoop, function: Any, *arguments: Any) -> None:
    """Run `function` in the loop, which may have ended already."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def _encode(message: dict[str, Any]) -> str:
    return json.dumps(message)
