"""The loop of every source without a detector: images at a rate, or in bursts on software trigger.

`run_source` gives images their ids, publishes them when they are due, answers requests (see
`stddaq.wire.simulator_messages`) and writes statistics. It runs in one thread and answers a request between
two images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.log import event, logger, ready
from stddaq.daemon.main import StopRequest
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import software_trigger
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.errors import SourceError
from stddaq.sources.image_ids import ImageIds
from stddaq.sources.image_sink import ImageProvider, OpenSink, RingSink
from stddaq.sources.pacer import Pacer
from stddaq.sources.plan import ImagePlan
from stddaq.sources.simulated.detector_fields import DetectorFields, last_image_id
from stddaq.text import mismatch
from stddaq.wire.simulator_messages import Configure, Rearm, Request, RequestError, Trigger, parse_request

# Publishing pauses this often for requests and signals.
TURN_S = 0.005
# Longest time for which `close` waits until the last answer is sent.
ANSWER_TIMEOUT_MS = 200


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to run a source. Rates are in images per second (0: as fast as possible), times in seconds."""

    ids: ImageIds
    rate: float = 10.0
    triggered: bool = False
    burst: int = 1
    n_images: int | None = None
    exposure_time: float = 0.001
    wait_for_subscribers: int = 0
    wait_timeout: float = 10.0


class SourceLoop:
    """A running source: its sockets and its loop. Use `run_source`."""

    def __init__(
        self,
        service: str,
        config: DetectorConfig,
        provider: ImageProvider,
        options: SourceOptions,
        open_sink: OpenSink,
        trigger_name: str,
    ) -> None:
        self._service = service
        self._config, self._provider, self._options = config, provider, options
        self._rate, self._burst = options.rate, options.burst
        self._fields = DetectorFields(config, options.exposure_time)
        limits = [n for n in (options.n_images, provider.length) if n is not None]
        self._plan = ImagePlan(options.ids, min(limits, default=None), free_running=not options.triggered)
        self._pacer = Pacer(options.rate)
        self._n_dropped_reported = 0
        self._statistics = StatisticsLine(config, self._registry(), self._pairs)
        self._context = zmq.Context()
        # Clients see a ROUTER as REP. libzmq's own REP stops receiving after a message without envelope; no
        # upstream issue is known.
        self._control = open_socket(self._context, zmq.ROUTER)
        self._endpoint = software_trigger(trigger_name)
        try:
            self._sink = open_sink(config)
        except BaseException:
            self._context.destroy()
            raise
        try:
            self._binding = Binding(self._control, self._endpoint)
        except BaseException:
            self._sink.close()
            self._context.destroy()
            raise

    def _registry(self) -> Registry:
        plan, registry = self._plan, Registry(self._config.detector_name, self._service)
        registry.add(metrics.IMAGES_PUBLISHED, lambda: plan.n_published, source="image")
        image_bytes = self._config.image_bytes
        registry.add(metrics.IMAGE_BYTES_PUBLISHED, lambda: plan.n_published * image_bytes, source="image")
        registry.add(metrics.IDS_RESTARTED, lambda: plan.n_restarts)
        registry.add(metrics.SOURCE_IMAGES_BEHIND, lambda: self._pacer.n_dropped)
        return registry

    @property
    def trigger_endpoint(self) -> str:
        """Address for software triggers and other requests."""
        return self._endpoint

    @property
    def endpoint(self) -> str:
        """Address at which consumers receive the images."""
        return self._sink.endpoint

    def close(self) -> None:
        """Release sockets and ring buffer after the last messages are sent."""
        self._control.linger = ANSWER_TIMEOUT_MS
        self._binding.close()
        self._context.term()
        self._sink.close()

    def deliver(self, stop: StopRequest) -> None:
        """After `serve`: wait for slow consumers, unless asked to stop."""
        self._sink.deliver(stop)

    def serve(self, stop: StopRequest) -> None:
        """Publish until all images are published, or asked to stop. Raise `SourceError`."""
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        poller.register(self._sink.socket, zmq.POLLIN)
        poller.register(stop.fileno(), zmq.POLLIN)
        self._wait_for_subscribers(poller, stop)
        self._pacer.restart()
        while not stop.poll() and self._plan.n_left:
            self._sleep(poller)
            self._answer_request()
            self._publish_due()
            self._report()
        if not stop.requested:
            event("all %d images published", self._plan.n_published)

    def _wait_for_subscribers(self, poller: zmq.Poller, stop: StopRequest) -> None:
        wanted, timeout = self._options.wait_for_subscribers, self._options.wait_timeout
        deadline = time.monotonic() + timeout
        while not stop.poll() and (found := self._sink.count_subscribers()) < wanted:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                expected = f"{wanted} subscribers within {timeout:g} s"
                raise SourceError(mismatch(self._sink.endpoint, expected, f"{found}"))
            self._answer_request()
            self._report()
            poller.poll(min(100, max(1, int(remaining * 1000))))

    def _publish_due(self) -> None:
        # While none is wanted, as between triggers, none is late. A trigger starts a new schedule.
        if not (n_wanted := self._plan.n_wanted):
            return
        n = min(self._pacer.due(), n_wanted)
        turn_ends = time.monotonic() + TURN_S
        done = 0
        while done < n and self._sink.can_take(TURN_S):
            self._publish_next()
            done += 1
            if time.monotonic() >= turn_ends:
                break
        self._pacer.advance(done)

    def _publish_next(self) -> None:
        """Publish one image. Measured: 6 us and the copy of the pixels."""
        plan, sink = self._plan, self._sink
        if plan.position == plan.per_epoch:
            plan.restart(plan.ids)  # The detector has reached its last id, or the file starts again.
            self._start_epoch()
        image_id = plan.ids[plan.position]
        self._provider.fill(sink.begin(image_id), plan.n_published, image_id)
        self._fields.fill(sink.metadata)
        sink.commit(image_id)
        plan.advance()

    def _start_epoch(self) -> None:
        self._fields.begin_scan()
        logger.debug("image ids restart at %d", self._plan.next_id)

    def _sleep(self, poller: zmq.Poller) -> None:
        """Wait until images or statistics are due, or a request or a signal arrives."""
        n_wanted = self._plan.n_wanted
        delay = self._statistics.due_in
        if n_wanted:
            delay = min(delay, self._pacer.delay(n_wanted))
        if delay >= 0.002:
            poller.poll(int(delay * 1000) - 1)
        elif delay > 0:
            time.sleep(delay)  # poll() has whole milliseconds only.

    def _report(self) -> None:
        if not self._statistics.write_if_due():
            return
        behind = self._pacer.n_dropped - self._n_dropped_reported
        if behind:
            has_consumer = self._sink.count_subscribers() or self._sink.can_take(0.0)
            why = "" if has_consumer else ", no receiver takes them"
            logger.warning("cannot keep %g Hz: %d images behind%s", self._rate, behind, why)
            self._n_dropped_reported += behind

    def _pairs(self, period: Period) -> Mapping[str, object]:
        rate = period.rate(metrics.IMAGES_PUBLISHED)
        return {"source": "image", **rate, "n_subscribers": self._sink.count_subscribers()}

    def _answer_request(self) -> None:
        """Answer one request at most: a flood of requests does not stop publication."""
        # Also empties the queue of subscriptions, which would wake the poller again.
        self._sink.count_subscribers()
        self._binding.check()
        try:
            client, *envelope = self._control.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if envelope[:1] != [b""]:
            return  # A message that is not from a REQ socket expects no answer.
        parts = envelope[1:]
        try:
            if len(parts) != 1:
                raise RequestError(mismatch("request", "one message part", f"{len(parts)}"))
            answer = {"status": "ok", **self._carry_out(parse_request(parts[0]))}
        except RequestError as error:
            answer = {"status": "error", "reason": str(error)}
        self._control.send_multipart([client, b"", json.dumps(answer).encode()])

    def _carry_out(self, request: Request) -> dict[str, object]:
        plan = self._plan
        if isinstance(request, Trigger):
            was_idle = not plan.n_wanted
            first_id, n_images = plan.trigger(request.n_images or self._burst)
            self._configure(request)
            if was_idle:
                self._pacer.restart()
            return {"first_id": first_id, "n_images": n_images, **self._state()}
        if isinstance(request, Configure):
            self._configure(request)
            self._burst = request.burst or self._burst
        elif isinstance(request, Rearm):
            plan.rearm(request.first_id, last_image_id(self._config))
            self._start_epoch()
            event("re-armed: image ids restart at %d", request.first_id)
        elif request.command == "start" and not plan.free_running:
            if not plan.n_triggered:
                self._pacer.restart()
            plan.start()
        elif request.command == "stop":
            plan.stop()
        return self._state()

    def _configure(self, request: Trigger | Configure) -> None:
        if request.rate is not None and request.rate != self._rate:
            self._rate = request.rate
            self._pacer.set_rate(request.rate)
        if request.exposure_time is not None:
            self._fields.exposure_time = request.exposure_time

    def _state(self) -> dict[str, object]:
        plan = self._plan
        return {
            "free_running": plan.free_running,
            "rate": self._rate,
            "burst": self._burst,
            "exposure_time": self._fields.exposure_time,
            "next_id": plan.next_id,
            "n_published": plan.n_published,
            "n_pending": plan.n_triggered,
            "n_left": plan.n_limit,
            "n_subscribers": self._sink.count_subscribers(),
            "scan_id": self._fields.scan_id,
        }


def run_source(
    service: str,
    config: DetectorConfig,
    provider: ImageProvider,
    options: SourceOptions,
    stop: StopRequest,
    open_sink: OpenSink = RingSink,
    trigger_name: str | None = None,
) -> None:
    """Run a source until it has published all its images, or is asked to stop.

    `service` is its name in metrics. It receives software triggers under `trigger_name` (default: the
    detector's name). Raise `EndpointError` or `GeometryError` if the sockets or the ring buffer are not
    available, `SourceError` if an image cannot be read or too few subscribers connect in time.
    """
    source = SourceLoop(service, config, provider, options, open_sink, trigger_name or config.detector_name)
    try:
        ready(
            "%s at %s on %s, software trigger at %s",
            "bursts on trigger" if options.triggered else "free-running",
            f"{options.rate:g} Hz" if options.rate else "full speed",
            source.endpoint,
            source.trigger_endpoint,
        )
        source.serve(stop)
        if not stop.requested:
            source.deliver(stop)
    finally:
        source.close()
