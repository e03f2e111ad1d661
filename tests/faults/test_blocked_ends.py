"""SIGTERM while a service waits for storage or a peer: it ends with exit code 0 within 2 s."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import zmq
from support.processes.children import children
from support.processes.deployment import Deployment, Service, free_port
from support.processes.live_streams import start_live_stream, subscribed
from support.processes.machine import assert_within
from support.processes.recording import MakeRig, Rig, assert_saved, images_of
from support.processes.storage import Storage
from support.processes.web import RestService
from support.tools.fault_table import Seen

from stddaq.client import RunFailedError
from stddaq.config import DetectorConfig
from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.wire.std_daq import writer_action_pb2 as pb

MakeDeployment = Callable[..., Deployment]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def end(service: Service) -> str:
    """Send SIGTERM. Check exit code and time, and return them in words."""
    begin = time.monotonic()
    assert service.end() == 0, service.output
    seconds = time.monotonic() - begin
    assert_within(seconds, 2.0)
    assert service.stderr == []
    return f"exit code 0 after {seconds:.1f} s"


@pytest.mark.fault(
    fault="storage of a writer does not respond; SIGTERM",
    state="recording",
    promise="exit code 0 within 2 s; error that names it; the next run is perfect",
)
@pytest.mark.parametrize(
    "function", ["os:pwritev", "stddaq.files.raw_file:RawFile.flush"], ids=["pixels", "metadata"]
)
def test_a_writer_whose_storage_does_not_respond(
    make_rig: MakeRig, storage: Storage, function: str, seen: Seen
) -> None:
    rig = make_rig(writers=False, number_of_writers=1)
    rig.writers = [storage.start(rig.deployment, function, "std_det_writer", 0)]
    rig.begin()
    storage.stop_responding()
    rig.publish(images_of(range(10)))
    storage.wait_for_a_call()
    ended = end(rig.writers[0])
    assert "blocked for 1.4 s after a signal to end" in rig.writers[0].stdout[-1]
    assert f"{rig.deployment.detector_name}-writer-0" not in rig.deployment.sockets()
    with pytest.raises(RunFailedError, match="writer 0 exited"):
        rig.client.wait_until_saved(60)
    rig.restart_writer(0)
    images = images_of(range(20))
    assert_saved(rig.record(images, overwrite=True), images)
    seen(f"{ended}; error: writer 0 exited; next run perfect")


@pytest.mark.fault(
    fault="storage does not respond while a writer makes the master file; SIGTERM",
    state="saving",
    promise="exit code 0 within 2 s, no process or socket is left; error that names it; next run perfect",
)
def test_a_writer_whose_master_file_is_not_made(make_rig: MakeRig, storage: Storage, seen: Seen) -> None:
    rig = make_rig(writers=False, number_of_writers=1)
    function = "stddaq.writing.master_request:create_as_requested"
    rig.writers = [writer] = [storage.start(rig.deployment, function, "std_det_writer", 0)]
    storage.stop_responding()
    rig.begin(n_image=5)
    rig.publish(images_of(range(5)))
    storage.wait_for_a_call()
    (child,) = children(writer.pid)
    ended = end(writer)
    assert not Path(f"/proc/{child}").exists()
    assert f"{rig.deployment.detector_name}-writer-0" not in rig.deployment.sockets()
    with pytest.raises(RunFailedError, match="writer 0"):
        rig.client.wait_until_saved(60)
    reason = rig.account()["reason"]
    rig.restart_writer(0)
    images = images_of(range(20))
    assert_saved(rig.record(images, overwrite=True), images)
    seen(f"{ended}; error: {reason.partition(';')[0]}; next run perfect")


@pytest.mark.fault(
    fault="a driver sends requests and receives no responses; writer: SIGTERM",
    state="idle",
    promise="exit code 0 within 2 s",
)
def test_a_writer_whose_driver_takes_no_responses(deployment: Deployment, tmp_path: Path, seen: Seen) -> None:
    with zmq.Context() as context, connections.open_socket(context, zmq.PUSH) as driver:
        binding = Binding(driver, endpoints.driver_to_writer(deployment.detector_name, 0))
        writer = deployment.start("std_det_writer", 0)
        for number in range(40):
            create = pb.CreateWriterFile(path=str(tmp_path / "absent" / f"{number}.h5"))
            driver.send(pb.WriterAction(request=number + 1, create_file=create).SerializeToString())
        writer.wait_for_line("no driver is connected; a response is dropped")
        seen(end(writer))
        binding.close()


@pytest.mark.slow
def test_a_metadata_writer_whose_storage_does_not_respond(make_rig: MakeRig, storage: Storage) -> None:
    rig = make_rig(driver=["-m"])
    function = "stddaq.files.metadata_file:MetadataFile.flush"
    writer = storage.start(rig.deployment, function, "std_det_meta_writer_gf")
    rig.begin()
    storage.stop_responding()
    rig.publish(images_of(range(10)))
    storage.wait_for_a_call()
    end(writer)
    with pytest.raises(RunFailedError, match="the metadata writer exited"):
        rig.client.wait_until_saved(60)
    rig.deployment.start("std_det_meta_writer_gf")
    images = images_of(range(20))
    assert_saved(rig.record(images, overwrite=True), images)


@pytest.mark.fault(
    fault="writers: SIGSTOP; driver: SIGTERM",
    state="recording, also after stop",
    promise="exit code 0 within 2 s",
)
@pytest.mark.parametrize("stopped", [False, True], ids=["recording", "after stop"])
def test_a_driver_whose_writers_are_silent(make_rig: MakeRig, stopped: bool, seen: Seen) -> None:
    rig = make_rig(number_of_writers=2)
    rig.begin()
    rig.publish(images_of(range(10)))
    rig.wait_for_count(10)
    for writer in rig.writers:
        writer.send(signal.SIGSTOP)
    if stopped:
        rig.client.stop()
    ended = end(rig.driver)
    for writer in rig.writers:
        writer.send(signal.SIGCONT)
    seen(ended)


def test_a_driver_with_clients_that_do_not_read(rig: Rig) -> None:
    host, port = urlsplit(rig.url).netloc.split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(5)]
    for connection in silent[:3]:
        connection.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert connection.recv(12) == b"HTTP/1.1 101"
    rig.begin()
    end(rig.driver)
    for connection in silent:
        connection.close()


def test_a_web_service_with_a_request_that_does_not_end(deployment: Deployment, tmp_path: Path) -> None:
    service = RestService.start(deployment, tmp_path / "root")
    host, port = urlsplit(service.url).netloc.split(":")
    with socket.create_connection((host, int(port))) as request:
        request.sendall(
            b"POST /api/config/set?user=me HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n"
        )
        assert request.recv(12) == b"HTTP/1.1 100"  # The service waits for the body.
        end(service.process)
    assert not [line for line in service.process.stdout if "[info]" not in line]


def test_a_web_service_whose_storage_does_not_respond(
    deployment: Deployment, tmp_path: Path, storage: Storage
) -> None:
    function = "stddaq.config.store:ConfigStore.read"
    process = storage.start(deployment, function, "stddaq-rest", "--port", 0)
    url = process.wait_for_line(r"ready: listening on (http://\S+)")[1]
    service = RestService(deployment, process, url, tmp_path, None)  # pyright: ignore[reportArgumentType]
    storage.stop_responding()
    thread = threading.Thread(target=_ignore_errors(lambda: service.get("/api/config/get", user="me")))
    thread.start()
    storage.wait_for_a_call()
    end(process)
    thread.join()
    assert not [line for line in process.stdout if "[info]" not in line]


def _ignore_errors(function: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        with suppress(OSError):
            function()

    return call


@contextmanager
def publishing(deployment: Deployment) -> Iterator[Callable[[range], None]]:
    """Yield a function that publishes images with these ids."""
    config = DetectorConfig.parse(deployment.config)
    pixels = np.ones(config.image_shape, config.dtype)
    with ImagePublisher(config) as source:
        assert source.wait_for_subscribers(1, 60)

        def publish(ids: range) -> None:
            for image_id in ids:
                source.publish(image_id, pixels)

        yield publish


@pytest.mark.fault(
    fault="a viewer does not read; live stream: SIGTERM",
    state="streaming",
    promise="exit code 0 within 2 s",
)
def test_a_live_stream_with_a_viewer_that_does_not_read(make_deployment: MakeDeployment, seen: Seen) -> None:
    deployment = make_deployment(image_pixel_height=512, image_pixel_width=512, ram_buffer_gb=1)
    stream = start_live_stream(deployment)
    with subscribed(stream, queue=1), publishing(deployment) as publish:
        publish(range(300))
        stream.wait_for(processed_times=300)
        seen(end(stream.process))


@pytest.mark.parametrize("kind", ["pull", "sub"])
def test_a_camera_receiver_without_a_camera(make_deployment: MakeDeployment, kind: str) -> None:
    deployment = make_deployment(detector_type="pco")
    address = f"tcp://127.0.0.1:{free_port()}"
    end(deployment.start("std_bsread_recv", address, "-t", kind))


def test_a_camera_without_receivers(make_deployment: MakeDeployment) -> None:
    deployment = make_deployment(detector_type="pco")
    command = (deployment.stddaq, "simulate-pco", deployment.config_path, "tcp://127.0.0.1:0", "--rate", 100)
    end(deployment.run(*command, ready="ready"))


def test_a_source_that_waits_for_subscribers(deployment: Deployment) -> None:
    options = ("--wait-for-subscribers", 3, "--wait-timeout", 600)
    command = (deployment.stddaq, "simulate", deployment.config_path, *options)
    end(deployment.run(*command, ready="ready"))


@pytest.mark.parametrize("blocks", [True, False], ids=["its codec blocks", "its subscriber does not read"])
def test_a_compressor_that_does_not_get_on(deployment: Deployment, storage: Storage, blocks: bool) -> None:
    function = "stddaq.processing.codecs:Blosc2.__call__"
    compressor = storage.start(deployment, function, "std_data_compress_blosc2", "-t", 2)
    if blocks:
        storage.stop_responding()
    with publishing(deployment) as publish:
        publish(range(100))
        if blocks:
            storage.wait_for_a_call()
        end(compressor)
