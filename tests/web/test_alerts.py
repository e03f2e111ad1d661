"""Each alert is fired by the fault that it is for, and that fault fires no other.

All faults happen at once, each to a detector of its own, and one Prometheus watches all of them. So the whole
takes as long as the slowest rule, which waits for a minute.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import yaml
import zmq
from support.peers.cameras import PCO, Camera, start_receiver
from support.peers.cpp_buffer import CppBuffer
from support.peers.cpp_services import CppSource
from support.peers.prometheus import ALERTS, Prometheus
from support.peers.redis_server import RedisServer
from support.peers.udp_detectors import UdpSender, free_udp_ports, gigafrost_frame
from support.processes.deployment import Deployment, Service, free_port, make_config, wait_until
from support.processes.live_streams import FakeStage, Subscriber, start_live_stream
from support.processes.recording import DAMAGED, Publishing, Rig, image_of, images_of, pixels_of
from support.processes.sources import start_source
from support.processes.storage import Storage
from support.processes.udp_modules import EIGER
from support.processes.web import RestService

from stddaq.client import RunFailedError
from stddaq.config import DetectorConfig
from stddaq.dataplane.endpoints import converted_frames, received_parts, replay_requests
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.metadata import ImageMetadata
from stddaq.dataplane.ring_buffer import RingBuffer
from stddaq.wire.image_buffer import camera_of
from stddaq.wire.std_daq.image_buffer_pb2 import NextImageResponse, RequestNextImage

pytestmark = [pytest.mark.external, pytest.mark.timeout(400)]

SMALL = {"image_pixel_height": 8, "image_pixel_width": 16, "number_of_writers": 1}
LARGE = {"image_pixel_height": 512, "image_pixel_width": 512}
ONE_WRITER = {"number_of_writers": 1}
GIGAFROST = {"image_pixel_height": 280, "image_pixel_width": 528, "n_modules": 8}
TWO_MODULES = EIGER
TWO_PAIRS = {"max_number_of_forwarders_spawned": 2, "use_all_forwarders": True}
STORED = {"image_pixel_height": 128, "image_pixel_width": 256}
REPLAYED = {"detector_name": f"REPLAY-{make_config()['detector_name']}"}
N_SLOTS = 1000
# Slower machines reach the state that a rule waits for later.
FIRES_S = 150.0
SETTLED_S = 60.0
POLL_S = 0.2


@dataclass
class Site:
    """A detector and what one fault needs.

    Attributes:
        ended: set at the end of all tests.
        n_services: services that run before the fault, besides `stddaq-rest`.
        exporter: a second `stddaq-rest`, which fails.
        cannot: why the fault is not possible here.
        work: the fault, in a thread of its own.
    """

    deployment: Deployment
    directory: Path
    ended: Event
    close: ExitStack
    n_services: int = 0
    exporter: RestService | None = None
    cannot: str = ""
    work: Future[None] = field(default_factory=Future)

    @property
    def name(self) -> str:
        """The label of its alerts."""
        if self.exporter:
            return self.exporter.url.removeprefix("http://")
        return self.deployment.detector_name

    def enter(self, resource: Any) -> Any:
        return self.close.enter_context(resource)

    def start(self, service: str, *args: object) -> Service:
        return self.deployment.start(service, *args)

    def rig(self, *driver: object, writers: bool = True, tolerant: bool = False) -> Rig:
        rig = Rig(self.deployment, self.directory)
        self.enter(rig)
        rig.start_driver(*driver, tolerant=tolerant)
        return rig.start_writers() if writers else rig


# What is before the first `yield` happens before Prometheus starts; the rest is the fault.
Course = Iterator[None]


@dataclass(frozen=True)
class Fault:
    course: Callable[[Site], Course]
    config: dict[str, Any]


FAULTS: dict[str, Fault] = {}


def fault(alert: str, **config: Any) -> Callable[[Callable[[Site], Course]], Callable[[Site], Course]]:
    """Declare the fault that fires `alert`, for a detector of this configuration."""

    def declare(course: Callable[[Site], Course]) -> Callable[[Site], Course]:
        FAULTS[alert] = Fault(course, config)
        return course

    return declare


@fault("StddaqServiceDown")
def writer_is_killed(site: Site) -> Course:
    writer = site.start("std_det_writer", 0)
    yield
    writer.kill()


@fault("StddaqImagesDamaged", **ONE_WRITER)
def source_calls_an_image_damaged(site: Site) -> Course:
    rig = site.rig()
    yield
    rig.record([image_of(1), image_of(2, status=DAMAGED)])


@fault("StddaqIdsSkipped", **ONE_WRITER)
def detector_skips_ids(site: Site) -> Course:
    rig = site.rig()
    yield
    rig.record([image_of(1), image_of(5)])


@fault("StddaqMessagesLost", **ONE_WRITER)
def messages_are_lost_in_transit(site: Site) -> Course:
    rig = site.rig()
    unannounced = rig.enter(RingBuffer(rig.config, "image"))
    yield
    rig.begin(n_image=20)
    for image in images_of(range(25)):
        if 10 <= image.image_id < 15:
            unannounced.begin(image.image_id)[:] = image.pixels.tobytes()
            unannounced.commit(image.image_id)
        else:
            rig.publish([image])
    assert rig.end()["n_dropped"] == 5


@fault("StddaqMessagesRejected", **ONE_WRITER)
def source_sends_what_is_no_image(site: Site) -> Course:
    rig = site.rig()
    source = rig.enter(CppSource(rig.deployment.config))
    source.wait_for_subscriber()
    yield
    rig.client.start(rig.directory, n_image=2)
    rig.client.wait_until_ready(30)
    for image in images_of(range(2)):
        source.announce(b"\x08")
        source.publish(image.image_id, image.pixels)
    assert rig.end()["n_malformed"] == 2


@fault("StddaqIdsRestarted", **ONE_WRITER)
def ids_restart_in_a_run(site: Site) -> Course:
    rig = site.rig()
    yield
    rig.record([*images_of(range(100, 110)), *images_of(range(3))])


@fault("StddaqImagesOverwritten", **SMALL)
def writer_is_stopped_for_longer_than_the_ring_lasts(site: Site) -> Course:
    rig = site.rig(tolerant=True)
    yield
    n_images = N_SLOTS + 300
    rig.begin(n_image=n_images)
    rig.writers[0].send(signal.SIGSTOP)
    rig.publish(images_of(range(n_images), shape=rig.config.image_shape))
    rig.client.wait_for(lambda status: status.n_received == n_images, 20, "all images")
    rig.writers[0].send(signal.SIGCONT)
    assert rig.end()["n_overwritten"]


@fault("StddaqImagesFailed")
def compressed_image_cannot_be_decoded(site: Site) -> Course:
    stage = site.enter(FakeStage(site.deployment, "h5bitshuffle-lz4"))
    stream = start_live_stream(site.deployment, "-s", "h5bitshuffle-lz4")
    assert stage.stream.wait_for_subscribers(1, 20)
    site.enter(Subscriber(stream.address))
    stream.process.wait_for_line(" subscribed")
    yield
    stage.publish(1, b"no blob")


@fault("StddaqRunFailed", **SMALL)
def metadata_file_is_removed_in_a_run(site: Site) -> Course:
    rig = site.rig("-m")
    site.start("std_det_meta_writer_gf")
    yield
    rig.begin()
    rig.publish(images_of(range(20), shape=rig.config.image_shape))
    rig.wait_for_count(20)
    rig.path("fileMeta.h5").unlink()
    with pytest.raises(RunFailedError):
        rig.client.wait_until_saved(30)


@fault("StddaqReaderLags", **SMALL)
def storage_of_a_writer_is_slow(site: Site) -> Course:
    rig = site.rig(writers=False, tolerant=True)
    storage = Storage(site.directory)
    record = "stddaq.writing.writer.image_recorder:ImageRecorder.record"
    rig.writers = [storage.start(rig.deployment, record, "std_det_writer", 0)]
    yield
    rig.begin()
    storage.stop_responding()
    slow = Thread(target=storage.respond_slowly, args=(300, 1.0, site.ended))
    slow.start()
    next_id = 0
    while slow.is_alive():
        # Less than the ring, and more than half of it while a batch is written.
        due = rig.client.status().n_written[0] + int(0.85 * N_SLOTS)
        rig.publish(images_of(range(next_id, due), shape=rig.config.image_shape))
        next_id = max(next_id, due)
        site.ended.wait(0.05)
    assert rig.end(stop=True)["n_overwritten"] == 0


@fault("StddaqNoImagesInRun", **ONE_WRITER)
def no_image_arrives(site: Site) -> Course:
    rig = site.rig()
    yield
    rig.begin()


@fault("StddaqDiskFullSoon", **ONE_WRITER)
def disk_is_small(site: Site) -> Course:
    site.directory = mounted(site, n_mib=32)
    site.deployment.write_config(allowed_roots=[str(site.directory)])
    rig = site.rig()
    yield
    if not site.cannot:
        rig.begin()
        with Publishing(rig, pause_s=0.02):
            site.ended.wait()
        rig.end(stop=True)


def mounted(site: Site, n_mib: int) -> Path:
    """Mount a file system of this size for the files of runs, if that is possible."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_mib}m", "none", str(site.directory)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(command, check=False).returncode:
        site.cannot = "only root can mount, where mounting is allowed"
    else:
        site.close.callback(subprocess.run, ["umount", "--lazy", str(site.directory)], check=True)
    return site.directory


@fault("StddaqRingMemoryShort")
def ring_of_a_cpp_source_is_larger_than_the_shared_memory(site: Site) -> Course:
    yield
    free = shutil.disk_usage("/dev/shm").free
    # C++ services reserve no memory for their rings: the first images that do not fit would kill them.
    site.deployment.write_config(ram_buffer_gb=2 * free // 2**30 + 1)
    site.enter(CppSource(site.deployment.config))
    site.ended.wait()


@fault("StddaqSourceBehind", **SMALL)
def source_is_too_slow_for_its_rate(site: Site) -> Course:
    yield
    start_source(site.deployment, "simulate", "--rate", 10**6, "--n-images", 10**6)


@fault("StddaqViewerDrops", **LARGE)
def viewer_does_not_read(site: Site) -> Course:
    publisher = site.enter(ImagePublisher(DetectorConfig.parse(site.deployment.config)))
    stream = start_live_stream(site.deployment)
    assert publisher.wait_for_subscribers(1, 20)
    site.enter(Subscriber(stream.address, queue=1))
    stream.process.wait_for_line(" subscribed")
    yield
    pixels = image_of(0, (512, 512)).pixels
    for image_id in range(10**6):
        publisher.publish(image_id, pixels)
        # More than its queue and its connection hold, then a stream at a moderate rate.
        if site.ended.wait(0.005 if image_id < 200 else 0.25):
            return


@fault("StddaqCameraImagesLate", **PCO)
def camera_sends_an_image_late(site: Site) -> Course:
    camera = site.enter(Camera())
    start_receiver(site.deployment, camera.address, "-n", 1)
    camera.send_images([0, 1, 2])
    yield
    camera.send_images([3, 4, 1, 5])


class GigaFrost(UdpSender):
    """The link of module 0, and its receiver. Each frame has the next id."""

    def __init__(self, site: Site, *options: object) -> None:
        port = free_udp_ports(16)
        super().__init__(port)
        site.close.callback(self.close)
        site.deployment.write_config(start_udp_port=port)
        self.receiver = site.start("std_udp_recv_gf", 0, *options)
        self._pixels, self._n_frames = np.ones((70, 264), np.uint16), 0
        self.send_frame()

    def send_frame(self, n_lost: int = 0) -> None:
        """Send the packets of the next frame, without the first `n_lost`."""
        shape = (GIGAFROST["image_pixel_height"], GIGAFROST["image_pixel_width"])
        packets = gigafrost_frame(self._n_frames, self._pixels, module=0, shape=shape, rows=18)
        self._n_frames += 1
        self.send(0, packets[n_lost:])


@fault("StddaqPacketsMissing", **GIGAFROST)
def network_loses_a_packet(site: Site) -> Course:
    detector = GigaFrost(site)
    yield
    detector.send_frame(n_lost=1)
    detector.send_frame()


@fault("StddaqPacketsDropped", **GIGAFROST)
def receiver_is_stopped_until_the_kernel_drops_packets(site: Site) -> Course:
    detector = GigaFrost(site, "--socket-buffer", 100_000)
    yield
    detector.receiver.send(signal.SIGSTOP)
    for _ in range(100):
        detector.send_frame()
    detector.receiver.send(signal.SIGCONT)
    # The kernel reports the number with the next datagrams.
    while not site.ended.wait(0.5):
        detector.send_frame()


@fault("StddaqPacketsRejected", **GIGAFROST)
def something_else_sends_to_the_port(site: Site) -> Course:
    detector = GigaFrost(site)
    yield
    detector.send(0, [b"?" * 100])


def announced_to_sync(site: Site) -> Callable[..., None]:
    """Start the synchroniser of two modules. Return a function that announces frames, (module, id)."""
    site.start("std_data_sync_module", "--timeout", 1)
    socket = site.enter(site.enter(zmq.Context()).socket(zmq.PUSH))
    socket.linger = 0
    socket.connect(converted_frames(site.deployment.detector_name))

    def announce(*frames: tuple[int, int]) -> None:
        for module, frame_id in frames:
            socket.send(struct.pack("<QQHHHH", frame_id, 0, module, 16, 0, 0))

    announce((0, 0), (1, 0), (0, 1), (1, 1))
    return announce


@fault("StddaqModuleFramesLost", **TWO_MODULES)
def module_does_not_deliver_a_frame(site: Site) -> Course:
    announce = announced_to_sync(site)
    yield
    announce((0, 2), (0, 3), (1, 3), (0, 4), (1, 4))


@fault("StddaqModuleFramesIgnored", **TWO_MODULES)
def module_delivers_a_frame_twice(site: Site) -> Course:
    announce = announced_to_sync(site)
    yield
    announce((0, 2), (0, 2), (1, 2))


def part(image_id: int, **forwarding: int) -> bytes:
    """Return the metadata of a part of an image, the number `image_id` + 1 of the first server."""
    metadata = ImageMetadata(image_id=image_id, height=32, width=48, size=3072, dtype=2, status=1)  # pyright: ignore[reportArgumentType]
    metadata.forwarding.number = image_id + 1
    for name, value in forwarding.items():
        setattr(metadata.forwarding, name, value)
    return metadata.SerializeToString()


@fault("StddaqPartsLost")
def network_loses_parts(site: Site) -> Course:
    site.start("std_data_sync_stream")
    sender = site.enter(site.enter(zmq.Context()).socket(zmq.XPUB))
    sender.linger = 0
    port = sender.bind_to_random_port("tcp://127.0.0.1")
    site.start("std_stream_receive", f"tcp://127.0.0.1:{port}", 0)
    assert sender.poll(20_000), "no receiver has subscribed"
    yield
    for image_id in (0, 5):
        sender.send_multipart([part(image_id, message=image_id + 1), pixels_of(image_id).tobytes()])


def received_by_sync(site: Site) -> Callable[..., None]:
    """Start the synchroniser of images. Return a function that delivers parts, (pair, id)."""
    site.start("std_data_sync_stream")
    socket = site.enter(site.enter(zmq.Context()).socket(zmq.PUSH))
    socket.linger = 0
    socket.connect(received_parts(site.deployment.detector_name))

    def deliver(*parts: tuple[int, int]) -> None:
        for pair, image_id in parts:
            socket.send(part(image_id, pair=pair))

    return deliver


@fault("StddaqImagesIncomplete", **TWO_PAIRS)
def pair_does_not_deliver_a_part(site: Site) -> Course:
    deliver = received_by_sync(site)
    yield
    deliver((1, 0), (2, 0), (1, 1), (1, 2), (2, 2))


@fault("StddaqImagesNotReceived")
def no_pair_delivers_some_images(site: Site) -> Course:
    deliver = received_by_sync(site)
    yield
    deliver((1, 0), (1, 5))


def redis_of(site: Site) -> RedisServer | None:
    """Start a database for an image buffer, if that is possible."""
    try:
        return site.enter(RedisServer())
    except pytest.skip.Exception as skipped:
        site.cannot = str(skipped)
        return None


def start_buffer(site: Site, service: str, redis: RedisServer) -> Service:
    started = site.start(service, "--root_dir", site.directory, "--db_address", redis.address)
    # It ends before its database.
    site.close.callback(started.end)
    return started


@fault("StddaqImagesNotStored", **STORED)
def file_of_the_image_buffer_cannot_grow(site: Site) -> Course:
    redis = redis_of(site)
    if redis is None:
        yield
        return
    publisher = site.enter(ImagePublisher(DetectorConfig.parse(site.deployment.config)))
    writer = start_buffer(site, "std_buffer_writer", redis)
    assert publisher.wait_for_subscribers(1, 20)
    yield
    # The metrics page fits; an image of 64 KiB that cannot be compressed does not.
    resource.prlimit(writer.pid, resource.RLIMIT_FSIZE, (2**15, resource.RLIM_INFINITY))
    publisher.publish(0, np.random.default_rng(0).integers(0, 2**16, (128, 256), np.uint16))


@fault("StddaqImagesNotAnnounced", **STORED)
def database_of_the_image_buffer_ends(site: Site) -> Course:
    redis = redis_of(site)
    if redis is None:
        yield
        return
    publisher = site.enter(ImagePublisher(DetectorConfig.parse(site.deployment.config)))
    start_buffer(site, "std_buffer_writer", redis)
    assert publisher.wait_for_subscribers(1, 20)
    yield
    redis.kill()
    publisher.publish(0, np.zeros((128, 256), np.uint16))


@fault("StddaqImagesUnreadable", **REPLAYED)
def file_of_stored_images_is_cut_off(site: Site) -> Course:
    redis = redis_of(site)
    if redis is None:
        yield
        return
    name = site.deployment.detector_name
    camera = camera_of(name)
    stored = CppBuffer(site.directory / camera, redis.client, camera)
    stored.store(*images_of(range(3)))
    start_buffer(site, "std_buffer_reader", redis)
    yield
    os.truncate(stored.path(0), 10)
    client = site.enter(site.enter(zmq.Context()).socket(zmq.REQ))
    client.linger = 0
    client.connect(replay_requests(name))
    client.send(RequestNextImage(image_id=0, new_request=True, last_image_id=2).SerializeToString())
    assert client.poll(20_000), "the reader does not answer"
    assert NextImageResponse.FromString(client.recv()).n_damaged == 3


@fault("StddaqServiceRestarts", **ONE_WRITER)
def writer_crashes_repeatedly(site: Site) -> Course:
    deployment = site.deployment
    up = deployment.run(
        *(deployment.stddaq, "up", deployment.config_path, "--port", free_port()), ready="all services ready"
    )
    site.n_services += 2  # The driver and the writer.
    yield
    for _ in range(3):
        n_lines = len(up.stdout)
        os.kill(writer_of(up), signal.SIGKILL)
        up.wait_for_line(r"^writer 0 .*ready", start=n_lines)


def writer_of(up: Service) -> int:
    """Return the process of the writer that `stddaq up` runs."""

    def find() -> int | None:
        for pid in Path(f"/proc/{up.pid}/task/{up.pid}/children").read_text().split():
            if b"std_det_writer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        return None

    return wait_until(find, what="the writer")


@fault("StddaqConfigurationInvalid")
def configuration_is_broken(site: Site) -> Course:
    yield
    site.deployment.config_path.write_text("{")


@fault("StddaqExporterDown")
def exporter_is_killed(site: Site) -> Course:
    site.exporter = RestService.start(site.deployment, site.directory)
    yield
    site.exporter.process.kill()


@dataclass(frozen=True)
class Plant:
    """All detectors, after their faults have begun."""

    prometheus: Prometheus
    sites: dict[str, Site]

    def wait_for(self, alert: str) -> Site:
        """Wait until the alert of this fault fires. Return its site."""
        site = self.sites[alert]
        if site.cannot:
            pytest.skip(site.cannot)

        def fires() -> bool:
            if site.work.done():
                site.work.result()
            return alert in self.prometheus.fired()[site.name]

        wait_until(fires, FIRES_S, f"{alert} fires", POLL_S)
        return site


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Start all services and Prometheus, and let all faults happen."""
    with ExitStack() as close, pytest.MonkeyPatch.context() as monkeypatch:
        ipc = Path(mkdtemp(prefix="sd-", dir="/tmp"))
        close.callback(shutil.rmtree, ipc)
        monkeypatch.setenv("STDDAQ_IPC_DIR", str(ipc))
        files, ended = tmp_path_factory.mktemp("plant"), Event()
        sites: dict[str, Site] = {}
        courses: dict[str, Course] = {}
        for alert, told in FAULTS.items():
            deployment = Deployment(files, ipc_directory=ipc, **told.config)
            close.callback(deployment.close)
            (files / alert).mkdir()
            site = Site(deployment, files / alert, ended, close.enter_context(ExitStack()))
            sites[alert], courses[alert] = site, told.course(site)
            next(courses[alert])
            site.n_services += len(deployment.services) if not site.exporter else 0
        prometheus = watched(list(sites.values()), tmp_path_factory.mktemp("prometheus"), close)
        faults = close.enter_context(ThreadPoolExecutor(len(sites)))
        close.callback(ended.set)
        for alert, site in sites.items():
            site.work = faults.submit(next, courses[alert], None)
        yield Plant(prometheus, sites)


def watched(sites: Sequence[Site], directory: Path, close: ExitStack) -> Prometheus:
    """Start `stddaq-rest` for all detectors, and a Prometheus. Return it when it has seen all services."""
    monitored = [site.deployment for site in sites if not site.exporter]
    paths = [deployment.config_path for deployment in monitored[1:]]
    rest = RestService.start(monitored[0], directory / "roots", *paths)
    close.callback(rest.process.end)
    exporters = [rest, *(site.exporter for site in sites if site.exporter)]
    targets = [exporter.url.removeprefix("http://") for exporter in exporters]
    prometheus = close.enter_context(Prometheus(directory, targets))
    prometheus.start()
    n_services = sum(site.n_services for site in sites)
    running = 'count(stddaq_service_up{service!="stddaq-rest"} == 1)'
    wait_until(lambda: prometheus.value(running) == n_services, SETTLED_S, f"{n_services} services", POLL_S)
    assert prometheus.fired() == {}
    return prometheus


@pytest.mark.parametrize("alert", FAULTS)
def test_fault_fires_its_alert(plant: Plant, alert: str) -> None:
    plant.wait_for(alert)


def test_no_fault_fires_another_alert(plant: Plant) -> None:
    expected = {plant.wait_for(alert).name: {alert} for alert, site in plant.sites.items() if not site.cannot}
    assert plant.prometheus.fired() == expected


def test_every_alert_has_its_fault() -> None:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert sorted(rule["alert"] for rule in rules) == sorted(FAULTS)
