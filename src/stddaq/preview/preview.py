"""The loop of the preview service: from the ring buffer to browsers, at most some images a second.

It attaches to the ring when the first browser wants images, and detaches a second after the last one has
left. Between two images it sleeps, then takes the newest one. An image is published only if its slot held it
before and after it was reduced.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.log import event, logger
from stddaq.daemon.main import StopRequest
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.image_subscriber import ImageSubscriber
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.dataplane.metadata import ImageMetadata, compression_of, ring_suffix
from stddaq.dataplane.ring_reader import HeldImages
from stddaq.dataplane.shared_segment import SHM_DIRECTORY, status_of
from stddaq.errors import CompressionError, EndpointError, GeometryError
from stddaq.preview.encoding import exact, image_message, pixels_message, problem_message
from stddaq.preview.levels import Levels
from stddaq.preview.pictures import Made, Pictures
from stddaq.wire.compressed_image import decompress_image_into
from stddaq.wire.preview_requests import ReducerName, Region, Request, Still, View, request_of

CODEC = "lz4"
CHECK_PERIOD_S = 1.0
# Browsers that load the page again keep the ring attached.
LEAVE_AFTER_S = 1.0
# It takes longer than all else that is made of an image.
HISTOGRAM_PERIOD_S = 1.0
# Announcements that one look takes: a second of a very fast source.
MAX_ANNOUNCEMENTS = 100_000
# Messages that wait for a `stddaq-rest` that does not read; the next ones are dropped.
_MAX_QUEUED = 2
# Images that can be asked for again, if the ring still has them: a minute of them.
_MAX_RECENT = 600
# Requests for such images that wait.
_MAX_STILLS = 64
# Views, and regions, that are made at the same time; more requests have no answer.
_MAX_REQUESTED = 256
# Requests that are read in one turn: a client that sends them without end delays nothing.
_MAX_READ = 1000


@dataclass(frozen=True, slots=True)
class _Taken:
    metadata: ImageMetadata
    made: Made


class _StillError(Exception):
    """An image that is asked for is not to be had. `code` names the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Preview:
    """Publishes previews; see the module.

    Attributes:
        n_encoded, n_overwritten: images that were published, and those whose slots were reused too early.
        views, regions: what browsers want, each once, in the order of the first request.
    """

    def __init__(
        self, config: DetectorConfig, suffix: str, pictures: Pictures, hz: float, registry: Registry
    ) -> None:
        """Bind the socket of the previews. Raise `EndpointError`."""
        self._config, self._suffix, self._pictures = config, suffix, pictures
        self._period, self._due = 1 / hz, 0.0
        self._context = zmq.Context()
        self._socket = connections.open_socket(self._context, zmq.XPUB)
        self._socket.sndhwm = _MAX_QUEUED
        self._binding = Binding(self._socket, endpoints.preview(config.detector_name, suffix))
        self._decoded = np.empty(config.image_shape, config.dtype) if compression_of(suffix) else None
        self._subscriber: ImageSubscriber | None = None
        self._held: HeldImages[_Taken] | None = None
        self.views: dict[View, None] = {}
        self.regions: dict[Region, None] = {}
        self._stills: deque[Still] = deque(maxlen=_MAX_STILLS)
        self._recent: dict[int, ImageMetadata] = {}
        self._wanted_until, self._look_at, self._problem = 0.0, 0.0, ""
        self._levels: dict[ReducerName, Levels] = {}
        self._histogram: dict[str, Any] | None = None
        self._histogram_at = 0.0
        self.n_encoded = self.n_overwritten = 0
        self._n_overwritten_since = 0
        self.encode_seconds = 0.0
        registry.add(metrics.PREVIEWS_ENCODED, lambda: self.n_encoded, codec=CODEC)
        registry.add(metrics.PREVIEW_ENCODE_SECONDS, lambda: self.encode_seconds, codec=CODEC)
        registry.add(metrics.IMAGES_OVERWRITTEN, lambda: self.n_overwritten, source=suffix)
        self._statistics = StatisticsLine(config, registry, self._pairs)

    def serve(self, stop: StopRequest) -> None:
        """Publish until asked to stop."""
        poller = zmq.Poller()
        poller.register(stop.fileno(), zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN)
        while not stop.poll():
            self._follow_browsers()
            self._look_around()
            if self._subscriber is not None:
                # Announcements before the next image is due would wake this process without need.
                is_due = time.monotonic() >= self._due
                poller.register(self._subscriber.socket, zmq.POLLIN if is_due else 0)
            poller.poll(int(self._timeout() * 1000) + 1)
            if self._subscriber is not None:
                self._take_newest(self._subscriber)
                self._publish_judged()
            self._answer_still()
            if self._subscriber is not None:
                poller.register(self._subscriber.socket, 0)
            self._statistics.write_if_due()

    def _timeout(self) -> float:
        if self._stills:
            return 0.0
        now = time.monotonic()
        waits = [self._statistics.due_in, self._look_at - now]
        if self._due > now and self._subscriber is not None:
            waits.append(self._due - now)
        if self._held:
            waits.append(self._held.due_in)
        return max(0.0, min(waits))

    def _follow_browsers(self) -> None:
        """Receive subscriptions: a byte, 1 or 0, and the topic. Other messages of clients are ignored."""
        with contextlib.suppress(zmq.Again):
            for _ in range(_MAX_READ):
                message = self._socket.recv(zmq.NOBLOCK)
                if message[:1] in (b"\0", b"\1"):
                    self._follow(request_of(message[1:]), is_new=message[:1] == b"\1")

    def _follow(self, request: Request | None, *, is_new: bool) -> None:
        if isinstance(request, Still):
            if is_new:
                self._stills.append(request)
        elif isinstance(request, View):
            _change(self.views, request, is_new=is_new)
            if is_new:
                self._look_at = 0.0
        elif request is not None:
            _change(self.regions, request, is_new=is_new)

    def _look_around(self) -> None:
        """Once a second: attach or detach, a removed ring or socket, a refused connection."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + CHECK_PERIOD_S
        self._binding.check()
        if self.views:
            self._wanted_until = now + LEAVE_AFTER_S
        if self._subscriber is None:
            if self.views:
                self._attach()
        elif now >= self._wanted_until:
            self._detach()
        elif not self._held:
            self._subscriber.check()
            reader = self._subscriber.reader
            reader.log_refusal()
            with self._reported():
                reader.refresh()
                reader.watch_source()

    def _attach(self) -> None:
        """Attach to the ring once a source has made it."""
        name = f"{self._config.detector_name}-{ring_suffix(self._suffix)}"
        if status_of(SHM_DIRECTORY / name) is None:
            self._report("no source has published images yet", "no_source")
            return
        with self._reported():
            self._subscriber = ImageSubscriber(self._config, self._suffix)
            self._held = HeldImages[_Taken](self._subscriber.reader)
            self._problem = ""
            event("attached to the ring buffer %s for browsers", name)

    def _detach(self) -> None:
        assert self._subscriber is not None
        self._subscriber.close()
        self._subscriber = self._held = None
        self._levels.clear()
        self._histogram, self._histogram_at = None, 0.0
        self._recent.clear()
        event("detached from the ring buffer: no browser shows its images")

    @contextlib.contextmanager
    def _reported(self):
        try:
            yield
        except (EndpointError, GeometryError) as error:
            self._report(str(error), "ring_not_usable")

    def _report(self, problem: str, code: str) -> None:
        """Log a new problem, and publish it for the browsers."""
        if problem != self._problem:
            self._problem = problem
            logger.warning("no images for browsers: %s", problem)
        for view in self.views:
            self._send(problem_message(view, self._config.detector_name, problem, code))

    def _take_newest(self, subscriber: ImageSubscriber) -> None:
        now = time.monotonic()
        if now < self._due or not self.views:
            return
        metadata = subscriber.newest(MAX_ANNOUNCEMENTS)
        if metadata is None:
            return
        self._due = max(self._due + self._period, now)
        reader, held = subscriber.reader, self._held
        assert held is not None
        has_cursor = reader.has_cursor_for(metadata)
        if not (reader.holds(metadata) if has_cursor else reader.expect(metadata)):
            self._overwritten()
            return
        start = time.monotonic()
        try:
            pixels = self._pixels_of(subscriber, metadata)
        except CompressionError as error:
            self._not_decoded(subscriber, metadata, error)
            return
        taken = _Taken(metadata, self._pictures.make(pixels, self.views, self.regions))
        if now >= self._histogram_at:
            self._histogram_at = now + HISTOGRAM_PERIOD_S
            self._pictures.add_histogram(taken.made, pixels)
        self.encode_seconds += time.monotonic() - start
        if not has_cursor:
            held.add(taken, [metadata], time.monotonic())
        elif reader.holds(metadata):
            self._publish(taken)
        else:
            self._overwritten()

    def _pixels_of(self, subscriber: ImageSubscriber, metadata: ImageMetadata) -> np.ndarray:
        """Return the image, valid until the next one. Raise `CompressionError`."""
        image = subscriber.image(metadata)
        if self._decoded is None:
            return image.pixels
        # A copy, because a slot may be used again while a decoder reads lengths from it.
        decompress_image_into(metadata.compression, bytes(image.content), self._decoded)
        return self._decoded

    def _not_decoded(
        self, subscriber: ImageSubscriber, metadata: ImageMetadata, error: CompressionError
    ) -> None:
        reader = subscriber.reader
        if reader.has_cursor_for(metadata) and not reader.holds(metadata):
            self._overwritten()
        else:
            self._report(f"image {metadata.image_id}: {error}", "not_decoded")

    def _publish_judged(self) -> None:
        """Publish images of a source without cursor whose verdict is due, if it is good."""
        if self._held:
            for taken, (is_overwritten,) in self._held.release():
                if is_overwritten:
                    self._overwritten()
                else:
                    self._publish(taken)

    def _overwritten(self) -> None:
        self.n_overwritten += 1
        self._n_overwritten_since += 1

    def _publish(self, taken: _Taken) -> None:
        start = time.monotonic()
        metadata, made = taken.metadata, taken.made
        levels = {reducer: self._levels_of(reducer).of(whole) for reducer, whole in made.whole.items()}
        if made.histogram is not None:
            self._histogram = {"image": exact(metadata.image_id)} | asdict(made.histogram)
        latest = {"overwritten": self._n_overwritten_since, "histogram": self._histogram}
        for view in made.parts:
            self._send(image_message(self._config, metadata, view, made, levels[view.reducer], latest))
        self._recent.pop(metadata.image_id, None)
        self._recent[metadata.image_id] = metadata
        if len(self._recent) > _MAX_RECENT:
            del self._recent[next(iter(self._recent))]
        self._n_overwritten_since, self._problem = 0, ""
        self.n_encoded += 1
        self.encode_seconds += time.monotonic() - start

    def _levels_of(self, reducer: ReducerName) -> Levels:
        return self._levels.setdefault(reducer, Levels())

    def _answer_still(self) -> None:
        """Answer one request for an image that was published before: many would delay the next image."""
        if self._stills:
            request = self._stills.popleft()
            try:
                message = self._still(request)
            except _StillError as error:
                message = problem_message(request, self._config.detector_name, str(error), error.code)
            self._send(message)

    def _still(self, request: Still) -> bytes:
        metadata, where = self._recent.get(request.image), f"image {request.image}"
        if metadata is None or self._subscriber is None:
            raise _StillError("not_shown", f"{where} is none of the last that browsers were sent")
        reader = self._subscriber.reader
        overwritten = _StillError("overwritten", f"{where} was overwritten in the ring buffer")
        if not reader.has_cursor_for(metadata):
            raise _StillError(
                "overwritten", f"{where}: its source does not record what the ring buffer holds"
            )
        if not reader.holds(metadata):
            raise overwritten
        try:
            pixels = self._pixels_of(self._subscriber, metadata)
        except CompressionError as error:
            raise _StillError("not_decoded", f"{where}: {error}") from error
        if request.content == "pixels":
            x, y, width, height = request.area
            area = pixels[y : y + height, x : x + width] if any(request.area) else pixels
            message = pixels_message(self._config, metadata, request, area)
        else:
            view = View()
            made = self._pictures.make(pixels, [view], ())
            levels = Levels().of(made.whole[view.reducer])
            message = image_message(self._config, metadata, view, made, levels, {"overwritten": 0}, request)
        if not reader.holds(metadata):
            raise overwritten
        return message

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(zmq.Again):
            self._socket.send(message, zmq.NOBLOCK)

    def _pairs(self, period: Period) -> dict[str, object]:
        count = period.count(metrics.PREVIEWS_ENCODED)
        seconds = period.count(metrics.PREVIEW_ENCODE_SECONDS)
        return {
            "source": self._suffix,
            "processed_times": count,
            "repetition_rate_hz": count / period.seconds if period.seconds > 0 else 0.0,
            "n_overwritten_images": period.count(metrics.IMAGES_OVERWRITTEN),
            "avg_encode_us": seconds / count * 1e6 if count else 0.0,
        }

    def close(self) -> None:
        """Disconnect from source and browsers."""
        if self._subscriber is not None:
            self._subscriber.close()
        self._binding.close()
        self._context.destroy(linger=0)


def _change(wanted: dict, request: View | Region, *, is_new: bool) -> None:
    if not is_new:
        wanted.pop(request, None)
    elif len(wanted) < _MAX_REQUESTED:
        wanted[request] = None
