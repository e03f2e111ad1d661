"""The data path of the driver: one thread that owns all its ZeroMQ sockets and forwards metadata.

The asyncio side uses `call`, which runs a function in the thread, and reads plain counters. An image costs
one receive and one check of its metadata; the received bytes with two tags in front are sent to its writer in
one message with the others of the same read. No message is built on the way.
"""

from __future__ import annotations

import functools
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar, cast

import zmq
from google.protobuf.message import DecodeError

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon.batching import SLOW_GAP_S, Batching
from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.ipc_sockets import Connection
from stddaq.dataplane.local_peers import accepts_connections
from stddaq.dataplane.metadata import ImageMetadata, MetadataRules, is_ring
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.wire.writer_messages import encode_record_image
from stddaq.writing.driver.account import RunAccount
from stddaq.writing.driver.writer_peer import Answer, WriterConnection

T = TypeVar("T")
META = "meta"
# Between runs messages are read and dropped; the thread sleeps this long to read many at once.
IDLE_PAUSE_S = 0.01
BATCH_LIMIT = 1000
# Progress reports and disconnected writers are handled this often while images keep arriving.
CONTROL_PERIOD_S = 0.025
POLL_MS = 250
# While nothing but images arrives, one by one, writers and sockets are checked this often.
CHECK_PERIOD_S = 0.25
# Between runs, nothing but the removal of a socket file has to be noticed, within a second.
IDLE_POLL_MS = 1000
# A publisher acts on a received subscription within a millisecond.
SUBSCRIPTION_SETTLE_S = 0.03
SUBSCRIPTION_TIMEOUT_S = 1.0
SUB_RECONNECT_MS = 50


@dataclass(slots=True)
class RecordingJob:
    """The recording of one run by the distributor.

    Attributes:
        account: counts the images. Its counters may be read from any thread.
        on_first_image, on_end: called once each, in the distributor's thread; `on_end` with a reason when
            the run has failed, else with an empty string.
        on_caught_up: called there when every image so far is written and readable, as between the points of
            a scan; seldom while images keep arriving.
        is_open: whether further images are recorded.
    """

    n_image: int
    start_id: int
    by_arrival: bool
    end_on_restart: bool
    account: RunAccount
    on_first_image: Callable[[], None]
    on_end: Callable[[str], None]
    on_caught_up: Callable[[], None]
    is_open: bool = True


class Distributor:
    """Divides the images of a metadata stream over the writers."""

    def __init__(
        self, config: DetectorConfig, suffix: str, *, with_metadata_writer: bool, writer_timeout: float
    ) -> None:
        """Bind and connect the sockets; `start` runs the thread. Raises `EndpointError`.

        A request fails after `writer_timeout` seconds without an answer or progress.
        """
        self._writer_timeout = writer_timeout
        self._rules = MetadataRules(config, suffix)
        # A stream of metadata only carries the sequence numbers of the ring, and leaves some out.
        self._sequence_counts = is_ring(suffix)
        self._stream = endpoints.metadata_stream(config.detector_name, suffix)
        self._context = zmq.Context()
        try:
            self.writers = [
                WriterConnection(self._context, config.detector_name, str(i))
                for i in range(config.number_of_writers)
            ]
            self._meta = (
                WriterConnection(self._context, config.detector_name, META) if with_metadata_writer else None
            )
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self.peers = [*self.writers, *([self._meta] if self._meta else [])]
        self._subscribe()
        # No earlier driver has used these numbers, so late answers to its requests match none here.
        self._request_numbers = itertools.count(time.time_ns())
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._job: RecordingJob | None = None
        self._connected_at: float | None = None
        self._control_at = 0.0
        self._batching = Batching.of_driver(config)
        self._ended = False
        self.n_received = 0
        self._thread = threading.Thread(target=self._serve, name="distributor", daemon=True)

    def _subscribe(self) -> None:
        # The driver stays subscribed, so that no image can be missed while a run starts.
        self._subscriber = connections.open_socket(self._context, zmq.SUB)
        self._subscriber.reconnect_ivl = self._subscriber.reconnect_ivl_max = SUB_RECONNECT_MS
        self._subscriber.subscribe(b"")
        self._source = Connection(self._subscriber, self._stream)
        self._subscriber_monitor = self._source.monitor

    def start(self) -> None:
        """Run the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the sockets, within 2 s."""
        self.call(self._end)
        self._thread.join(timeout=2.0)
        os.close(self._wake)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` in the thread. The future holds its result or its exception."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:  # noqa: BLE001  (the caller raises it)
                    future.set_exception(error)

        self._inbox.put(run)
        os.eventfd_write(self._wake, 1)
        return future

    def ask(
        self, actions: Mapping[str, pb.WriterAction], timeout: float | None = None
    ) -> Future[dict[str, Answer]]:
        """Send each named writer its request. The future holds the answers of all of them.

        `timeout` in seconds replaces `writer_timeout` for requests that take longer.
        """
        timeout = timeout or self._writer_timeout
        future: Future[dict[str, Answer]] = Future()
        answers: dict[str, Answer] = {}

        def receive(name: str, answer: Answer) -> None:
            answers[name] = answer
            if len(answers) == len(actions) and not future.done():
                future.set_result(answers)

        def send() -> None:
            if not actions:
                future.set_result(answers)
            try:
                for peer in self.peers:
                    if action := actions.get(peer.name):
                        action.request = next(self._request_numbers)
                        peer.request(action, timeout, functools.partial(receive, peer.name))
            except Exception as error:  # noqa: BLE001  (a request that was not sent is never answered)
                future.set_exception(error)

        self.call(send)
        return future

    # Everything below runs in the thread, by `call` or from `_serve`.

    def begin_run(self, run_id: str) -> None:
        """Discard the writers' reports of the last run."""
        for peer in self.peers:
            peer.begin_run(run_id)

    def record(self, job: RecordingJob) -> None:
        """Record from now on. Images that were published before are dropped."""
        self._job = None
        for _ in range(connections.RECEIVE_LIMIT // BATCH_LIMIT):
            if self._take_images() < BATCH_LIMIT:
                break
        self._job = job
        absent = [peer.obstacle or peer.title for peer in self.peers if not peer.connected]
        if absent:
            self._end_recording(f"disconnected since its file was created: {', '.join(absent)}")
        elif job.n_image == 0:
            self._end_recording("")

    def end_recording(self) -> None:
        """Record the received images and no more, because of a stop or a failure."""
        while self._job and self._take_images() == BATCH_LIMIT:
            pass
        self._end_recording("")

    def _end_recording(self, reason: str) -> None:
        job, self._job = self._job, None
        if job:
            job.is_open = False
            job.on_end(reason)

    def subscription_problem(self) -> str:
        """Return why the subscription can never be received, an empty string if it can."""
        return "" if self._connected_at is not None else self._source.check_now()

    def is_subscribed(self) -> bool:
        """Return whether a publisher has received the subscription, or none is running."""
        if self._connected_at is not None:
            return time.monotonic() - self._connected_at >= SUBSCRIPTION_SETTLE_S
        return not accepts_connections(self._stream)

    def _serve(self) -> None:
        poller = zmq.Poller()
        monitors = [*(peer.monitor for peer in self.peers), self._subscriber_monitor]
        # Monitors are always read to their end, so that their descriptors tell when there is more. zmq_poll
        # takes four system calls for each socket instead.
        events = {self._wake, *(cast(int, monitor.get(zmq.FD)) for monitor in monitors)}
        for source in (*events, self._subscriber, *(peer.responses for peer in self.peers)):
            poller.register(source, zmq.POLLIN)
        while not self._ended:
            ready = poller.poll(POLL_MS if self._job or self._awaits_answers else IDLE_POLL_MS)
            sources = [source for source, _ in ready]
            if self._wake in sources:
                os.eventfd_read(self._wake)
            # Of a slow stream, both an image and the report that it is written wake this thread, with cold
            # caches: each does nothing else.
            if not ready or not events.isdisjoint(sources) or self._is_control_due(CHECK_PERIOD_S):
                self._control()
            else:
                self._receive_reports(sources)
            n_images = self._take_woken() if self._subscriber in sources else 0
            while (pause := self._batching.pause_after(n_images)) and self._job and not self._ended:
                time.sleep(pause)
                n_images = self._take_images()
                if not self._inbox.empty() or self._is_control_due(CONTROL_PERIOD_S):
                    self._control()
            if n_images and not self._job:
                time.sleep(IDLE_PAUSE_S)
        for peer in self.peers:
            peer.close()
        self._subscriber.disable_monitor()
        self._context.destroy(linger=200)

    def _is_control_due(self, period_s: float) -> bool:
        return time.monotonic() - self._control_at >= period_s

    @property
    def _awaits_answers(self) -> bool:
        return any(peer.awaits_answers for peer in self.peers)

    def _end(self) -> None:
        self._ended = True

    def _control(self) -> None:
        """Handle everything except images: calls, answers, connections of writers and publishers."""
        self._control_at = time.monotonic()
        while not self._inbox.empty():
            self._inbox.get()()
        progressed = False
        for peer in self.peers:
            progressed |= peer.receive_responses()
            failure = peer.check() or peer.reported.failure
            if failure and self._job:
                log.logger.error("%s", failure)
                self._end_recording(failure)
        if self._source.refuse_stranger():
            # Announcements of it may have been recorded.
            self._end_recording(self._source.problem)
        for connected in connections.connection_changes(self._subscriber_monitor):
            self._connected_at = time.monotonic() if connected else None
        self._source.check()
        if self._source.problem and self._job and self._connected_at is None:
            self._end_recording(self._source.problem)
        if progressed:
            self._notify_if_caught_up()

    def _receive_reports(self, sources: Sequence[object]) -> None:
        """Receive a message of each writer whose socket is among those that are ready."""
        progressed = False
        for peer in self.peers:
            if peer.responses in sources:
                progressed |= peer.receive_response()
                if peer.reported.failure:
                    self._control()
        if progressed:
            self._notify_if_caught_up()

    def _notify_if_caught_up(self) -> None:
        # Last of all: the thread that it wakes needs the interpreter, which this one then leaves to it.
        if (job := self._job) is None:
            return
        n_settled = sum(peer.reported.n_written + peer.reported.n_failed for peer in self.writers)
        if n_settled == job.account.n_images:
            job.on_caught_up()

    def _take_woken(self) -> int:
        """Receive what has woken this thread: one message, unless images follow closely. Return their number.

        The exception that says that there is no other one takes 0.1 ms with cold caches, half of an image.
        """
        job = self._job
        is_single = job is not None and time.monotonic() - job.account.last_at >= SLOW_GAP_S
        return self._take_images(1 if is_single else BATCH_LIMIT)

    def _take_images(self, limit: int = BATCH_LIMIT) -> int:
        """Receive up to a batch of messages. Return their number."""
        job = self._job
        n_before = job.account.n_images if job else 0
        n_messages = self._take_messages(job, limit)
        if job and job.account.n_images > n_before:
            job.account.last_at = time.monotonic()
        self.n_received += n_messages
        return n_messages

    def _take_messages(self, job: RecordingJob | None, limit: int) -> int:
        receive = self._subscriber.recv
        n = 0
        while n < limit:
            try:
                message = receive(zmq.NOBLOCK)
            except zmq.Again:
                break
            n += 1
            if job and job.is_open:
                self._forward(message, job)
        self._deliver()
        return n

    def _forward(self, message: bytes, job: RecordingJob) -> None:
        """Forward one image to its writer, to be delivered with others."""
        account = job.account
        try:
            metadata = ImageMetadata.FromString(message)
        except DecodeError:
            account.receive_malformed()
            return
        account.receive_number(metadata.number or (metadata.sequence if self._sequence_counts else 0))
        if not self._rules.accepts(metadata):
            account.refuse()
            return
        image_id = metadata.image_id
        if image_id < job.start_id:
            account.n_before_start_id += 1
            return
        if job.end_on_restart and account.is_restart(image_id, in_order=metadata.sequence != 0):
            self._end_recording(
                f"the image ids restarted: {image_id} came after {account.next_id - 1}, "
                "and the run was started with end_on_restart"
            )
            return
        position = account.n_images
        account.record(metadata)
        action = encode_record_image(message, account.epoch)
        writers = self.writers
        writers[(position if job.by_arrival else image_id) % len(writers)].forward(action)
        if self._meta:
            self._meta.forward(action)
        if not position:
            account.first_at = time.monotonic()
            job.on_first_image()
        if account.n_images >= job.n_image and self._deliver():
            self._end_recording("")

    def _deliver(self) -> bool:
        """Send all forwarded images to their writers. If one cannot receive them, end the recording."""
        problems = [problem for peer in self.peers if (problem := peer.deliver())]
        if problems:
            self._end_recording(problems[0])
        return not problems
