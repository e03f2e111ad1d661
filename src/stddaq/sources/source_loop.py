"""The loop of every source without a detector: images at a rate, or in bursts by software trigger.

An `ImageProvider` says what is in the images, an `ImageOutput` takes them (the ring buffer, or a camera
server's socket); `run_source` decides when they are due, gives them their ids, answers requests (see
`stddaq.wire.simulator_messages`) and prints statistics. One thread; a request is answered between two images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon.log import event, logger
from stddaq.daemon.main import StopRequest
from stddaq.daemon.statistics import RateCounter, StatisticsTimer, log_statistics
from stddaq.dataplane.endpoints import bind, open_socket, software_trigger, unbind
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.errors import SourceError
from stddaq.sources.simulated.detector_fields import DetectorFields, last_image_id
from stddaq.wire.simulator_messages import Configure, Rearm, Request, RequestError, Trigger, parse_request

ENDLESS = 2**63
# Thirty years between two images: arithmetic with the period stays finite.
SLOWEST_HZ = 1e-9
# Images that are due within this time are published together: a wake-up costs as much as several images.
BATCH_S = 0.001
# A source that was held up catches up with this much of its schedule, and drops the rest.
MAX_DELAY_S = 1.0
# Publishing pauses this often to look for requests and signals.
TURN_S = 0.005
# How long the last answer may be on its way.
ANSWER_LINGER_MS = 200


class ImageProvider(Protocol):
    """Where the pixels come from."""

    length: int | None
    """Images there are; None: as many as asked for."""

    def fill(self, slot: np.ndarray, position: int, image_id: int) -> None:
        """Put the image that is published as number `position` (from 0) into `slot`, (height, width).

        Raises `SourceError` when it cannot be read.
        """
        ...


class ImageOutput(Protocol):
    """Where the images go. `ImagePublisher` is the usual one."""

    metadata: ImageMetadata
    """Of the next image, reused; the detector's own fields are set before it is committed."""
    endpoint: str
    """Where its consumers find it."""
    socket: zmq.Socket
    """Becomes readable when consumers come or go."""

    @property
    def n_subscribers(self) -> int:
        """Consumers that there are now."""
        ...

    def preallocate(self, stop: StopRequest) -> None:
        """Get the memory for all images first, unless asked to stop. Raises `SourceError`."""
        ...

    def can_take(self, timeout: float) -> bool:
        """Whether an image can be published now, or within `timeout` seconds."""
        ...

    def begin(self, image_id: int) -> np.ndarray:
        """The array (height, width) to put the next image into. Raises `SourceError`."""
        ...

    def commit(self, image_id: int) -> int:
        """Publish the image that was put there."""
        ...

    def deliver(self, stop: StopRequest) -> None:
        """Wait until consumers that are waited for have the last images, unless asked to stop. The end."""
        ...

    def close(self) -> None:
        """Release everything; what is on its way is delivered if that takes no time."""
        ...


OpenOutput = Callable[[DetectorConfig], ImageOutput]


class RingOutput(ImagePublisher):
    """The ring buffer and the metadata stream, which wait for nobody."""

    def preallocate(self, stop: StopRequest) -> None:
        """Get the memory of the whole ring buffer. Raises `SourceError` when there is not as much."""
        for slot in range(self.n_slots):
            if stop.poll():
                return
            self.reserve(slot)

    def can_take(self, timeout: float) -> bool:
        """Always."""
        del timeout
        return True

    def deliver(self, stop: StopRequest) -> None:
        """See `ImageOutput`; nobody is waited for."""
        del stop


@dataclass(frozen=True, slots=True)
class ImageIds:
    """Image ids by position since the ids were last restarted: counted, or as listed.

    With `skip_every` = n every n-th id is left out. After `last` the ids start again at the first.
    """

    first: int = 0
    last: int = ENDLESS * 2 - 1
    skip_every: int | None = None
    listed: np.ndarray | None = None

    def __getitem__(self, position: int) -> int:
        if self.listed is not None:
            return int(self.listed[position % len(self.listed)])
        position %= self.per_pass
        return self.first + position + (position // (self.skip_every - 1) if self.skip_every else 0)

    @property
    def per_pass(self) -> int:
        """How many ids there are until they start again."""
        if self.listed is not None:
            return len(self.listed)
        n = self.last - self.first + 1
        return n - n // self.skip_every if self.skip_every else n


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source is run. Rates in images per second (0: as fast as possible), times in seconds."""

    ids: ImageIds
    rate: float = 10.0
    triggered: bool = False
    burst: int = 1
    n_images: int | None = None
    exposure_time: float = 0.001
    wait_for_subscribers: int = 0
    wait_timeout: float = 10.0
    preallocate: bool = False


class Pacer:
    """When images are due: image k of a schedule k periods after its beginning, however late k - 1 was."""

    def __init__(self, rate: float) -> None:
        self.n_dropped = 0
        self._period = 0.0
        self.restart()
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Images per second, 0: as fast as possible. The next image is due one new period after the last."""
        if self._done:
            self._last = self._began + (self._done - 1) * self._period
            self._done = 0
        self._period = 1 / max(rate, SLOWEST_HZ) if rate else 0.0
        self._batch = max(1, int(BATCH_S * rate))
        if self._last is not None:
            self._began = self._last + self._period

    def restart(self) -> None:
        """Begin a schedule: its first image is due now."""
        self._began, self._done = time.monotonic(), 0
        self._last: float | None = None

    def due(self) -> int:
        """Number of images that are due now."""
        if not self._period:
            return ENDLESS
        late = time.monotonic() - self._began - self._done * self._period
        if late > MAX_DELAY_S + self._period:
            self.n_dropped += (dropped := int((late - MAX_DELAY_S) / self._period))
            self._began += dropped * self._period
            late -= dropped * self._period
        return int(late / self._period) + 1 if late >= 0 else 0

    def advance(self, n: int) -> None:
        """`n` images were published."""
        self._done += n

    def delay(self, n_wanted: int) -> float:
        """Seconds until it is worth while to publish again, with `n_wanted` images to come."""
        if not self._period:
            return 0.0
        last_of_batch = self._done + min(self._batch, n_wanted) - 1
        return max(0.0, self._began + last_of_batch * self._period - time.monotonic())


class Source:
    """A running source: state and the loop. Use `run_source`."""

    def __init__(
        self,
        config: DetectorConfig,
        provider: ImageProvider,
        options: SourceOptions,
        open_output: OpenOutput,
        trigger_name: str,
    ) -> None:
        self._config, self._provider, self._options = config, provider, options
        self._ids = options.ids
        self._rate, self._burst = options.rate, options.burst
        self._fields = DetectorFields(config, options.exposure_time)
        limits = [n for n in (options.n_images, provider.length) if n is not None]
        self._n_left = min(limits, default=ENDLESS)
        self._n_published = 0
        # Position within the ids, which start again when the detector is re-armed.
        self._id_position = 0
        self._free_running = not options.triggered
        self._n_triggered = 0
        self._pacer = Pacer(options.rate)
        self._counter = RateCounter()
        self._statistics = StatisticsTimer(config.stats_collection_period)
        self._context = zmq.Context()
        # To its clients as REP, which in libzmq hears nobody any more once messages came without envelope.
        self._control = open_socket(self._context, zmq.ROUTER)
        self._endpoint = software_trigger(trigger_name)
        try:
            self._publisher = open_output(config)
        except BaseException:
            self._context.destroy()
            raise
        try:
            bind(self._control, self._endpoint)
        except BaseException:
            self._publisher.close()
            self._context.destroy()
            raise

    @property
    def trigger_endpoint(self) -> str:
        """Where software triggers are taken."""
        return self._endpoint

    @property
    def endpoint(self) -> str:
        """Where consumers find the images."""
        return self._publisher.endpoint

    def close(self) -> None:
        """Release sockets and ring buffer, after what is on its way was delivered."""
        self._control.linger = ANSWER_LINGER_MS
        unbind(self._control, self._endpoint)
        self._context.term()
        self._publisher.close()

    def preallocate(self, stop: StopRequest) -> None:
        """Get the memory for all images first. Raises `SourceError` when there is not as much."""
        self._publisher.preallocate(stop)

    def deliver(self, stop: StopRequest) -> None:
        """After `serve`: wait for consumers that want to be waited for, unless asked to stop."""
        self._publisher.deliver(stop)

    def serve(self, stop: StopRequest) -> None:
        """Publish until all images are published, or asked to stop. Raises `SourceError`."""
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        poller.register(self._publisher.socket, zmq.POLLIN)
        poller.register(stop.fileno(), zmq.POLLIN)
        self._wait_for_subscribers(poller, stop)
        self._pacer.restart()
        while not stop.poll() and self._n_left:
            self._sleep(poller)
            self._answer_requests()
            self._publish_due()
            self._report()
        if not stop.requested:
            event("all %d images published", self._n_published)

    def _wait_for_subscribers(self, poller: zmq.Poller, stop: StopRequest) -> None:
        options = self._options
        deadline = time.monotonic() + options.wait_timeout
        while not stop.poll() and (found := self._publisher.n_subscribers) < options.wait_for_subscribers:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise SourceError(
                    f"{self._publisher.endpoint}: found {found} subscribers after "
                    f"{options.wait_timeout:g} s, waited for {options.wait_for_subscribers}"
                )
            self._answer_requests()
            poller.poll(min(100, max(1, int(remaining * 1000))))

    @property
    def _n_wanted(self) -> int:
        """Images still to be published without a further request."""
        return self._n_left if self._free_running else min(self._n_triggered, self._n_left)

    def _publish_due(self) -> None:
        n = min(self._pacer.due(), self._n_wanted)
        turn_ends = time.monotonic() + TURN_S
        done = 0
        while done < n and self._publisher.can_take(TURN_S):
            self._publish_next()
            done += 1
            if time.monotonic() >= turn_ends:
                break
        self._pacer.advance(done)

    def _publish_next(self) -> None:
        """One image. Measured: 6 us and the copy."""
        if self._id_position == self._ids.per_pass:
            self._rearm(self._ids)  # The detector has counted as far as it can, or the file begins again.
        publisher = self._publisher
        image_id = self._ids[self._id_position]
        self._provider.fill(publisher.begin(image_id), self._n_published, image_id)
        self._fields.fill(publisher.metadata)
        publisher.commit(image_id)
        self._id_position += 1
        self._n_published += 1
        self._n_left -= 1
        self._counter.count += 1
        if not self._free_running:
            self._n_triggered -= 1

    def _rearm(self, ids: ImageIds) -> None:
        self._ids, self._id_position = ids, 0
        self._fields.begin_scan()
        logger.debug("image ids start again at %d", ids[0])

    def _sleep(self, poller: zmq.Poller) -> None:
        """Until images are due, a request or a signal arrives, or statistics are due."""
        n_wanted = self._n_wanted
        delay = self._statistics.due_in
        if n_wanted:
            delay = min(delay, self._pacer.delay(n_wanted))
        if delay >= 0.002:
            poller.poll(int(delay * 1000) - 1)
        elif delay > 0:
            time.sleep(delay)  # poll() knows only whole milliseconds.

    def _report(self) -> None:
        if self._statistics.due_in > 0:
            return
        pairs = self._counter.pairs(self._statistics.restart())
        pairs = {"source": "image", **pairs, "n_subscribers": self._publisher.n_subscribers}
        log_statistics(self._config.detector_name, pairs)
        if self._pacer.n_dropped:
            why = "" if pairs["n_subscribers"] or self._publisher.can_take(0.0) else ", nobody takes them"
            logger.warning("cannot keep %g Hz: %d images behind%s", self._rate, self._pacer.n_dropped, why)
            self._pacer.n_dropped = 0

    def _answer_requests(self) -> None:
        """One request a turn: those that come without a pause keep no image from being published."""
        # Also keeps the queue of subscriptions short, and the poller quiet.
        _ = self._publisher.n_subscribers
        try:
            client, *envelope = self._control.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if envelope[:1] != [b""]:
            return  # Not from a REQ socket: nobody waits for an answer.
        parts = envelope[1:]
        try:
            if len(parts) != 1:
                raise RequestError(f"found a message of {len(parts)} parts, allowed is one")
            answer = {"status": "ok", **self._carry_out(parse_request(parts[0]))}
        except RequestError as error:
            answer = {"status": "error", "reason": str(error)}
        self._control.send_multipart([client, b"", json.dumps(answer).encode()])

    def _carry_out(self, request: Request) -> dict[str, object]:
        if isinstance(request, Trigger):
            return self._trigger(request.n_images or self._burst)
        if isinstance(request, Configure):
            self._configure(request)
        elif isinstance(request, Rearm):
            self._restart_ids(request.first_id)
        elif request.command == "start" and not self._free_running:
            if not self._n_triggered:
                self._pacer.restart()
            self._free_running, self._n_triggered = True, 0
        elif request.command == "stop":
            self._free_running, self._n_triggered = False, 0
        return self._state()

    def _trigger(self, n_images: int) -> dict[str, object]:
        if self._free_running:
            raise RequestError("trigger: found a free-running source, stop it first")
        if not self._n_wanted:
            self._pacer.restart()
        first = self._id_position + self._n_triggered
        n_images = min(n_images, self._n_left - self._n_triggered)
        if n_images <= 0:
            raise RequestError("trigger: no images are left")
        self._n_triggered += n_images
        return {"first_id": self._ids[first], "n_images": n_images}

    def _configure(self, request: Configure) -> None:
        if request.rate is not None and request.rate != self._rate:
            self._rate = request.rate
            self._pacer.set_rate(request.rate)
        if request.burst is not None:
            self._burst = request.burst
        if request.exposure_time is not None:
            self._fields.exposure_time = request.exposure_time

    def _restart_ids(self, first_id: int) -> None:
        last = last_image_id(self._config)
        if self._ids.listed is not None:
            raise RequestError("rearm: the image ids of this source are those of its file")
        if first_id > last:
            raise RequestError(f"first_id: found {first_id}, allowed for this detector is 0 to {last}")
        if self._n_triggered:
            raise RequestError(f"rearm: {self._n_triggered} triggered images are still to come")
        self._rearm(ImageIds(first_id, last, self._ids.skip_every))
        event("re-armed: image ids start again at %d", first_id)

    def _state(self) -> dict[str, object]:
        return {
            "free_running": self._free_running,
            "rate": self._rate,
            "burst": self._burst,
            "exposure_time": self._fields.exposure_time,
            "next_id": self._ids[self._id_position],
            "n_published": self._n_published,
            "n_pending": 0 if self._free_running else self._n_triggered,
            "n_left": self._n_left if self._n_left < ENDLESS // 2 else None,
            "n_subscribers": self._publisher.n_subscribers,
            "scan_id": self._fields.scan_id,
        }


def run_source(
    config: DetectorConfig,
    provider: ImageProvider,
    options: SourceOptions,
    stop: StopRequest,
    open_output: OpenOutput = RingOutput,
    trigger_name: str | None = None,
) -> None:
    """Run a source until it has published all its images, or `stop`.

    Software triggers are taken under `trigger_name` (default: the detector's name). Raises `EndpointError`
    and `GeometryError` when the sockets or the ring buffer are not to be had, `SourceError` when an image
    cannot be read or not enough subscribers came in time.
    """
    source = Source(config, provider, options, open_output, trigger_name or config.detector_name)
    try:
        if options.preallocate:
            source.preallocate(stop)
        pace = f"{options.rate:g} Hz" if options.rate else "full speed"
        event(
            "ready: %s at %s on %s, software trigger at %s",
            "bursts on trigger" if options.triggered else "free-running",
            pace,
            source.endpoint,
            source.trigger_endpoint,
        )
        source.serve(stop)
        if not stop.requested:
            source.deliver(stop)
    finally:
        source.close()
