"""The driver's view of one writer: its connection, its pending requests and its reports.

`WriterPeer` does no I/O: it is fed with messages and changes of the connection. `WriterConnection` adds the
sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zmq
from google.protobuf.message import DecodeError

from stddaq.daemon import log
from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.ipc_sockets import Binding, Connection
from stddaq.text import mismatch, shown_text
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.wire.writer_messages import encode_record_images

# Images that a writer may be late. In its queue and in that of the driver they take about 100 MB.
UNWRITTEN_LIMIT = 1_000_000


@dataclass(slots=True)
class Answer:
    """The answer to a request: `reason` says why it failed, and is empty when it did not.

    `timed_out`: the writer has not answered yet.
    """

    reason: str = ""
    timed_out: bool = False


@dataclass(slots=True)
class _PendingRequest:
    number: int
    sent_at: float
    timeout: float
    on_answer: Callable[[Answer], None]


@dataclass(slots=True)
class WriterProgress:
    """The reports of a writer about the current run."""

    n_written: int = 0
    n_overwritten: int = 0
    n_failed: int = 0
    overwritten_ids: list[int] = field(default_factory=list)
    failed_ids: list[int] = field(default_factory=list)
    failure: str = ""


class WriterPeer:
    """The state of one writer, without I/O.

    Attributes:
        name: `0`, `1`, ... or `meta`.
        title: the name in words, for messages.
        is_restarting: it has announced that it disconnects and connects again.
        n_forwarded: images of the current run that were sent to it, or are just about to be.
        has_extensions: whether it returned the number of the request that it answered last: it reports
            progress and can create master files. C++ writers do not.
        takes_record_images: whether that answer said that several images may come in one message.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.title = f"writer {name}" if name.isdecimal() else "the metadata writer"
        self._n_connections = 0
        self._crowd = self._denial = ""
        self.n_forwarded = 0
        self.has_extensions = self.takes_record_images = False
        self.reported = WriterProgress()
        self._clock = clock
        self._requests: list[_PendingRequest] = []
        # Answers that a connected C++ writer still owes to requests that have timed out.
        self._n_late = 0
        self._advanced_at = 0.0
        self._run_id = ""
        self.is_restarting = False

    def begin_run(self, run_id: str) -> None:
        """Discard the reports of the last run."""
        self._run_id = run_id
        self.n_forwarded = 0
        self.reported = WriterProgress()

    def expect_answer(self, number: int, timeout: float, on_answer: Callable[[Answer], None]) -> None:
        """Note a request that was sent. `on_answer` is called once, with the answer or a failure.

        The request fails after `timeout` seconds in which the writer made no progress.
        """
        self._requests.append(_PendingRequest(number, self._clock(), timeout, on_answer))

    @property
    def awaits_answers(self) -> bool:
        """Whether requests are pending."""
        return bool(self._requests)

    def receive(self, message: bytes) -> bool:
        """Process an answer or a progress report. Return whether it reports progress of this run."""
        try:
            response = pb.WriterResponse.FromString(message)
        except DecodeError:
            return False
        if response.restarting:
            self.is_restarting = True
            if not response.request:
                return False
        is_progress = response.HasField("progress") and response.run_id == self._run_id
        if is_progress:
            self._receive_progress(response.progress, complete=bool(response.request))
        if response.request or not response.HasField("progress"):
            self._receive_answer(response)
        return is_progress

    def _receive_progress(self, progress: pb.WriterProgress, *, complete: bool) -> None:
        reported = self.reported
        # Only progress counts as a sign of life. It is bounded by the images that were sent, and so is the
        # time that a request can take.
        if reported.n_written + reported.n_failed < min(
            progress.n_written + progress.n_failed, self.n_forwarded
        ):
            self._advanced_at = self._clock()
        reported.n_written = progress.n_written
        reported.n_overwritten = progress.n_overwritten
        reported.n_failed = progress.n_failed
        reported.failure = shown_text(progress.failure)
        if complete:
            reported.overwritten_ids.clear()
            reported.failed_ids.clear()
        reported.overwritten_ids.extend(progress.overwritten_ids)
        reported.failed_ids.extend(progress.failed_ids)

    def _receive_answer(self, response: pb.WriterResponse) -> None:
        """Match an answer to its request. Answers to requests that have timed out are dropped.

        C++ writers return no numbers; they answer in order.
        """
        if not response.request and self._n_late:
            self._n_late -= 1
            return
        for position, request in enumerate(self._requests):
            if response.request in (0, request.number):
                del self._requests[position]
                self._advanced_at = self._clock()
                self.has_extensions = bool(response.request)
                self.takes_record_images = response.takes_record_images
                failure = shown_text(response.reason) or "failed without a reason"
                failed = response.code != pb.SUCCESS
                request.on_answer(Answer(f"{self.title}: {failure}" if failed else ""))
                return

    @property
    def connected(self) -> bool:
        """Whether a writer process is connected, and nothing keeps it from taking part in a run."""
        return self._n_connections > 0 and not (self.is_restarting or self.obstacle)

    @property
    def obstacle(self) -> str:
        """Why a writer that is connected cannot take part in a run; empty if it can."""
        return self._crowd or self._denial

    def connections_changed(self, n_connections: int, processes: Sequence[str] = ()) -> str:
        """Note that the writer connected or disconnected. Return what is wrong with the run, if anything.

        All pending requests of a writer that disconnects fail, unless it restarts: it answers afterwards.
        They also fail if the writer is not alone, because each process receives a part of the images.
        `processes`: what is connected, in words.
        """
        is_lost, self._n_connections = n_connections < self._n_connections, n_connections
        self._crowd = failure = ""
        if is_lost and not self.is_restarting:
            self._n_late = 0
            failure = f"{self.title} exited or hangs; {self._written_so_far()}"
        if n_connections:
            self.is_restarting = False
        if n_connections > 1:
            got = f"{n_connections}: {', '.join(processes)}"
            self._crowd = failure = mismatch(self.title, "one process", got, "stop all but one")
        if failure:
            self.fail_requests(failure)
        return failure

    def denied(self, problem: str) -> str:
        """Note why this process may not receive from the writer, if so. Return what is newly wrong."""
        denial = problem and f"{self.title}: {problem}"
        if denial == self._denial:
            return ""
        self._denial = denial
        if denial:
            self.fail_requests(denial)
        return denial

    def expire_requests(self) -> str:
        """Fail all requests when the oldest has timed out. Return the reason, or an empty string."""
        if not self._requests:
            return ""
        oldest = self._requests[0]
        if self._clock() - max(oldest.sent_at, self._advanced_at) <= oldest.timeout:
            return ""
        failure = f"{self.title} did not answer within {oldest.timeout:g} s; {self._written_so_far()}"
        self._n_late += len(self._requests)
        self.fail_requests(failure, timed_out=True)
        return failure

    def fail_requests(self, reason: str, *, timed_out: bool = False) -> None:
        """Answer all pending requests with `reason`."""
        requests, self._requests = self._requests, []
        for request in requests:
            request.on_answer(Answer(reason, timed_out))

    def _written_so_far(self) -> str:
        return f"it confirmed {self.reported.n_written} of the {self.n_forwarded} images sent to it"


class WriterConnection(WriterPeer):
    """A writer with its sockets. Belongs to the distributor's thread.

    Attributes:
        actions: sends requests and images.
        responses, monitor: to be polled; `receive_responses` and `check` read them.
    """

    def __init__(self, context: zmq.Context, detector_name: str, name: str) -> None:
        """Bind and connect the sockets. Raises `EndpointError`."""
        super().__init__(name)
        self.actions = connections.open_socket(context, zmq.PUSH)
        connections.watch_for_hanging_peers(self.actions)
        self.responses = connections.open_socket(context, zmq.PULL)
        self.monitor = connections.watch_connections(self.actions)
        self._images: list[bytes] = []
        self._binding = Binding(self.actions, endpoints.driver_to_writer(detector_name, name))
        self._connection = Connection(self.responses, endpoints.writer_to_driver(detector_name, name))

    def request(self, action: pb.WriterAction, timeout: float, on_answer: Callable[[Answer], None]) -> None:
        """Send a request; see `expect_answer`."""
        if not self.connected:
            on_answer(Answer(self.obstacle or f"{self.title} is not connected"))
            return
        try:
            self.actions.send(action.SerializeToString(), zmq.NOBLOCK)
        except zmq.Again:
            on_answer(Answer(self._slow(f"{connections.QUEUE_LIMIT} messages are queued")))
            return
        self.expect_answer(action.request, timeout, on_answer)

    def forward(self, image: bytes) -> None:
        """Note an image that `deliver` is to send, from `encode_record_image`."""
        self.n_forwarded += 1
        self._images.append(image)

    def deliver(self) -> str:
        """Send the images that were noted. Return why this is impossible, an empty string if it is not.

        One message for all of them: each costs both processes more than the image in it. 3 us.
        """
        images = self._images
        if not images:
            return ""
        self._images = []
        try:
            for message in [encode_record_images(images)] if self.takes_record_images else images:
                self.actions.send(message, zmq.NOBLOCK)
        except zmq.Again:
            # A writer that has just disconnected accepts no messages either.
            if failure := self.check():
                return failure
            if not self.connected:
                return f"{self.title} disconnected"
            return self._slow(f"{connections.QUEUE_LIMIT} messages are queued")
        reported = self.reported
        if (
            self.has_extensions
            and self.n_forwarded - reported.n_written - reported.n_failed > UNWRITTEN_LIMIT
        ):
            return self._slow(f"more than {UNWRITTEN_LIMIT} images are to be written")
        return ""

    def _slow(self, backlog: str) -> str:
        # The file of the metadata writer is never shared among several.
        more = "more writers, " if self.name.isdecimal() else ""
        advice = f"use {more}faster storage or a lower rate (`stddaq doctor CONFIG --rate HZ` measures it)"
        return f"{self.title} does not keep up: {backlog}; {advice}"

    def receive_responses(self) -> bool:
        """Read messages of the writer. Return whether it reports progress."""
        progressed = False
        if connections.has_message(self.responses):
            for message in self._connection.receive(connections.RECEIVE_LIMIT):
                progressed |= self.receive(message)
        return progressed

    def receive_response(self) -> bool:
        """Read the message that has arrived. Return whether it reports progress."""
        return any(map(self.receive, self._connection.receive(1)))

    def check(self) -> str:
        """Check connections, timeouts and the socket file. Return what is newly wrong, if anything."""
        failure = ""
        self._binding.check()
        self._connection.check()
        for n_connections in connections.connection_counts(self.monitor):
            is_new = n_connections > self._n_connections
            if not is_new:
                self.receive_responses()  # What it sent before; it may restart.
            log.event("writer %s %s", self.name, "connected" if is_new else "disconnected")
            if is_new:
                self._connection.check_now()
            processes = connections.connected_processes(self.monitor) if n_connections > 1 else ()
            failure = self.connections_changed(n_connections, processes) or failure
            if self._crowd:
                log.logger.error("%s", self._crowd)
        failure = self.denied(self._connection.problem) or failure
        return self.expire_requests() or failure

    def close(self) -> None:
        """Remove the socket file. The sockets are closed with their context."""
        self.fail_requests("the driver exits")
        self.actions.disable_monitor()
        self._binding.close()
