"""`std_data_sync_module`: announces an image when all its modules have been converted.

It owns the image ring and binds the metadata stream `image`; converters write the pixels and push the message
of each frame to `sync`.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Mapping, Sequence

import zmq

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.config.modules import expected_modules, gaps, position_mistakes
from stddaq.daemon import metrics
from stddaq.daemon.log import event, logger, ready
from stddaq.daemon.main import StopRequest, run
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import converted_frames
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.dataplane.metadata import ID_MISSMATCH
from stddaq.errors import ConfigError
from stddaq.udp.arguments import UdpArgumentParser
from stddaq.udp.detector_fields import fields_of
from stddaq.udp.erasing import ModuleEraser
from stddaq.udp.module_sync import DEFAULT_TIMEOUT_S, ModuleImage, ModuleSync

PROGRAM = "std_data_sync_module"
SOURCE = "sync"
# The time is looked at at least once per this many messages.
BATCH_LIMIT = 1000
# What may be removed from outside is checked this often.
CHECK_PERIOD_S = 0.5
_DETECTORS_WITHOUT_MODULES = ("pco",)


class ModuleSyncService(Closing):
    """A running synchroniser: its sockets, the image ring, and its loop."""

    def __init__(self, config: DetectorConfig, timeout: float, *, announces_incomplete: bool = False) -> None:
        """Raise `ConfigError` for impossible positions, `EndpointError` or `GeometryError`."""
        if mistakes := position_mistakes(config):
            raise ConfigError("; ".join(mistakes), mistakes)
        self._config = config
        modules = expected_modules(config)
        self._sync = ModuleSync(
            modules,
            config.n_modules,
            config.module_sync_queue_size,
            config.n_slots,
            is_gigafrost=config.detector_type == "gigafrost",
            timeout=timeout,
        )
        self._fill = fields_of(config.detector_type)
        self._gaps = gaps(config)
        self._slots_are_clear = bytearray(config.n_slots)
        self._lost = self._sync.n_lost.copy()
        self._n_overwritten = self._n_restarts_logged = self._n_doubtful_logged = 0
        self._publisher = ImagePublisher(config, n_parts=config.n_modules)
        self._eraser = ModuleEraser(config, self._publisher) if announces_incomplete else None
        self._statistics = StatisticsLine(config, self._registry(modules), self._pairs)
        self._context = zmq.Context()
        self.endpoint = converted_frames(config.detector_name)
        self._socket = open_socket(self._context, zmq.PULL)
        try:
            self._binding = Binding(self._socket, self.endpoint)
        except BaseException:
            self._context.destroy()
            self._publisher.close()
            raise

    def serve(self, stop: StopRequest) -> None:
        """Announce images until asked to stop."""
        poller = zmq.Poller()
        for readable in (self._socket, self._publisher.socket, stop.fileno()):
            poller.register(readable, zmq.POLLIN)
        while not stop.poll():
            self._serve_images(poller, time.monotonic() + min(CHECK_PERIOD_S, self._statistics.due_in))
            self._publisher.count_subscribers()
            self._binding.check()
            self._report()

    def _serve_images(self, poller: zmq.Poller, check_at: float) -> None:
        """Announce images until `check_at`, or until anything but a frame arrives.

        Nothing else is done between two images: after each wake-up the caches are cold.
        """
        sync, clock = self._sync, time.monotonic
        while True:
            n, now, due_at = self._receive(), clock(), sync.due_at
            # Nothing is given up while frames that it lacks may be among the queued messages.
            if due_at <= now and n < BATCH_LIMIT:
                self._publish(now)
                due_at = sync.due_at
            if now >= check_at:
                return
            if n < BATCH_LIMIT:
                delay = math.ceil((min(check_at, due_at) - now) * 1000)
                readable = poller.poll(max(0, delay))
                if any(each is not self._socket for each, _ in readable):
                    return

    def _receive(self) -> int:
        """Receive up to `BATCH_LIMIT` messages, and announce what is complete. Return their number."""
        receive, add, clock = self._socket.recv, self._sync.add, time.monotonic
        for n in range(BATCH_LIMIT):
            try:
                message = receive(zmq.NOBLOCK)
            except zmq.Again:
                return n
            if add(message, clock()):
                self._publish(-math.inf)
        return BATCH_LIMIT

    def _publish(self, now: float) -> None:
        """Announce complete images. Give up those that are incomplete and overdue at `now`."""
        for image in self._sync.take(now):
            if self._eraser is None:
                if not image.lacking:
                    self._announce(image)
                continue
            if self._eraser.has_spoiled(image):
                image.status = ID_MISSMATCH
            if not image.lacking or self._eraser.erase(image):
                self._announce(image)
            self._eraser.follow(image)

    def _announce(self, image: ModuleImage) -> None:
        publisher, image_id = self._publisher, image.image_id
        if self._gaps:
            self._clear_gaps(image_id)
        self._fill(publisher.metadata, image.message)
        marks = () if image.n_unmarked else image.marks
        if publisher.commit_parts(image_id, marks, image.status) == ID_MISSMATCH:
            self._n_overwritten += 1

    def _clear_gaps(self, image_id: int) -> None:
        """Set the pixels between modules to 0, once in each slot, because no converter writes them."""
        slot = image_id % len(self._slots_are_clear)
        if not self._slots_are_clear[slot]:
            pixels = self._publisher.pixels(image_id)
            for gap in self._gaps:
                pixels[gap.top : gap.bottom, gap.left : gap.right] = 0
            self._slots_are_clear[slot] = True

    def _report(self) -> None:
        if self._sync.n_restarts != self._n_restarts_logged:
            self._n_restarts_logged = self._sync.n_restarts
            event("the image ids restart (restart %d)", self._n_restarts_logged)
        if not self._statistics.write_if_due():
            return
        lost = self._sync.n_lost - self._lost
        self._lost = self._sync.n_lost.copy()
        if n_doubtful := self._sync.n_doubtful - self._n_doubtful_logged:
            self._n_doubtful_logged += n_doubtful
            logger.warning(
                "%d frames may be of another acquisition than the others of their images", n_doubtful
            )
        if lost:
            named = ", ".join(f"{n} of module {module}" for module, n in sorted(lost.items()))
            logger.warning("incomplete images lack frames: %s", named)

    def _registry(self, modules: Sequence[int]) -> Registry:
        registry, sync = Registry(self._config.detector_name, PROGRAM), self._sync
        self._publisher.register(registry)
        registry.add(metrics.IMAGES_OVERWRITTEN, lambda: self._n_overwritten, source=SOURCE)
        registry.add(metrics.IMAGES_INCOMPLETE, lambda: sync.n_incomplete)
        registry.add(metrics.IMAGES_WAITING, lambda: sync.n_waiting)
        registry.add(metrics.IDS_RESTARTED, lambda: sync.n_restarts)
        registry.add(metrics.MODULE_FRAMES, lambda: sync.n_messages)
        registry.add(metrics.MODULE_FRAMES_IGNORED, lambda: sync.n_late, reason="late")
        registry.add(metrics.MODULE_FRAMES_IGNORED, lambda: sync.n_repeated, reason="repeated")
        registry.add(metrics.MODULE_FRAMES_DOUBTFUL, lambda: sync.n_doubtful)
        registry.add(metrics.MESSAGES_REJECTED, lambda: sync.n_malformed, reason="malformed")
        for module in modules:
            lost = functools.partial(sync.n_lost.__getitem__, module)
            registry.add(metrics.MODULE_FRAMES_LOST, lost, module=str(module))
        return registry

    def _pairs(self, period: Period) -> Mapping[str, object]:
        count = period.count
        return {
            "source": SOURCE,
            **period.rate(metrics.MODULE_FRAMES),
            "n_corrupted_images": count(metrics.IMAGES_INCOMPLETE),
            "n_images": count(metrics.IMAGES_PUBLISHED),
            "n_overwritten": count(metrics.IMAGES_OVERWRITTEN),
            "n_lost": count(metrics.MODULE_FRAMES_LOST),
            "n_late": count(metrics.MODULE_FRAMES_IGNORED, reason="late"),
            "n_repeated": count(metrics.MODULE_FRAMES_IGNORED, reason="repeated"),
            "n_doubtful": count(metrics.MODULE_FRAMES_DOUBTFUL),
            "n_malformed": count(metrics.MESSAGES_REJECTED),
            "n_waiting": period.total(metrics.IMAGES_WAITING),
        }

    def close(self) -> None:
        """Deliver announcements on their way; release the sockets and the image ring."""
        self._binding.close()
        self._context.term()
        self._publisher.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the synchroniser. Return the exit code."""
    parser = UdpArgumentParser(PROGRAM, "Announce an image when all modules of the detector are converted.")
    parser.add_config()
    parser.add_timeout("a module", DEFAULT_TIMEOUT_S)
    parser.add_announce_incomplete("that lack modules", "zeros in their places")
    return run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: StopRequest) -> None:
    if config.detector_type in _DETECTORS_WITHOUT_MODULES:
        event("nothing to do: the images of %s have no modules", config.detector_type)
        return
    with ModuleSyncService(config, args.timeout, announces_incomplete=args.announce_incomplete) as service:
        ready("modules of %s at %s", config.detector_name, service.endpoint)
        service.serve(stop)
