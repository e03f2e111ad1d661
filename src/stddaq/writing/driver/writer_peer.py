"""The driver's end of the connection to one writer: requests and their answers, liveness, progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import zmq
from google.protobuf.message import DecodeError

from stddaq.daemon import log
from stddaq.dataplane import endpoints
from stddaq.text import shown_text
from stddaq.wire.std_daq import writer_action_pb2 as pb


@dataclass(slots=True)
class Answer:
    """How a writer answered a request: `reason` is empty when it did what was asked."""

    reason: str = ""


@dataclass(slots=True)
class _Request:
    number: int
    sent_at: float
    patience: float
    done: Callable[[Answer], None]


@dataclass(slots=True)
class WriterProgress:
    """What a writer has reported of the current run."""

    n_written: int = 0
    n_overwritten: int = 0
    n_failed: int = 0
    overwritten_ids: list[int] = field(default_factory=list)
    failed_ids: list[int] = field(default_factory=list)
    failure: str = ""


class WriterPeer:
    """One writer as the driver sees it. Belongs to the distributor's thread.

    Attributes:
        name: `0`, `1`, ... or `meta`.
        title: the same in words, for messages.
        connected: whether a writer process holds the other end.
        n_forwarded: images of the current run that were sent to it.
        is_ours: whether it returned the number of the request that it answered last; C++ writers do not.
    """

    def __init__(self, context: zmq.Context, detector_name: str, name: str) -> None:
        """Bind and connect the sockets. Raises `EndpointError`."""
        self.name = name
        self.title = f"writer {name}" if name.isdecimal() else "the metadata writer"
        self.connected = False
        self.n_forwarded = 0
        self.is_ours = False
        self.reported = WriterProgress()
        self.last_heard = 0.0
        self.actions = endpoints.open_socket(context, zmq.PUSH)
        endpoints.watch_for_hanging_peers(self.actions)
        self.responses = endpoints.open_socket(context, zmq.PULL)
        self.monitor = endpoints.watch_connection(self.actions)
        self._endpoint = endpoints.driver_to_writer(detector_name, name)
        endpoints.bind(self.actions, self._endpoint)
        self.responses.connect(endpoints.writer_to_driver(detector_name, name))
        self._requests: list[_Request] = []
        self._n_late = 0  # Answers that a connected writer still owes to requests that were given up.
        self._run_id = ""

    def begin_run(self, run_id: str) -> None:
        """Forget what was reported of the run before."""
        self._run_id = run_id
        self.n_forwarded = 0
        self.reported = WriterProgress()

    def ask(self, action: pb.WriterAction, patience: float, done: Callable[[Answer], None]) -> None:
        """Send a request; `done` is called once, with the answer or with why there is none.

        A connected writer from which nothing is heard for `patience` seconds is given up.
        """
        if not self.connected:
            done(Answer(f"{self.title} is not connected"))
            return
        try:
            self.actions.send(action.SerializeToString(), zmq.NOBLOCK)
        except zmq.Again:
            done(Answer(f"{self.title} takes no messages (more than {endpoints.QUEUE_LIMIT} wait for it)"))
            return
        self._requests.append(_Request(action.request, time.monotonic(), patience, done))

    def take_responses(self) -> bool:
        """Read what the writer sent: answers and progress reports. Whether there was progress."""
        progressed = False
        while cast(int, self.responses.get(zmq.EVENTS)) & zmq.POLLIN:
            try:
                response = pb.WriterResponse.FromString(self.responses.recv(zmq.NOBLOCK))
            except DecodeError:
                continue
            self.last_heard = time.monotonic()
            if response.run_id == self._run_id and response.HasField("progress"):
                self._note_progress(response.progress, complete=bool(response.request))
                progressed = True
            if response.request or not response.HasField("progress"):
                self._match(response)
        return progressed

    def _note_progress(self, progress: pb.WriterProgress, *, complete: bool) -> None:
        reported = self.reported
        reported.n_written = progress.n_written
        reported.n_overwritten = progress.n_overwritten
        reported.n_failed = progress.n_failed
        reported.failure = shown_text(progress.failure)
        if complete:
            reported.overwritten_ids.clear()
            reported.failed_ids.clear()
        reported.overwritten_ids.extend(progress.overwritten_ids)
        reported.failed_ids.extend(progress.failed_ids)

    def _match(self, response: pb.WriterResponse) -> None:
        """Give the answer to its request. One of a request that nobody waits for any more is dropped.

        A writer that does not return numbers (C++) answers in order.
        """
        if not response.request and self._n_late:
            self._n_late -= 1
            return
        for position, request in enumerate(self._requests):
            if response.request in (0, request.number):
                del self._requests[position]
                failed = response.code != pb.SUCCESS
                said = shown_text(response.reason) or "failed without a reason"
                reason = f"{self.title}: {said}" if failed else ""
                self.is_ours = bool(response.request)
                request.done(Answer(reason))
                return

    def watch(self) -> str:
        """Notice a writer that is gone, or does not answer.

        Returns what is wrong, an empty string when nothing is new.
        """
        trouble = ""
        for connected in endpoints.connection_changes(self.monitor):
            self.connected = connected
            log.event("writer %s %s", self.name, "connected" if connected else "disconnected")
            if not connected:
                self._n_late = 0
                trouble = f"{self.title} is gone or hangs; {self.reported.n_written} of "
                trouble += f"{self.n_forwarded} images of this run that it got were written"
                self._drop_requests(trouble)
        if self._requests and (patience := self._overdue()):
            trouble = f"{self.title} did not answer within {patience:g} s; "
            trouble += f"{self.reported.n_written} of {self.n_forwarded} images were written"
            self._n_late += len(self._requests)
            self._drop_requests(trouble)
        return trouble

    def _overdue(self) -> float:
        """How long the oldest request was waited for, in vain; 0 while there is hope."""
        oldest = self._requests[0]
        waited = time.monotonic() - max(oldest.sent_at, self.last_heard)
        return oldest.patience if waited > oldest.patience else 0.0

    def _drop_requests(self, reason: str) -> None:
        requests, self._requests = self._requests, []
        for request in requests:
            request.done(Answer(reason))

    def close(self) -> None:
        """Remove the socket file; the sockets go with their context."""
        self._drop_requests("the driver ends")
        self.actions.disable_monitor()
        endpoints.unbind(self.actions, self._endpoint)
