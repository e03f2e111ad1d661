"""The main loop of every writer: takes `WriterAction` from the driver, answers, reports progress.

What is written is the business of a `Recorder` (images, or metadata of one detector type). The loop has one
thread and never waits for anything but its sockets, with a timeout: a driver that vanishes leaves a closed,
valid file behind.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import zmq
from google.protobuf.message import DecodeError

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon.batching import Batching
from stddaq.daemon.main import StopRequest
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.daemon.user_switch import UserSwitch
from stddaq.dataplane import connections, endpoints
from stddaq.errors import StdDaqError
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.wire.writer_messages import check_action
from stddaq.writing.master_request import create_as_requested

# A flush costs 0.2 to 0.5 ms. While images keep coming they become visible to readers so often ...
FLUSH_PERIOD_S = 0.2
# ... and at once when they pause, as between the points of a scan ...
QUIET_S = 0.002
# ... though not more often than this.
FLUSH_SPACING_S = 0.005
RECEIVE_LIMIT = 1000
# A driver that is gone for so long does not come back to this run: its file is closed.
DRIVER_ABSENCE_S = 1.0
STOP_DRAIN_S = 0.5
RESPONSE_TIMEOUT_MS = 500
# A C++ driver receives into 512 bytes, and reads beyond them when a response is longer.
MAX_FOREIGN_REASON_BYTES = 480

RecordImages = Sequence[pb.RecordImage]


class Recorder(Protocol):
    """What one kind of writer does with a run. Errors of `open` and `close` become the driver's reason.

    Attributes:
        batch_limit: images that it takes at a time.
    """

    batch_limit: int

    def prepare(self) -> None:
        """Do, before a run, what only the service's own user may do. Raises `StdDaqError`."""
        ...

    def open(self, action: pb.CreateWriterFile) -> None:
        """Create the file of a run. Raises `OSError` or `StdDaqError`, then nothing was created."""
        ...

    def record(self, images: RecordImages) -> None:
        """Write the images. Never raises for one image."""
        ...

    def settle(self) -> None:
        """Wait, for milliseconds, until it is clear of all images recorded whether they are good."""
        ...

    def flush(self) -> bool:
        """Make the images of which that is clear visible to other processes. Whether others are left."""
        ...

    def close(self) -> None:
        """Flush and close the file. Raises `OSError`."""
        ...

    def progress(self, reported: tuple[int, int] = (0, 0)) -> pb.WriterProgress:
        """The account of the run so far, with the ids of what was lost.

        `reported`: numbers of overwritten and failed ids that were reported before, to be left out.
        """
        ...

    def register(self, registry: Registry) -> None:
        """Add its counters to those of the service."""
        ...

    def statistics(self, period: Period) -> dict[str, object]:
        """Return the pairs of the statistics line."""
        ...

    def end_period(self) -> None:
        """Log what the statistics line has not, and start the next period."""
        ...


class WriterLoop:
    """One writer of one driver; see the module."""

    def __init__(
        self, config: DetectorConfig, writer: int | str, recorder: Recorder, registry: Registry
    ) -> None:
        """Bind and connect the sockets of `writer` (its number, or `meta`). Raises `EndpointError`."""
        self._recorder = recorder
        self._owner = UserSwitch(config.switch_user_active)
        recorder.register(registry)
        self._statistics = StatisticsLine(config, registry, recorder.statistics)
        self._context = zmq.Context()
        self._responses = connections.open_socket(self._context, zmq.PUSH)
        # A driver that has just been started may not be connected to us yet.
        self._responses.sndtimeo = RESPONSE_TIMEOUT_MS
        self._actions = connections.open_socket(self._context, zmq.PULL)
        self._monitor = connections.watch_connections(self._actions)
        self._responses_endpoint = endpoints.writer_to_driver(config.detector_name, writer)
        try:
            connections.bind(self._responses, self._responses_endpoint)
            self._actions.connect(endpoints.driver_to_writer(config.detector_name, writer))
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._batching = Batching.of_reader(config)
        self._pause = 0.0
        self._waiting: deque[pb.WriterAction] = deque()
        self._n_malformed = 0
        self._open_path: Path | None = None
        self._uid = 0
        self._run_id = ""
        self._reports_progress = False
        self._reported = (0, 0)
        self._unflushed_since: float | None = None
        self._recorded_at = self._flushed_at = 0.0
        self._driver_gone_since: float | None = None

    def serve(self, stop: StopRequest) -> None:
        """Work until asked to stop; then close the file of a run that is going on, and the sockets."""
        poller = zmq.Poller()
        for source in (self._actions, self._monitor, stop.fileno()):
            poller.register(source, zmq.POLLIN)
        batching = self._batching
        try:
            while not stop.poll():
                events = poller.poll(self._timeout_ms())
                if self._pause and events:
                    time.sleep(self._pause)
                self._pause = batching.pause_after(self._work())
                if self._driver_gone_since is not None or any(
                    source is self._monitor for source, _ in events
                ):
                    self._watch_driver()
                if self._statistics.write_if_due():
                    self._recorder.end_period()
                    self._log_malformed()
            deadline = time.monotonic() + STOP_DRAIN_S
            while self._work() and time.monotonic() < deadline:
                pass
            self._close_left_open("this writer was asked to stop")
        finally:
            self._actions.disable_monitor()
            connections.unbind(self._responses, self._responses_endpoint)
            self._context.destroy(linger=200)

    def _timeout_ms(self) -> int:
        timeout = self._statistics.due_in
        if self._unflushed_since is not None:
            timeout = min(timeout, max(0.0, self._flush_due_at - time.monotonic()))
        if self._driver_gone_since is not None and self._open_path:
            timeout = min(timeout, DRIVER_ABSENCE_S)
        return int(timeout * 1000) + 1

    def _work(self) -> int:
        """Take what waits, in order, and flush when it is time. Returns how many messages were there."""
        waiting = self._waiting
        self._receive(RECEIVE_LIMIT)
        found = len(waiting)
        while waiting:
            images: list[pb.RecordImage] = []
            while (
                waiting and len(images) < self._recorder.batch_limit and waiting[0].HasField("record_image")
            ):
                images.append(waiting.popleft().record_image)
            if images:
                self._record(images)
            self._flush_when_due()
            if waiting and not waiting[0].HasField("record_image"):
                self._act(waiting.popleft())
        self._flush_when_due()
        return found

    @property
    def _flush_due_at(self) -> float:
        """When the images that are not visible yet become so, if no others come until then."""
        since = self._unflushed_since or 0.0
        # A stream that is gathered comes in batches, which are no pauses.
        quiet = QUIET_S + (self._pause if self._pause > QUIET_S / 2 else 0.0)
        paused = max(self._recorded_at + quiet, self._flushed_at + FLUSH_SPACING_S)
        return min(since + FLUSH_PERIOD_S, paused)

    def _flush_when_due(self) -> None:
        if self._unflushed_since is not None and time.monotonic() >= self._flush_due_at:
            self._flush()

    def _receive(self, limit: int) -> None:
        """Move up to `limit` messages from the socket to `_waiting`."""
        receive, decode, append = self._actions.recv, pb.WriterAction.FromString, self._waiting.append
        for _ in range(limit):
            try:
                append(decode(receive(zmq.NOBLOCK)))
            except zmq.Again:
                return
            except DecodeError:
                self._n_malformed += 1

    def _record(self, images: list[pb.RecordImage]) -> None:
        if self._open_path is None:
            return  # Left over from a run that this writer does not take part in.
        self._recorder.record(images)
        self._recorded_at = time.monotonic()
        if self._unflushed_since is None:
            self._unflushed_since = self._recorded_at

    def _flush(self) -> None:
        are_left = self._recorder.flush()
        self._flushed_at = time.monotonic()
        self._unflushed_since = self._flushed_at if are_left else None
        if self._reports_progress:
            progress = self._recorder.progress(self._reported)
            report = pb.WriterResponse(code=pb.SUCCESS, progress=progress, run_id=self._run_id)
            with contextlib.suppress(zmq.Again):  # The next report says more.
                self._responses.send(report.SerializeToString(), zmq.NOBLOCK)
                self._reported = (progress.n_overwritten, progress.n_failed)

    def _act(self, action: pb.WriterAction) -> None:
        """Carry out one request and answer it, with the reason when it fails."""
        kind = action.WhichOneof("action")
        response = pb.WriterResponse(code=pb.SUCCESS, request=action.request)
        try:
            check_action(action)
            if kind == "create_file":
                self._create(action)
            elif kind == "confirm_last_image":
                self._recorder.settle()
                self._flush()
            elif kind == "close_file":
                self._close(discard_if_empty=action.close_file.discard_if_empty)
            elif kind == "create_master_file":
                self._create_master(action.create_master_file)
            else:
                self._n_malformed += 1
                return
        except (OSError, StdDaqError) as error:
            response.code, response.reason = pb.FAILURE, _reason(error)
            log.logger.error("%s failed: %s", kind, response.reason)
        if action.request:
            response.progress.CopyFrom(self._recorder.progress())
            response.run_id = self._run_id
        elif failure := self._recorder.progress().failure:
            response.code, response.reason = pb.FAILURE, failure
        if not action.request:
            response.reason = _end_of(response.reason)
        self._send(response)

    def _create(self, action: pb.WriterAction) -> None:
        self._watch_driver()  # What happened to the connection before concerns earlier runs.
        self._close_left_open("the driver began another run")
        create = action.create_file
        self._recorder.prepare()
        self._owner.become(create.writer_id)
        try:
            self._recorder.open(create)
        except BaseException:
            self._owner.return_to_self()
            raise
        self._open_path, self._uid = Path(create.path), create.writer_id
        self._run_id, self._reports_progress = create.run_id, bool(action.request)
        self._reported = (0, 0)
        log.event("file %s created for uid %d", create.path, create.writer_id)

    def _close(self, discard_if_empty: bool = False) -> None:
        if self._open_path is None:
            return
        path, self._open_path, self._unflushed_since = self._open_path, None, None
        try:
            self._recorder.close()
            n_images = self._recorder.progress().n_written
            if discard_if_empty and not n_images:
                path.unlink(missing_ok=True)
        finally:
            self._owner.return_to_self()
        log.event("file %s closed, %d images", path, n_images)

    def _close_left_open(self, why: str) -> None:
        if self._open_path is None:
            return
        log.logger.warning("closing %s: %s", self._open_path, why)
        try:
            self._close()
        except OSError as error:
            log.logger.error("closing failed: %s", _reason(error))

    def _create_master(self, action: pb.CreateMasterFile) -> None:
        self._owner.become(self._uid)
        try:
            create_as_requested(action)
        finally:
            self._owner.return_to_self()

    def _send(self, response: pb.WriterResponse) -> None:
        try:
            self._responses.send(response.SerializeToString())
        except zmq.Again:
            log.logger.warning("no driver takes the response %s", pb.ResponseCode.Name(response.code))

    def _watch_driver(self) -> None:
        """Notice a driver that vanished, and close the file of its run after a while."""
        for connected in connections.connection_changes(self._monitor):
            if connected and self._driver_gone_since is not None and self._reports_progress:
                # To a driver of ours a writer that was gone for a moment (stopped) is out of the run.
                self._close_left_open("the connection to the driver was broken")
            self._driver_gone_since = None if connected else time.monotonic()
        gone = self._driver_gone_since
        if gone is not None and self._open_path and time.monotonic() - gone >= DRIVER_ABSENCE_S:
            self._close_left_open("the driver is gone")

    def _log_malformed(self) -> None:
        if self._n_malformed:
            log.logger.warning("%d messages from the driver were no valid WriterAction", self._n_malformed)
            self._n_malformed = 0


def _end_of(reason: str) -> str:
    """As much of it as a C++ driver takes; what went wrong stands behind the path."""
    encoded = reason.encode()
    if len(encoded) <= MAX_FOREIGN_REASON_BYTES:
        return reason
    return "..." + encoded[3 - MAX_FOREIGN_REASON_BYTES :].decode(errors="ignore")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
