"""The whole chain of a detector that sends UDP packets: its highest rate, and its latency.

Receivers, converters and the synchroniser are services of their own, all on this machine, with the camera and
a subscriber to the images.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import zmq
from rig import cpu, detector, end, start, wait_ready
from tables import Table
from udp_bare_chain import bare_chain
from udp_camera import EIGER, JUNGFRAU, UdpCamera, camera_process, sent

from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.metadata import GOOD_IMAGE, ImageMetadata

SECONDS = 1.5
ATTEMPTS, STEPS = 3, 6
# Rates are tried between these fractions of what the CPU time of all parts allows.
LOWEST, HIGHEST = 0.3, 1.2
TIMEOUT_S = 20.0
SILENCE_MS = 500
LATENCY_HZ, LATENCY_IMAGES, WARM_UP = 100.0, 300, 100
MODULES = 8
# GigaFRoST images of 528x288 and 2016x2016 pixels.
GIGAFROSTS: dict[str, dict[str, Any]] = {
    "528x288": {"n_modules": MODULES, "image_pixel_height": 528, "image_pixel_width": 288},
    "2016x2016": {"n_modules": MODULES},
}


def sustained() -> Table:
    """Measure the highest rate without loss of a GigaFRoST, and the CPU time of the parts."""
    table = Table(
        "udp-rates",
        f"Highest rate without loss of a GigaFRoST ({MODULES} modules), from packets to announced images",
        f"Bisection over runs of {SECONDS:g} s; a rate counts if every image of {ATTEMPTS} runs is good. CPU "
        f"time at that rate, of all processes of a kind; {os.cpu_count()} cores are shared by all. The last "
        "column is the rate at which they would be busy.",
        [
            *("image", "rate Hz", "packets/s", "camera us/image", "receivers us/image"),
            *("converters us/image", "synchroniser us/image", "all cores busy Hz"),
        ],
    )
    for name, fields in GIGAFROSTS.items():
        with _chain(fields) as chain, camera_process(chain.path) as camera:
            table.add(name, *_highest(chain, camera))
    return table


def latency() -> Table:
    """Measure from sending the last packet of an image until a subscriber has its announcement."""
    table = Table(
        "udp-latency",
        "From the last packet of an image to its announcement",
        f"{LATENCY_IMAGES} images at {LATENCY_HZ:g} Hz, all packets of an image at once. The subscriber is "
        "in the camera's process. The least chain has the same processes and sockets, and no rules: it "
        "receives the packets, copies the pixels once, and passes 64 bytes on. Target for the median: 3 ms.",
        [
            *("detector", "packets/image", "median ms", "95 % ms", "longest ms", "images lost"),
            "least chain: median ms",
        ],
    )
    cases: list[tuple[str, dict[str, Any]]] = [
        *((f"GigaFRoST {size}, {MODULES} modules", fields) for size, fields in GIGAFROSTS.items()),
        ("Eiger 16 bit, 4 modules", EIGER | {"bit_depth": 16}),
        ("Jungfrau, 1 module", JUNGFRAU | {"detector_type": "jungfrau-raw"}),
    ]
    for name, fields in cases:
        with _chain(fields) as chain:
            camera = UdpCamera(chain.config)
            delays = sorted(_delays(camera, chain.has_received))
            n_packets = len(chain.modules) * camera.n_packets
            camera.close()
        table.add(
            name,
            n_packets,
            statistics.median(delays) * 1e3,
            delays[int(0.95 * len(delays))] * 1e3,
            delays[-1] * 1e3,
            LATENCY_IMAGES - len(delays),
            statistics.median(_bare_delays(fields)) * 1e3,
        )
    return table


class _Chain:
    """The running services, and a subscriber to the images."""

    def __init__(
        self,
        path: Path,
        services: dict[str, list[subprocess.Popen[str]]],
        modules: Sequence[int],
        stream: zmq.Socket[bytes],
    ) -> None:
        self.path, self.services, self.modules, self.stream = path, services, modules, stream
        self.config = DetectorConfig.load(path)

    def cpu(self) -> list[float]:
        """Return the CPU seconds of receivers, converters and synchroniser."""
        return [cpu(processes) for processes in self.services.values()]

    def receive(self, timeout_ms: int) -> ImageMetadata | None:
        """Return the next announcement; None after the timeout."""
        return ImageMetadata.FromString(self.stream.recv()) if self.stream.poll(timeout_ms) else None

    def has_received(self, image_id: int) -> bool:
        """Wait for the announcement of an image. Return whether it came, and the image is good."""
        while (image := self.receive(SILENCE_MS)) is not None:
            if image.image_id == image_id:
                return image.status == GOOD_IMAGE
        return False


@contextmanager
def _chain(fields: dict[str, Any]) -> Iterator[_Chain]:
    with detector("a", ram_buffer_gb=0, **fields) as path, ExitStack() as stack:
        config = DetectorConfig.load(path)
        suffix = {"gigafrost": "gf", "eiger": "eg"}.get(config.detector_type, "jf")
        modules = range(config.n_modules)
        commands = {
            "receivers": [(f"std_udp_recv_{suffix}", path, module) for module in modules],
            "converters": [(f"std_data_convert_{suffix}", path, module) for module in modules],
            "synchroniser": [("std_data_sync_module", path)],
        }
        services: dict[str, list[subprocess.Popen[str]]] = {}
        for kind, arguments in commands.items():
            services[kind] = [start(*command) for command in arguments]
            for process in services[kind]:
                stack.callback(end, process)
            for process in services[kind]:
                wait_ready(process)
        stream = stack.enter_context(_images(config))
        time.sleep(1.0)  # All subscriptions must be where they belong.
        yield _Chain(path, services, modules, stream)


@contextmanager
def _images(config: DetectorConfig) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, open_socket(context, zmq.SUB) as stream:
        stream.subscribe(b"")
        stream.connect(metadata_stream(config.detector_name, "image"))
        yield stream


def _bare_delays(fields: dict[str, Any]) -> list[float]:
    """Return the seconds from each image's last packet to its announcement by the least chain."""
    with detector("a", ram_buffer_gb=0, **fields) as path, bare_chain(path):
        config = DetectorConfig.load(path)
        with _images(config) as stream:

            def has_received(_image_id: int) -> bool:
                return stream.poll(SILENCE_MS) != 0 and bool(stream.recv())

            camera = UdpCamera(config)
            time.sleep(1.0)  # All subscriptions must be where they belong.
            delays = _delays(camera, has_received)
            camera.close()
    return delays


def _delays(camera: UdpCamera, has_received: Callable[[int], bool]) -> list[float]:
    """Return the seconds from each image's last packet to its announcement, without those that are lost."""
    delays, begin = [], time.perf_counter()
    for i in range(WARM_UP + LATENCY_IMAGES):
        time.sleep(max(0.0, begin + i / LATENCY_HZ - time.perf_counter()))
        image_id = camera.send_image()
        last_packet_at = time.perf_counter()
        if has_received(image_id) and i >= WARM_UP:
            delays.append(time.perf_counter() - last_packet_at)
    return delays


def _highest(chain: _Chain, camera: Any) -> tuple[float, ...]:
    """Return the highest rate, also in packets, the costs of the parts, and the rate that they allow."""
    # The first images touch the memory.
    _run(chain, camera, 100, 10.0)
    costs = _run(chain, camera, 100, 20.0)[1]
    allowed = (os.cpu_count() or 1) * 1e6 / sum(costs)
    low, high, best = LOWEST * allowed, HIGHEST * allowed, 0.0
    for _ in range(STEPS):
        rate = (low * high) ** 0.5
        n_images = max(20, int(rate * SECONDS))
        runs = [_run(chain, camera, n_images, rate) for _ in range(ATTEMPTS)]
        if all(n_good == n_images for n_good, _ in runs):
            low, best = rate, rate
            costs = [statistics.median(each) for each in zip(*(run[1] for run in runs), strict=True)]
        else:
            high = rate
    n_packets = MODULES * _packets_per_frame(chain.config)
    return best, best * n_packets, *costs, (os.cpu_count() or 1) * 1e6 / sum(costs)


def _packets_per_frame(config: DetectorConfig) -> int:
    camera = UdpCamera(config)
    camera.close()
    return camera.n_packets


def _run(chain: _Chain, camera: Any, n_images: int, rate: float) -> tuple[int, list[float]]:
    """Send images at a rate. Return how many are good, and CPU us per image of each part."""
    before, n_good = chain.cpu(), 0
    begin = time.perf_counter()
    camera.send((0, "send_images", n_images, rate))
    for _ in range(n_images):
        image = chain.receive(int((TIMEOUT_S if not n_good else 2.0) * 1000))
        if image is None:
            break
        n_good += image.status == GOOD_IMAGE
    used = sent(camera)
    # Too late for its rate: the camera itself, or what is queued.
    is_late = time.perf_counter() - begin > 1.1 * n_images / rate + 0.2
    while chain.receive(SILENCE_MS) is not None:
        pass
    parts = [now - earlier for now, earlier in zip(chain.cpu(), before, strict=True)]
    return 0 if is_late else n_good, [each / n_images * 1e6 for each in (used, *parts)]
