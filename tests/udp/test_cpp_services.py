"""Receivers, converters and synchroniser beside those of std_daq (C++): each of them can be either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import h5py
import numpy as np
import pytest
from support.peers.cpp_modules import CppConverter, CppReceiver, CppSync
from support.peers.udp_detectors import UdpSender, eiger_frame, free_udp_ports
from support.processes.deployment import Deployment
from support.processes.recording import MakeRig
from support.processes.stream_readers import ReceivedImage, StreamReader
from support.processes.udp_modules import EIGER, LONG_IDLE_TIME, LONG_TIMEOUT, start_converters

from stddaq.dataplane.metadata import GOOD_IMAGE, MISSING_PACKETS

MODULES = (0, 1)
N_IMAGES = 5
FRAMES = np.random.default_rng(7).integers(1, 256, (N_IMAGES, 2, 256, 512), np.uint8)


def part_of(image: np.ndarray, module: int) -> np.ndarray:
    """Return the place of a module of `EIGER`; module 0 is upside down."""
    return image[::-1, :514] if module == 0 else image[:, 516:]


def place(module: int) -> Callable[[np.ndarray, np.ndarray], None]:
    def put(image: np.ndarray, frame: np.ndarray) -> None:
        part = part_of(image, module)
        part[:, :256], part[:, 258:] = frame[:, :256], frame[:, 256:]

    return put


def expected_images() -> np.ndarray:
    images = np.zeros((N_IMAGES, 256, 1030), np.uint8)
    for image, frames in zip(images, FRAMES, strict=True):
        for module in MODULES:
            place(module)(image, frames[module])
    return images


def check(images: Sequence[ReceivedImage]) -> None:
    assert [(image.image_id, image.status) for image in images] == [(i, GOOD_IMAGE) for i in range(N_IMAGES)]
    for image, expected in zip(images, expected_images(), strict=True):
        assert np.array_equal(image.pixels, expected)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Yield a stack whose resources are closed before the services end."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def eiger(make_deployment: Callable[..., Deployment]) -> Deployment:
    return make_deployment(start_udp_port=free_udp_ports(2), **EIGER)


def start_receivers(deployment: Deployment) -> Callable[[], None]:
    """Start receivers. Return a function that waits until they have converters."""
    receivers = [
        deployment.start("std_udp_recv_eg", module, *LONG_IDLE_TIME, ready=None) for module in MODULES
    ]
    for receiver in receivers:
        receiver.wait_for_line("ready")

    def wait() -> None:
        for receiver in receivers:
            receiver.wait_for_line("n_subscribers=1")

    return wait


def send_packets(deployment: Deployment) -> None:
    sender = UdpSender(deployment.config["start_udp_port"])
    for image_id, frames in enumerate(FRAMES):
        for module in MODULES:
            sender.send(module, eiger_frame(image_id, frames[module]))
    sender.close()


@pytest.mark.slow
@pytest.mark.parametrize("cpp_modules", [(0, 1), (1,)], ids=["all", "one"])
def test_frames_of_receivers_may_be_converted_by_cpp_converters(
    eiger: Deployment, opened: ExitStack, cpp_modules: tuple[int, ...]
) -> None:
    wait_for_converters = start_receivers(eiger)
    start_converters(eiger, *(set(MODULES) - set(cpp_modules)), sync_options=LONG_TIMEOUT)
    converters = [opened.enter_context(CppConverter(eiger.config, m, place(m))) for m in cpp_modules]
    wait_for_converters()
    reader = opened.enter_context(StreamReader(eiger))
    send_packets(eiger)
    for converter in converters:
        converter.convert(N_IMAGES)
    check(reader.receive(N_IMAGES))


def test_frames_of_cpp_receivers_become_images(eiger: Deployment, opened: ExitStack) -> None:
    receivers = [opened.enter_context(CppReceiver(eiger.config, module)) for module in MODULES]
    start_converters(eiger, *MODULES, sync_options=LONG_TIMEOUT)
    for receiver in receivers:
        receiver.wait_for_converter()
    reader = opened.enter_context(StreamReader(eiger))
    for image_id, frames in enumerate(FRAMES):
        for module in MODULES:
            receivers[module].publish(image_id, frames[module])
    received = reader.receive(N_IMAGES)
    check(received)
    assert all(image.is_held for image in received)
    receivers[1].publish(N_IMAGES, FRAMES[0, 0], n_missing=1)
    receivers[0].publish(N_IMAGES, FRAMES[0, 0])
    (last,) = reader.receive(1)
    assert last.status == MISSING_PACKETS


@pytest.mark.slow
@pytest.mark.parametrize("cpp_converters", [False, True], ids=["converters of stddaq", "of std_daq"])
def test_images_of_a_cpp_synchroniser_are_recorded(make_rig: MakeRig, cpp_converters: bool) -> None:
    rig = make_rig(start_udp_port=free_udp_ports(2), number_of_writers=1, **EIGER)
    deployment, config = rig.deployment, rig.deployment.config
    sync: CppSync = rig.enter(CppSync(config))
    wait_for_converters = start_receivers(deployment)
    converters: list[CppConverter] = []
    if cpp_converters:
        converters = [rig.enter(CppConverter(config, module, place(module))) for module in MODULES]
    else:
        start_converters(deployment, *MODULES, sync=False)
    wait_for_converters()
    sync.wait_for_subscriber()
    rig.client.start(rig.directory, file_prefix="run", n_image=N_IMAGES)
    rig.client.wait_until_ready(30)
    send_packets(deployment)
    for converter in converters:
        converter.convert(N_IMAGES)
    messages = sync.announce(N_IMAGES)
    account: dict[str, Any] = rig.end()
    assert account["n_good"] == N_IMAGES
    assert {(m[0], m[8], m[16], m[18]) for m in messages} == {
        (image_id, 0, module, 8) for image_id in range(N_IMAGES) for module in MODULES
    }
    with h5py.File(account["files"]["master"]) as file:
        data = file["/entry/data/data"]
        assert isinstance(data, h5py.Dataset)
        assert np.array_equal(data[:], expected_images())
