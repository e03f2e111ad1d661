"""Another local user binds the sockets of a service before the service does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes.deployment import Deployment, Service, free_port
from support.processes.live_streams import Subscriber, start_live_stream
from support.processes.machine import assert_within
from support.processes.recording import MakeRig, Rig, assert_saved, images_of
from support.tools.fault_table import Seen

from stddaq.config import DetectorConfig
from stddaq.dataplane import endpoints
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.local_peers import untrusted_binder
from stddaq.dataplane.shared_segment import GROUP_VARIABLE
from stddaq.wire.std_daq import writer_action_pb2 as pb

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a process of another user")

# Binds a socket as another user, and sends a message to each peer.
PLANT = """
import os, sys, time, zmq
kind, path, message = sys.argv[1:]
context = zmq.Context()
socket = context.socket(getattr(zmq, kind))
os.setgroups([]); os.setgid({user}); os.setuid({user})
socket.bind("ipc://" + path)
os.chmod(path, 0o777)
print("bound", flush=True)
while True:
    socket.send(bytes.fromhex(message))
    print("sent", flush=True)
    time.sleep(0.05)
"""


class Planter:
    """Starts processes of another user in the ipc directory of a deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        deployment.ipc_directory.chmod(0o1777)

    def bind(self, kind: str, name: str, message: bytes, user: int = NOBODY) -> Service:
        path = self._deployment.ipc_directory / f"{self._deployment.detector_name}-{name}"
        program = PLANT.replace("{user}", str(user))
        return self._deployment.run(sys.executable, "-c", program, kind, path, message.hex(), ready="bound")


def wrong_announcement(source: ImagePublisher) -> bytes:
    """Return a message about image 1005, whose slot has the pixels of image 5."""
    message = source.metadata
    message.image_id = 1005
    message.ClearField("sequence")
    return message.SerializeToString()


@pytest.fixture
def victim() -> Iterator[Path]:
    """Return a directory of root in which another user wants to have a file."""
    directory = Path(tempfile.mkdtemp(prefix="stddaq-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


def orders(path: Path) -> dict[str, pb.WriterAction]:
    """Return the orders with which a driver makes a writer create a file."""
    create = pb.CreateWriterFile(path=str(path), writer_id=0, overwrite=True)
    master = pb.CreateMasterFile(path=str(path), raw_files=[str(path)], overwrite=True)
    return {
        "create_file": pb.WriterAction(request=1, create_file=create),
        "create_master_file": pb.WriterAction(request=1, create_master_file=master),
    }


@pytest.mark.fault(
    fault="another user binds the socket of the driver {moment} the writer, and orders `{order}`",
    state="idle",
    promise="refused within a second, names the process; the next run is perfect",
)
@pytest.mark.parametrize("order", ["create_file", "create_master_file"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_writer_obeys_no_driver_of_another_user(
    make_deployment: Callable[..., Deployment],
    victim: Path,
    directory: Path,
    moment: str,
    order: str,
    seen: Seen,
):
    deployment = make_deployment(number_of_writers=1)
    planter, message = Planter(deployment), orders(victim / "x0.h5")[order].SerializeToString()
    if moment == "before":
        planted = planter.bind("PUSH", "driver-0", message)
        (writer,) = deployment.start_writers()
    else:
        (writer,) = deployment.start_writers()
        planted = planter.bind("PUSH", "driver-0", message)
    expected = rf"-driver-0: expected a process of root, .* got process {planted.pid} of user nobody"
    writer.wait_for_line(expected)
    assert not any(victim.iterdir())
    assert not [line for line in writer.stdout if "created" in line or "failed" in line]
    planted.send(signal.SIGTERM)
    planted.wait()
    for name in deployment.sockets():
        if name.endswith("driver-0"):
            (deployment.ipc_directory / name).unlink()
    with Rig(deployment, directory) as rig:
        rig.writers = [writer]
        rig.start_driver()
        rig.driver.wait_for_line("writer 0 connected")
        images = images_of(range(20))
        assert_saved(rig.record(images), images)
    seen("refused, names the process; no file; next run perfect")


@pytest.mark.fault(
    fault="another user binds the socket of {bound}",
    state="start",
    promise="the start is an error that names the process",
)
@pytest.mark.parametrize("bound", ["the source", "a writer"])
def test_a_driver_reads_no_socket_of_another_user(
    make_rig: MakeRig, make_deployment: Callable[..., Deployment], bound: str, directory: Path, seen: Seen
):
    deployment = make_deployment(number_of_writers=1)
    name = "image" if bound == "the source" else "writer-0"
    planted = Planter(deployment).bind("PUB" if name == "image" else "PUSH", name, b"x")
    with Rig(deployment, directory) as rig:
        rig.start_driver()
        if name == "image":
            rig.start_writers()
        rig.driver.wait_for_line(rf"-{name}: expected a process of root, .* got process {planted.pid} of")
        rig.client.start(rig.directory, n_image=1)
        state = rig.client.wait_for(lambda status: status.status == "error", 60)
        assert f"got process {planted.pid} of user nobody" in str(state)
    planted.send(signal.SIGTERM)
    planted.wait()
    (deployment.ipc_directory / f"{deployment.detector_name}-{name}").unlink()
    seen("error, names the process")


def test_a_live_stream_reads_no_socket_of_another_user(deployment: Deployment):
    planted = Planter(deployment).bind("PUB", "image", b"x")
    address = f"tcp://127.0.0.1:{free_port()}"
    deployment.write_config(live_stream_configs={address: {"type": "forward", "config": []}})
    stream = deployment.start("std_live_stream", address)
    stream.wait_for_line(rf"-image: expected a process of root, .* got process {planted.pid} of user nobody")
    planted.kill()


def test_members_of_the_common_group_are_trusted(make_deployment: Callable[..., Deployment], victim: Path):
    deployment = make_deployment(number_of_writers=1, env={GROUP_VARIABLE: str(NOBODY)})
    message = orders(victim / "x0.h5")["create_file"].SerializeToString()
    (writer,) = deployment.start_writers()
    planted = Planter(deployment).bind("PUSH", "driver-0", message)
    writer.wait_for_line("x0.h5 created")
    planted.kill()


def test_a_socket_of_another_user_that_accepts_nothing_is_refused_without_a_wait(tmp_path: Path):
    path = tmp_path / "full"
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(str(path))
        full.listen(0)
        os.chown(path, NOBODY, NOBODY)
        first.connect(str(path))
        begin = time.monotonic()
        for _ in range(20):
            assert "got one of user nobody that accepts no further connections" in untrusted_binder(
                f"ipc://{path}"
            )
        assert_within(time.monotonic() - begin, 1.0)


@pytest.mark.fault(
    fault="another user binds the socket of the source at once when the source has ended",
    state="recording",
    promise="error that names the process",
)
def test_a_run_ends_when_another_user_takes_the_place_of_the_source(
    make_deployment: Callable[..., Deployment], directory: Path, seen: Seen
):
    deployment = make_deployment(number_of_writers=1)
    planter = Planter(deployment)
    with Rig(deployment, directory) as rig:
        rig.start_driver()
        rig.start_writers()
        with ImagePublisher(rig.config) as source:
            assert source.wait_for_subscribers(1, 60)
            rig.client.start(rig.directory, n_image=1000)
            rig.client.wait_until_ready(60)
            for image in images_of(range(20)):
                source.publish(image.image_id, image.pixels)
            rig.wait_for_count(20)
            message = wrong_announcement(source)
        planted = planter.bind("PUB", "image", message)
        state = rig.client.wait_for(lambda status: status.status == "error", 60)
        assert f"got process {planted.pid} of user nobody" in str(state)
        planted.kill()
    seen("error, names the process")


@pytest.mark.fault(
    fault="another user binds the socket of the source at once when the source has ended: {reader}",
    state="streaming",
    promise="refused within a second, names the process; none of its images is passed on",
)
@pytest.mark.parametrize("reader", ["live stream", "compressor"])
def test_images_of_another_user_that_takes_the_place_of_the_source_are_not_passed_on(
    deployment: Deployment, reader: str, seen: Seen
):
    planter = Planter(deployment)
    if reader == "live stream":
        stream = start_live_stream(deployment)
        service, address, subscribed = stream.process, stream.address, " subscribed"
    else:
        service = deployment.start("std_data_compress_h5bitshuffle_lz4", "-t", 1)
        address = endpoints.metadata_stream(deployment.detector_name, "h5bitshuffle-lz4")
        subscribed = "n_subscribers=1"
    with Subscriber(address) as subscriber:
        service.wait_for_line(subscribed)
        with ImagePublisher(DetectorConfig.parse(deployment.config)) as source:
            assert source.wait_for_subscribers(1, 60)
            for image in images_of(range(20)):
                source.publish(image.image_id, image.pixels)
            for _ in range(20):
                subscriber.receive()
            message = wrong_announcement(source)
        planted = planter.bind("PUB", "image", message)
        service.wait_for_line(rf"-image: expected a process of root, .* got process {planted.pid} of user")
        assert subscriber.is_quiet(1.0)
    planted.kill()
    seen("refused, names the process; nothing is passed on")
