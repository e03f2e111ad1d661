"""From packets to announced images and files, through receivers, converters and synchroniser as processes."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.peers.udp_detectors import UdpSender, eiger_frame, free_udp_ports, gigafrost_frame
from support.processes.children import child_of
from support.processes.deployment import Deployment, Service, free_port, wait_until
from support.processes.stream_readers import StreamReader
from support.processes.udp_modules import (
    EIGER,
    LONG_IDLE_TIME,
    LONG_TIMEOUT,
    n_connections,
    replayed_images,
    start_converters,
)
from support.processes.udp_receivers import totals

from stddaq.client import DriverClient
from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import GOOD_IMAGE, MISSING_PACKETS
from stddaq.sources.simulated.scenes import Scene
from stddaq.udp.placement import placement

MakeDeployment = Callable[..., Deployment]
SHAPE = (8, 48)
PACKETS_MD5 = [
    "f4550dbf5f205b370d28939f04e260f1",
    "fec080dfaa50d056661a07b50587caca",
    "1dad285c9a9f34c5248d73d39f620764",
    "5104f46f85792b01f7da3339831a657f",
    "050e54c0e724e2f3aad452f59d0241f8",
    "a5549a3302332281eb2b1299d99c3e0f",
    "3bda4eb91c89a69da345ce51f53aa29a",
    "d4836b93506564a576746c3dd0b56bc2",
]
ANNOUNCEMENT = "08051008183020800628023001421a08071088ef99ab0518c4e68889012085888c9010288c96283001"


def packets_of(image: np.ndarray, frame_id: int, module: int, config: DetectorConfig) -> list[bytes]:
    pixels = placement(config, module).part_of(image)
    return gigafrost_frame(frame_id, pixels, module=module, shape=SHAPE, rows=2)


@pytest.mark.slow
def test_the_worked_example_of_a_gigafrost_is_announced_byte_by_byte(make_deployment: MakeDeployment) -> None:
    deployment = make_deployment(
        n_modules=8,
        image_pixel_height=SHAPE[0],
        image_pixel_width=SHAPE[1],
        start_udp_port=free_udp_ports(8),
    )
    config = DetectorConfig.parse(deployment.config)
    receivers = [deployment.start("std_udp_recv_gf", module, ready=None) for module in range(8)]
    start_converters(deployment, *range(8), sync_options=LONG_TIMEOUT)
    for receiver in receivers:
        receiver.wait_for_line("ready")
        receiver.wait_for_line("n_subscribers=1")
    expected = np.arange(8 * 48, dtype=np.uint16).reshape(SHAPE)
    sender = UdpSender(config.start_udp_port)
    with StreamReader(deployment) as reader:
        for module in range(8):
            (packet,) = packets_of(expected, 5, module, config)
            assert hashlib.md5(packet).hexdigest() == PACKETS_MD5[module]
            sender.send(module, [packet])
        (image,) = reader.receive(1)
    sender.close()
    assert np.array_equal(image.pixels, expected)
    assert image.is_held
    image.metadata.sequence = 0  # Not in messages of C++ services.
    assert image.metadata.SerializeToString().hex() == ANNOUNCEMENT


def random_images(n: int) -> np.ndarray:
    """Return images of `EIGER`, with zeros in the gaps."""
    images = np.random.default_rng(0).integers(1, 255, (n, 256, 1030), np.uint8)
    images[:, :, 256:258] = images[:, :, 514:516] = images[:, :, 772:774] = 0
    return images


def eiger_packets(image: np.ndarray, frame_id: int, module: int) -> list[bytes]:
    """Return the packets of a module of `EIGER`."""
    rows = image[::-1, :514] if module == 0 else image[:, 516:]
    pixels = np.concatenate([rows[:, :256], rows[:, 258:]], axis=1)
    # The rows of ports 0 and 1 of the detector.
    return eiger_frame(frame_id, pixels, column=module)


@pytest.mark.fault(
    fault="network: one packet of a module lost",
    state="recording",
    promise="the image has zeros in its place and the status missing_packets; the account lists it",
)
def test_stddaq_up_starts_the_whole_chain_and_records_its_images(
    make_deployment: MakeDeployment, directory: Path, seen: Callable[[str], None]
) -> None:
    deployment = make_deployment(number_of_writers=1, start_udp_port=free_udp_ports(2), **EIGER)
    port = free_port()
    up = deployment.start_up("--port", port, "-m", "--source", "udp")
    for module in range(2):
        up.wait_for_line(rf"module_id={module},.*n_subscribers=1")
    wait_until(lambda: n_connections(deployment) == 2, what="connected converters")
    images = random_images(5)
    sender = UdpSender(deployment.config["start_udp_port"])
    with DriverClient(f"ws://127.0.0.1:{port}") as driver, StreamReader(deployment) as reader:
        driver.start(directory, file_prefix="udp", n_image=5)
        driver.wait({"waiting_for_first_image"}, timeout=60)
        for image_id, image in enumerate(images):
            for module in range(2):
                packets = eiger_packets(image, image_id, module)
                if image_id == 3 and module == 1:
                    del packets[7]
                    image[56:64, 516:] = 0
                sender.send(module, packets)
            reader.receive(1)
        driver.wait_until_saved(timeout=60)
        account = driver.last_result()
    sender.close()
    assert account is not None
    assert (account["n_good"], account["n_damaged"]) == (4, 1)
    with h5py.File(account["files"]["master"]) as file:
        data, rows = file["/entry/data/data"], file["/entry/data/metadata"]
        assert isinstance(data, h5py.Dataset)
        assert isinstance(rows, h5py.Dataset)
        assert np.array_equal(data[:], images)
        assert rows["status"].tolist() == [GOOD_IMAGE] * 3 + [MISSING_PACKETS, GOOD_IMAGE]
    seen("image 3 has zeros in 8 rows of module 1 and is listed as damaged; the 4 others are good")
    assert up.end() == 0


@pytest.mark.slow
def test_replayed_packets_become_the_images_of_the_detector(
    make_deployment: MakeDeployment, directory: Path
) -> None:
    deployment = make_deployment(start_udp_port=free_udp_ports(2), **EIGER)
    sent = random_images(5)
    for module in range(2):
        packets = [packet for i, image in enumerate(sent) for packet in eiger_packets(image, i, module)]
        path = directory / f"{deployment.config['start_udp_port'] + module}.dat"
        path.write_bytes(b"".join(struct.pack("<Q", len(packet)) + packet for packet in packets))
    received = replayed_images(deployment, directory)
    assert [(image.image_id, image.status, image.is_held) for image in received] == [
        (image_id, GOOD_IMAGE, True) for image_id in range(5)
    ]
    for image, expected in zip(received, sent, strict=True):
        assert np.array_equal(image.pixels, expected)


@pytest.mark.slow
def test_images_of_two_sets_of_links_become_one_run(make_deployment: MakeDeployment, directory: Path) -> None:
    deployment = make_deployment(
        n_modules=8,
        image_pixel_height=SHAPE[0],
        image_pixel_width=SHAPE[1],
        start_udp_port=free_udp_ports(16),
        number_of_writers=1,
    )
    port = free_port()
    up = deployment.start_up("--port", port, "--source", "udp", "--link-sets", 2)
    for module in range(16):
        up.wait_for_line(rf"module_id={module},.*n_subscribers=1")
    wait_until(lambda: n_connections(deployment) == 16, what="connected converters")
    with DriverClient(f"ws://127.0.0.1:{port}") as driver:
        driver.start(directory, file_prefix="udp", n_image=20)
        driver.wait({"waiting_for_first_image"}, timeout=60)
        options = ("--link-sets", 2, "--rate", 50, "--n-images", 20)
        detector = deployment.run(deployment.stddaq, "simulate-udp", deployment.config_path, *options)
        assert detector.wait(60.0) == 0
        driver.wait_until_saved(timeout=60)
        account = driver.last_result()
    assert account is not None
    assert account["n_good"] == 20
    config = DetectorConfig.parse(deployment.config)
    scene, expected = Scene.of(config, "rings"), np.empty(SHAPE, config.dtype)
    with h5py.File(account["files"]["master"]) as file:
        data = file["/entry/data/data"]
        assert isinstance(data, h5py.Dataset)
        for image_id, image in enumerate(data):
            scene.write(image_id, expected)
            assert np.array_equal(image, np.minimum(expected, 4095))
    # Half of the images came through each set.
    for module in range(16):
        wait_until(
            lambda module=module: frames_of(up, module) == 10,
            timeout=60,
            what=f"10 frames of module {module}, not {frames_of(up, module)}",
        )
    assert up.end() == 0


def frames_of(up: Service, module: int) -> int:
    """Return the frames that a receiver has announced, by its statistics."""
    found = re.findall(rf"module_id={module},.*frames_counter=(\d+)", "\n".join(list(up.stdout)))
    return sum(map(int, found))


@pytest.mark.fault(
    fault="network: packets lost, repeated, exchanged and cut, in all modules",
    state="running",
    promise="the account is exact from the packets of the detector to the images",
)
def test_the_account_is_exact_from_packets_to_images(
    make_deployment: MakeDeployment, directory: Path, seen: Callable[[str], None]
) -> None:
    deployment = make_deployment(start_udp_port=free_udp_ports(2), **EIGER)
    receivers = [
        deployment.start("std_udp_recv_eg", module, *LONG_IDLE_TIME, ready=None) for module in range(2)
    ]
    sync = start_converters(deployment, 0, 1, sync_options=LONG_TIMEOUT)["sync"]
    for receiver in receivers:
        receiver.wait_for_line("n_subscribers=1")
    path, sent = directory / "images.npy", random_images(3)
    np.save(path, sent)
    rates = ("--lost", 0.01, "--repeated", 0.01, "--swapped", 0.01, "--wrong-size", 0.01)
    with StreamReader(deployment) as reader:
        options = ("--images", path, "--n-images", 40, "--rate", 20, *rates)
        detector = deployment.run(deployment.stddaq, "simulate-udp", deployment.config_path, *options)
        received = reader.receive(40, timeout=90.0)
        assert detector.wait(60.0) == 0
    counts = {kind: int(n) for kind, n in re.findall(r"(\w+): (\d+)", detector.stdout[-1])}
    missing = [n_missing(image.pixels, sent[image.image_id % 3]) for image in received]
    assert [image.image_id for image in received] == list(range(40))
    assert [image.status for image in received] == [MISSING_PACKETS if n else GOOD_IMAGE for n in missing]
    assert sum(missing) == counts["lost"] + counts["wrong_size"] > 0
    expected = {
        "processed_times": counts["sent"],
        "frames_counter": 80,
        "n_missed_packets": sum(missing),
        "n_bad_size": counts["wrong_size"],
    }
    found: Counter[str] = Counter()

    def is_counted() -> bool:
        found.clear()
        for receiver in receivers:
            found.update(totals(receiver))
        # The last frames are closed, and counted, after their packets.
        return found["processed_times"] >= counts["sent"] and found["frames_counter"] >= 80

    wait_until(is_counted, 60.0, f"the statistics of {counts}")
    assert {key: found[key] for key in expected} == expected
    assert found["n_repeated"] + found["n_late"] == counts["repeated"]
    wait_until(lambda: totals(sync).get("n_images") == 40, 60.0, "the statistics of the synchroniser")
    assert totals(sync)["n_corrupted_images"] == totals(sync)["n_lost"] == 0
    seen(f"{counts['lost']} packets lost, {counts['wrong_size']} cut: all zeros, in images that are not good")


def n_missing(image: np.ndarray, sent: np.ndarray) -> int:
    """Return how many packets an image lacks, whose other pixels are those that were sent."""
    is_zero = image == 0
    assert np.array_equal(image[~is_zero], sent[~is_zero])
    n = 0
    for columns in (slice(0, 514), slice(516, 1030)):
        # A packet of 8 rows.
        lacks = [not rows.any() for rows in np.split(image[:, columns], 32)]
        n += sum(lacks)
        kept = np.repeat(~np.array(lacks), 8)
        assert np.array_equal(image[kept, columns], sent[kept, columns])
    return n


# Of module 0; a synchroniser has no number.
VICTIMS = {
    "receiver": ("std_udp_recv_eg", "0"),
    "converter": ("std_data_convert_eg", "0"),
    "synchroniser": ("std_data_sync_module",),
}


@pytest.mark.slow
@pytest.mark.fault(
    fault="{victim}: SIGKILL",
    state="running",
    promise="stddaq up restarts it, images are announced again; no good image has pixels of another one",
)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_killed_service_is_restarted_and_images_continue(
    make_deployment: MakeDeployment, directory: Path, victim: str, seen: Callable[[str], None]
) -> None:
    deployment = make_deployment(number_of_writers=1, start_udp_port=free_udp_ports(2), **EIGER)
    up = deployment.run(
        *(deployment.stddaq, "up", deployment.config_path, "--port", free_port(), "--source", "udp"),
        ready="all services ready",
    )
    for module in range(2):
        up.wait_for_line(rf"module_id={module},.*n_subscribers=1")
    path, sent = directory / "images.npy", random_images(3)
    np.save(path, sent)
    n_good = 0

    def count_good(reader: StreamReader) -> int:
        """Receive an image; fail if it is good, and has other pixels than were sent. Return how many are."""
        nonlocal n_good
        image = reader.receive_one(1.0)
        if image is not None and image.status == GOOD_IMAGE and image.is_held:
            assert np.array_equal(image.pixels, sent[image.image_id % 3])
            n_good += 1
        return n_good

    options = ("--images", path, "--rate", 20)
    with StreamReader(deployment) as reader:
        detector = deployment.run(deployment.stddaq, "simulate-udp", deployment.config_path, *options)
        wait_until(lambda: count_good(reader), 60.0, "a good image")
        killed = child_of(up.pid, *VICTIMS[victim])
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: child_of(up.pid, *VICTIMS[victim]) not in {killed, None}, 60.0, "a new process")
        # What was announced before the end of the old process may still be queued.
        while reader.receive_one(0) is not None:
            pass
        n_good = 0
        wait_until(lambda: count_good(reader) >= 10, 60.0, "ten good images")
        assert detector.end() == 0
    seen("images continue, each with its own pixels")
    assert up.end() == 0
