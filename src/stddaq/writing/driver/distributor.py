"""The data path of the driver: one thread that owns all its ZeroMQ sockets and forwards metadata.

The asyncio side asks by `call`, which runs a function in the thread, and reads plain counters. An image costs
one receive, one look at what the driver answers for (id, geometry, status), and one send of the received
bytes with two tags in front; no message is built on the way.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import zmq
from google.protobuf.message import DecodeError

from stddaq.config import DetectorConfig
from stddaq.daemon import log
from stddaq.daemon.batching import Gathering
from stddaq.dataplane import endpoints
from stddaq.dataplane.metadata import ImageMetadata, MetadataRules, is_ring
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.driver.account import RunAccount
from stddaq.writing.driver.writer_peer import Answer, WriterPeer

T = TypeVar("T")
META = "meta"
# Between runs the stream is read and forgotten, at leisure.
IDLE_GATHER_S = 0.01
BATCH_LIMIT = 1000
# Requests, progress reports and lost writers are looked at this often while images come without a pause.
CONTROL_PERIOD_S = 0.005
POLL_MS = 250
CRASHED = 70
# The publisher acts on a subscription that has reached it within a millisecond.
SUBSCRIPTION_SETTLE_S = 0.03
SUBSCRIPTION_TIMEOUT_S = 1.0
SUB_RECONNECT_MS = 50


@dataclass(slots=True)
class Recording:
    """What one run records, and how far it is. Counters may be read from any thread.

    Attributes:
        on_first_image, on_end: called once each, in the distributor's thread; `on_end` with a reason when
            the run cannot go on, else with an empty string.
        on_caught_up: called there whenever every image that came is written and readable, as between the
            points of a scan; seldom while images come without a pause.
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
    """Divides the images of a metadata stream over the writers; see the module."""

    def __init__(
        self, config: DetectorConfig, suffix: str, *, with_metadata_writer: bool, patience: float
    ) -> None:
        """Bind and connect the sockets; `start` runs the thread. Raises `EndpointError`.

        A connected writer that does not answer for `patience` seconds ends the run.
        """
        self._patience = patience
        self._rules = MetadataRules(config, suffix)
        # A stream of metadata only carries the sequence numbers of the ring, and leaves some out.
        self._sequence_counts = is_ring(suffix)
        self._stream = endpoints.metadata_stream(config.detector_name, suffix)
        self._context = zmq.Context()
        try:
            self.writers = [
                WriterPeer(self._context, config.detector_name, str(i))
                for i in range(config.number_of_writers)
            ]
            self._meta = (
                WriterPeer(self._context, config.detector_name, META) if with_metadata_writer else None
            )
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self.peers = [*self.writers, *([self._meta] if self._meta else [])]
        self._subscribe()
        # Numbers that no driver before us has used: an answer to one of its requests matches none of ours.
        self._request_numbers = itertools.count(time.time_ns())
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._recording: Recording | None = None
        self._connected_at: float | None = None
        self._control_at = 0.0
        self._gathering = Gathering.of_driver(config)
        self._ended = False
        self.n_received = 0
        self._thread = threading.Thread(target=self._serve, name="distributor", daemon=True)

    def _subscribe(self) -> None:
        # Subscribed once, for good: there is no moment at the start of a run at which an image can be missed.
        self._intake = endpoints.open_socket(self._context, zmq.SUB)
        self._intake.reconnect_ivl = self._intake.reconnect_ivl_max = SUB_RECONNECT_MS
        self._intake.subscribe(b"")
        self._intake_monitor = endpoints.watch_connection(self._intake)
        self._intake.connect(self._stream)

    def start(self) -> None:
        """Run the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the sockets. Bounded."""
        self.call(self._end)
        self._thread.join(timeout=2.0)
        os.close(self._wake)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` in the thread. The future has its result, or its exception."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to the caller)
                    future.set_exception(error)

        self._inbox.put(run)
        os.eventfd_write(self._wake, 1)
        return future

    # Everything below runs in the thread, by `call` or from `_serve`.

    def ask(
        self, actions: Mapping[str, pb.WriterAction], patience: float | None = None
    ) -> Future[dict[str, Answer]]:
        """Send each writer named its request; the future has the answers of all of them.

        `patience` in seconds, when the request may take longer than the usual.
        """
        patience = patience or self._patience
        future: Future[dict[str, Answer]] = Future()
        answers: dict[str, Answer] = {}

        def note(name: str, answer: Answer) -> None:
            answers[name] = answer
            if len(answers) == len(actions):
                future.set_result(answers)

        def send() -> None:
            if not actions:
                future.set_result(answers)
            for peer in self.peers:
                if action := actions.get(peer.name):
                    action.request = next(self._request_numbers)
                    peer.ask(action, patience, functools.partial(note, peer.name))

        self.call(send)
        return future

    def begin_run(self, run_id: str) -> None:
        """Forget the run before."""
        for peer in self.peers:
            peer.begin_run(run_id)

    def record(self, recording: Recording) -> None:
        """Record from now on; what was published before is left out."""
        self._recording = None
        for _ in range(endpoints.RECEIVE_LIMIT // BATCH_LIMIT):
            if self._take_images() < BATCH_LIMIT:
                break
        self._recording = recording
        gone = [peer.name for peer in self.peers if not peer.connected]
        if gone:
            self._end_recording(f"writer {', '.join(gone)} is gone since its file was created")
        elif recording.n_image == 0:
            self._end_recording("")

    def end_recording(self) -> None:
        """Record what has arrived, and no more: a stop, or the end of a run that failed."""
        while self._recording and self._take_images() == BATCH_LIMIT:
            pass
        self._end_recording("")

    def _end_recording(self, reason: str) -> None:
        recording, self._recording = self._recording, None
        if recording:
            recording.is_open = False
            recording.on_end(reason)

    def is_subscribed(self) -> bool:
        """Whether a publisher has our subscription, or there is none that could."""
        if self._connected_at is not None:
            return time.monotonic() - self._connected_at >= SUBSCRIPTION_SETTLE_S
        return not endpoints.somebody_listens(self._stream)

    def _serve(self) -> None:
        try:
            self._work()
        except BaseException:  # noqa: BLE001
            # Without its data path the driver is a lie; systemd or `stddaq up` start a new one.
            log.logger.exception("the data path failed unexpectedly, the driver ends")
            os._exit(CRASHED)

    def _work(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        poller.register(self._intake, zmq.POLLIN)
        for peer in self.peers:
            poller.register(peer.responses, zmq.POLLIN)
            poller.register(peer.monitor, zmq.POLLIN)
        poller.register(self._intake_monitor, zmq.POLLIN)
        while not self._ended:
            poller.poll(POLL_MS)
            self._control()
            n_images = self._take_images()
            while (pause := self._gathering.pause_after(n_images)) and self._recording and not self._ended:
                time.sleep(pause)
                n_images = self._take_images()
                if time.monotonic() - self._control_at >= CONTROL_PERIOD_S:
                    self._control()
            if n_images and not self._recording:
                time.sleep(IDLE_GATHER_S)
        for peer in self.peers:
            peer.close()
        self._intake.disable_monitor()
        self._context.destroy(linger=200)

    def _end(self) -> None:
        self._ended = True

    def _control(self) -> None:
        """All that is not an image: calls, answers, writers and publishers that come and go."""
        self._control_at = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while not self._inbox.empty():
            self._inbox.get()()
        progressed = False
        for peer in self.peers:
            progressed |= peer.take_responses()
            trouble = peer.watch() or peer.reported.failure
            if trouble and self._recording:
                log.logger.error("%s", trouble)
                self._end_recording(trouble)
        if progressed and (recording := self._recording) and self._has_caught_up(recording):
            recording.on_caught_up()
        for connected in endpoints.connection_changes(self._intake_monitor):
            self._connected_at = time.monotonic() if connected else None

    def _has_caught_up(self, recording: Recording) -> bool:
        n_settled = sum(peer.reported.n_written + peer.reported.n_failed for peer in self.writers)
        return n_settled == recording.account.count

    def _take_images(self) -> int:
        """Take what has arrived, at most a batch. Returns how many messages that were."""
        recording = self._recording
        receive = self._intake.recv
        for n in range(BATCH_LIMIT):
            try:
                message = receive(zmq.NOBLOCK)
            except zmq.Again:
                self.n_received += n
                return n
            if recording and recording.is_open:
                self._forward(message, recording)
        self.n_received += BATCH_LIMIT
        return BATCH_LIMIT

    def _forward(self, message: bytes, recording: Recording) -> None:
        """Pass one image on to its writer. 5 us, most of it the send."""
        account = recording.account
        try:
            metadata = ImageMetadata.FromString(message)
        except DecodeError:
            account.receive_malformed()
            return
        account.receive_number(metadata.number or (metadata.sequence if self._sequence_counts else 0))
        if not self._rules.accepts(metadata):
            account.n_malformed += 1
            return
        image_id = metadata.image_id
        if image_id < recording.start_id:
            account.n_before_start_id += 1
            return
        if image_id < account.due and recording.end_on_restart:
            self._end_recording(
                f"the image ids begin again: {image_id} came after {account.due - 1}, "
                "and the run was started with end_on_restart"
            )
            return
        position = account.count
        account.record(metadata)
        action = _record_image(message, account.restarts)
        writers = self.writers
        writer = writers[(position if recording.by_arrival else image_id) % len(writers)]
        if not (self._send(writer, action) and (self._meta is None or self._send(self._meta, action))):
            return
        if not position:
            recording.on_first_image()
        if account.count >= recording.n_image:
            self._end_recording("")

    def _send(self, peer: WriterPeer, action: bytes) -> bool:
        peer.n_forwarded += 1
        try:
            peer.actions.send(action, zmq.NOBLOCK)
        except zmq.Again:
            # A writer that has just gone takes nothing either.
            full = f"{peer.title} does not keep up: more than {endpoints.QUEUE_LIMIT} images wait for it"
            self._end_recording(peer.watch() or (full if peer.connected else f"{peer.title} is gone"))
            return False
        return True


def _record_image(metadata: bytes, restarts: int) -> bytes:
    """`WriterAction(record_image=RecordImage(image_metadata=..., restarts=...))`, without building it.

    Protobuf wire format: tag 0x0a is field 1, length-delimited; 0x12 is field 2, length-delimited.
    """
    body = b"\x0a" + _length(len(metadata)) + metadata
    if restarts:
        body += pb.RecordImage(restarts=restarts).SerializeToString()
    return b"\x12" + _length(len(body)) + body


@functools.lru_cache(maxsize=1024)
def _length(value: int) -> bytes:
    """A protobuf varint."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
