"""The main loop of every writer: carry out the driver's requests, respond, report progress.

A `Recorder` writes the files. The loop has one thread, which waits only for its sockets and with a timeout,
so that it closes the file of a run whose driver has crashed.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import zmq
from google.protobuf.message import DecodeError

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon.batching import Batching
from stddaq.daemon.isolation import run_in_fork
from stddaq.daemon.main import StopRequest
from stddaq.daemon.metrics import Registry
from stddaq.daemon.replacement import HandedOver, handed_over
from stddaq.daemon.statistics import StatisticsLine
from stddaq.daemon.user_switch import UserSwitch
from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.ipc_sockets import Binding, Connection
from stddaq.errors import StdDaqError
from stddaq.files.hdf5_calls import hdf5_calls
from stddaq.files.limits import MASTER_FILE_TIMEOUT_S
from stddaq.text import mismatch
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.wire.writer_messages import check_action, images_of
from stddaq.writing.writer.driver_presence import DRIVER_ABSENCE_S, DriverPresence
from stddaq.writing.writer.flush_schedule import FlushSchedule, ReportSchedule
from stddaq.writing.writer.recorder import Recorder, RecordImages

# Messages that are received at once, and those of a driver that puts up to 1000 images into one.
RECEIVE_LIMIT, BATCH_LIMIT = 1000, 10
# How long a writer that stops still carries out requests that keep arriving.
STOP_DRAIN_S = 0.5
# A driver that has just started may not be connected yet when the first response is sent.
RESPONSE_TIMEOUT_MS = 500
# Files that are removed or renamed must be noticed within a second; `stddaq repair` waits for some periods.
SHOW_ALIVE_PERIOD_S = 0.5
# For the last responses, when the sockets are closed.
LINGER_MS = 200
# The std_daq driver (C++) receives into a buffer of 512 bytes and reads past its end if a response is longer.
MAX_CPP_REASON_BYTES = 480


class WriterLoop:
    """One writer of one driver."""

    def __init__(
        self,
        config: DetectorConfig,
        writer: int | str,
        recorder: Recorder,
        registry: Registry,
        roots: Sequence[Path] = (),
    ) -> None:
        """Bind and connect the sockets of `writer` (its number, or `meta`). Raise `EndpointError`.

        Master files are made below `roots`, if there are any.
        """
        self._recorder, self._roots = recorder, roots
        self._user = UserSwitch(config.switch_user_active)
        recorder.register(registry)
        self._statistics = StatisticsLine(config, registry, recorder.statistics)
        self._context = zmq.Context()
        self._responses = connections.open_socket(self._context, zmq.PUSH)
        self._responses.linger = LINGER_MS
        self._responses.sndtimeo = RESPONSE_TIMEOUT_MS
        self._actions = connections.open_socket(self._context, zmq.PULL)
        self._drivers = connections.watch_connections(self._responses)
        try:
            responses = endpoints.writer_to_driver(config.detector_name, writer)
            self._binding = Binding(self._responses, responses)
            self._connection = Connection(
                self._actions, endpoints.driver_to_writer(config.detector_name, writer), lost_too=True
            )
            self._monitor = self._connection.monitor
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._config = config
        self._batching = Batching.of_writer(config, driver_batches=False)
        # Left by the process that this one replaces.
        left = handed_over()
        self._waiting = deque(map(pb.WriterAction.FromString, left.requests))
        self._unsent = list(left.answers)
        self._n_malformed = 0
        self._flushes, self._reports, self._driver = FlushSchedule(), ReportSchedule(), DriverPresence()
        # The run that is being written.
        self._open_path: Path | None = None
        self._uid = 0
        self._run_id = ""
        self._reports_progress = False
        self._reported = (0, 0)
        self._show_alive_at = 0.0
        self._stop: StopRequest | None = None

    @property
    def _is_unfit(self) -> bool:
        """Return whether this process must not open another file, because HDF5 has failed in it."""
        return hdf5_calls.failed and self._open_path is None

    def serve(self, stop: StopRequest) -> HandedOver | None:
        """Carry out requests until asked to stop; then close the open file, if any, and the sockets.

        Return what the next process needs if HDF5 has failed in this one: end it without HDF5's clean-up.
        """
        self._stop = stop
        poller = zmq.Poller()
        for source in (self._actions, self._monitor, stop.fileno()):
            poller.register(source, zmq.POLLIN)
        flushes = self._flushes
        try:
            self._send_unsent()
            while not stop.poll() and not self._is_unfit:
                events = poller.poll(self._timeout_ms())
                if flushes.batching_pause and events:
                    time.sleep(flushes.batching_pause)
                n_messages = self._work()
                flushes.batching_pause = self._batching.pause_after(n_messages)
                self._watch_driver()
                if self._open_path and time.monotonic() >= self._show_alive_at:
                    self._show_alive()
                self._watch_sockets()
                if self._statistics.write_if_due():
                    self._recorder.end_period()
                    self._log_malformed()
            if self._is_unfit and not stop.requested:
                return self._hand_over()
            self._send_unsent()
            deadline = time.monotonic() + STOP_DRAIN_S
            while self._work() and time.monotonic() < deadline:
                pass
            self._close_left_open("this writer was asked to stop")
            return HandedOver() if hdf5_calls.failed else None
        finally:
            self._actions.disable_monitor()
            self._responses.disable_monitor()
            self._binding.close()
            self._context.destroy(linger=LINGER_MS)

    def _hand_over(self) -> HandedOver:
        log.logger.warning("HDF5 has failed in this process; it restarts")
        if self._waiting and self._reports_progress:
            # The driver keeps its requests then. It is sent before the connections are closed.
            with contextlib.suppress(zmq.Again):
                self._responses.send(pb.WriterResponse(restarting=True).SerializeToString(), zmq.NOBLOCK)
        requests = [action.SerializeToString() for action in self._waiting]
        return HandedOver(requests, self._unsent)

    def _timeout_ms(self) -> int:
        timeout = min(self._statistics.due_in, self._reports.due_in)
        if (flush_due_in := self._flushes.due_in) is not None:
            timeout = min(timeout, flush_due_in)
        if self._open_path:
            timeout = min(timeout, max(0.0, self._show_alive_at - time.monotonic()))
        if self._driver.is_lost and self._open_path:
            timeout = min(timeout, DRIVER_ABSENCE_S)
        return int(timeout * 1000) + 1

    def _work(self) -> int:
        """Carry out what has arrived, in order. Return how many images and other actions there were."""
        waiting, began = self._waiting, time.monotonic()
        limit = BATCH_LIMIT if self._reports_progress else RECEIVE_LIMIT
        self._receive(limit)
        has_caught_up, n_done = len(waiting) < limit, 0
        while waiting and not self._is_unfit:
            images: list[pb.RecordImage] = []
            while waiting and len(images) < self._recorder.batch_limit and (found := images_of(waiting[0])):
                images.extend(found)
                waiting.popleft()
            if images:
                self._record(images)
            else:
                self._carry_out(waiting.popleft())
            n_done += len(images) or 1
        if has_caught_up:
            self._recorder.caught_up(began)
        self._flush_when_due()
        return n_done

    def _flush_when_due(self) -> None:
        if self._flushes.due_in == 0.0:
            self._flush()
        if not self._reports.due_in:
            self._report_progress()

    def _receive(self, limit: int) -> None:
        """Move up to `limit` messages from the socket to `_waiting`."""
        decode, append = pb.WriterAction.FromString, self._waiting.append
        for message in self._connection.receive(limit):
            try:
                append(decode(message))
            except DecodeError:
                self._n_malformed += 1

    def _record(self, images: RecordImages) -> None:
        limit = self._recorder.batch_limit
        for first in range(0, len(images), limit):
            if self._open_path is None:
                return  # The images belong to a run that this writer has left.
            self._recorder.record(images[first : first + limit])
            self._flushes.recorded()
            self._flush_when_due()

    def _flush(self) -> None:
        begin = time.monotonic()
        images_remain = self._recorder.flush()
        self._flushes.flushed(images_remain, time.monotonic() - begin)
        if self._reports_progress:
            self._reports.flushed(is_fast=self._flushes.batching_pause > 0)

    def _show_alive(self) -> None:
        self._show_alive_at = time.monotonic() + SHOW_ALIVE_PERIOD_S
        if not self._recorder.show_alive() and self._reports_progress:
            self._report_progress()

    def _report_progress(self) -> None:
        self._reports.sent()
        progress = self._recorder.progress(self._reported)
        report = pb.WriterResponse(code=pb.SUCCESS, progress=progress, run_id=self._run_id)
        with contextlib.suppress(zmq.Again):  # The next report contains what this one would have.
            self._responses.send(report.SerializeToString(), zmq.NOBLOCK)
            self._reported = (progress.n_overwritten, progress.n_failed)

    def _carry_out(self, action: pb.WriterAction) -> None:
        """Carry out one request and send the response, with the reason if it has failed."""
        kind = action.WhichOneof("action")
        if kind == "create_file":
            self._watch_driver()  # Earlier changes of the connection concern earlier runs.
            self._close_left_open("the driver has started another run")
            self._reports_progress = bool(action.request)
            self._batching = Batching.of_writer(self._config, driver_batches=self._reports_progress)
            if self._is_unfit:
                self._waiting.appendleft(action)
                return
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
        self._complete(response, action)
        if self._is_unfit and not action.request:
            # A std_daq driver (C++) must not send the next request while this process restarts.
            self._unsent.append(response.SerializeToString())
        else:
            response.restarting = self._is_unfit
            self._send(response.SerializeToString())

    def _complete(self, response: pb.WriterResponse, action: pb.WriterAction) -> None:
        """Add what this driver understands: the std_daq driver (C++) numbers no requests."""
        progress = self._recorder.progress()
        if action.request:
            response.progress.CopyFrom(progress)
            response.run_id = self._run_id
            response.takes_record_images = True
            return
        if progress.failure:
            response.code, response.reason = pb.FAILURE, progress.failure
        response.reason = _shortened(response.reason)

    def _create(self, action: pb.WriterAction) -> None:
        create = action.create_file
        self._recorder.prepare()
        self._user.become(create.writer_id)
        try:
            self._recorder.open(create)
        except BaseException:
            self._user.return_to_self()
            raise
        self._open_path, self._uid = Path(create.path), create.writer_id
        self._run_id = create.run_id
        self._reported = (0, 0)
        log.event("file %s created for uid %d", create.path, create.writer_id)

    def _close(self, discard_if_empty: bool = False) -> None:
        if self._open_path is None:
            return
        path, self._open_path = self._open_path, None
        self._flushes.cancel()
        self._reports.cancel()
        try:
            self._recorder.close(discard_if_empty=discard_if_empty)
            n_images = self._recorder.progress().n_written
        finally:
            self._user.return_to_self()
        log.event("file %s closed, %d images", path, n_images)

    def _close_left_open(self, why: str) -> None:
        """Close the file of a run that no driver will close any more."""
        if self._open_path is None:
            return
        log.logger.warning("closing %s: %s", self._open_path, why)
        try:
            self._close()
        except OSError as error:
            log.logger.error("closing failed: %s", _reason(error))

    def _create_master(self, action: pb.CreateMasterFile) -> None:
        # Not at the top: of several writers one makes the master files, and the modules take memory. Not in
        # the child either: later runs end sooner, and the user may be unable to read the installation.
        from stddaq.writing.master_request import create_as_requested, load_libraries

        load_libraries(action)
        self._user.become(self._uid)
        try:
            # HDF5 may fail, or crash, when there is no space.
            create = functools.partial(create_as_requested, action, self._roots)
            run_in_fork(create, MASTER_FILE_TIMEOUT_S, action.path, self._stop)
        finally:
            self._user.return_to_self()

    def _send_unsent(self) -> None:
        unsent, self._unsent = self._unsent, []
        for response in unsent:
            self._send(response)

    def _send(self, response: bytes) -> None:
        is_stopping = self._stop is not None and self._stop.requested
        try:
            self._responses.send(response, zmq.NOBLOCK if is_stopping else 0)
        except zmq.Again:
            log.logger.warning("no driver is connected; a response is dropped")

    def _watch_driver(self) -> None:
        """Close the file of a run whose driver has disconnected."""
        for connected in connections.connection_changes(self._monitor):
            if self._driver.update(connected) and self._reports_progress:
                # A driver that numbers its requests drops a writer from the run when the connection breaks.
                self._close_left_open("the connection to the driver was interrupted")
        if self._open_path and self._driver.has_left:
            self._close_left_open("the driver has disconnected")

    def _watch_sockets(self) -> None:
        """Mend and report what other processes do to the sockets."""
        if not self._user.is_switched:  # The rights that count are those of the service.
            self._binding.check()
            self._connection.check()
        for n_connections in connections.connection_counts(self._drivers):
            if n_connections > 1:
                processes = ", ".join(connections.connected_processes(self._drivers))
                where = f"receivers of the responses at {self._binding.endpoint}"
                log.logger.error("%s", mismatch(where, "one driver", f"{n_connections}: {processes}"))

    def _log_malformed(self) -> None:
        if self._n_malformed:
            log.logger.warning(
                "%d messages from the driver were not valid WriterAction messages", self._n_malformed
            )
            self._n_malformed = 0


def _shortened(reason: str) -> str:
    """Return as much of a reason as the std_daq driver (C++) takes: its end, because the cause is there."""
    encoded = reason.encode()
    if len(encoded) <= MAX_CPP_REASON_BYTES:
        return reason
    return "..." + encoded[3 - MAX_CPP_REASON_BYTES :].decode(errors="ignore")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
