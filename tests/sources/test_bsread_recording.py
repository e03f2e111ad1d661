"""A PCO camera is recorded by camera server, receiver, driver, writers and metadata writer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.peers.cameras import (
    PCO,
    Camera,
    simulated_scene,
    start_camera,
    start_receiver,
    wait_for_totals,
)
from support.processes.deployment import Deployment, free_port
from support.processes.recording import GOOD, Image, Rig, assert_saved, pixels_of

from stddaq.client.simulator import SimulatorClient
from stddaq.sources.bsread.camera_server import camera_name


@pytest.fixture
def make_camera_rig(
    make_deployment: Callable[..., Deployment], tmp_path: Path
) -> Iterator[Callable[..., Rig]]:
    """Return a function that starts driver, two writers and metadata writer for a PCO camera."""
    rigs: list[Rig] = []

    def make(**overrides: object) -> Rig:
        directory = tmp_path / "files"
        directory.mkdir()
        rig = Rig(make_deployment(**{**PCO, **overrides}), directory)
        rigs.append(rig)
        rig.start_driver("-m").start_writers()
        rig.deployment.start("std_det_meta_writer_pco")
        return rig

    yield make
    for rig in rigs:
        rig.close()


def begin(rig: Rig, **start: object) -> None:
    """Start a run. Return when every image that the receiver publishes is recorded."""
    rig.client.start(rig.directory, **start)  # pyright: ignore[reportArgumentType]
    rig.client.wait_until_ready(60)


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "bitshuffle_lz4"])
def test_camera_is_recorded_to_the_last_pixel(make_camera_rig: Callable[..., Rig], compression: str) -> None:
    rig = make_camera_rig(image_pixel_height=300, image_pixel_width=500)
    deployment, port = rig.deployment, free_port()
    receiver = start_receiver(deployment, f"tcp://127.0.0.1:{port}")
    wait_for_totals(receiver, n_subscribers=1)
    begin(rig, n_image=60)
    options = ("--compression", compression, "--rate", 100, "--n-images", 60, "--wait-for-subscribers", 4)
    start_camera(deployment, *options, port=port)
    account = rig.end()
    scene = simulated_scene(rig.config.image_shape)
    assert_saved(account, [Image(i, scene.image(i), GOOD) for i in range(60)])
    assert (account["n_skipped"], account["n_restarts"], account["n_dropped"]) == (0, 0, 0)
    with h5py.File(account["files"]["metadata"]) as file:
        stored = file[f"{deployment.detector_name}/metadata"]
        assert isinstance(stored, h5py.Dataset)
        rows = stored[:]
    assert rows["image_id"].tolist() == list(range(60))
    taken = rows["global_timestamp_sec"] * 10**9 + rows["global_timestamp_ns"]
    assert np.all(np.diff(taken.astype(np.int64)) > 0)


def test_run_continues_when_the_camera_is_restarted(make_camera_rig: Callable[..., Rig]) -> None:
    rig = make_camera_rig()
    with Camera() as camera:
        port = camera.port
        receiver = start_receiver(rig.deployment, camera.address)
        wait_for_totals(receiver, n_subscribers=1, n_connections=4)
        begin(rig, n_image=50)
        camera.send_images(range(20))
        rig.wait_for_count(20)
    receiver.wait_for_line("disconnected from the camera server")
    with Camera(port=port) as camera:
        camera.send_images(range(30))
        account = rig.end()
    ids = [*range(20), *range(30)]
    assert_saved(account, [Image(i, pixels_of(i, (32, 48)), GOOD) for i in ids])
    assert (account["n_restarts"], account["n_skipped"]) == (1, 0)


@pytest.mark.slow
def test_run_names_the_ids_that_are_missing_when_the_receiver_is_restarted(
    make_camera_rig: Callable[..., Rig],
) -> None:
    rig = make_camera_rig()
    with Camera() as camera:
        receiver = start_receiver(rig.deployment, camera.address)
        wait_for_totals(receiver, n_subscribers=1, n_connections=4)
        begin(rig, n_image=40)
        camera.send_images(range(20))
        rig.wait_for_count(20)
        assert receiver.end() == 0
        receiver = start_receiver(rig.deployment, camera.address)
        wait_for_totals(receiver, n_subscribers=1, n_connections=4)
        camera.send_images(range(25, 45))
        account = rig.end()
    ids = [*range(20), *range(25, 45)]
    assert_saved(account, [Image(i, pixels_of(i, (32, 48)), GOOD) for i in ids])
    assert account["skipped"] == [[20, 24]]


@pytest.mark.slow
def test_bursts_of_the_simulated_camera_are_recorded(make_camera_rig: Callable[..., Rig]) -> None:
    rig = make_camera_rig()
    name = rig.deployment.detector_name
    receiver = start_receiver(rig.deployment, f"tcp://127.0.0.1:{(port := free_port())}")
    wait_for_totals(receiver, n_subscribers=1)
    start_camera(rig.deployment, "--trigger", "--burst", 10, "--rate", 500, port=port)
    with SimulatorClient(camera_name(name)) as client:
        for run in range(3):
            begin(rig, n_image=10, file_prefix=f"run{run}")
            assert client.trigger().first_id == 10 * run
            account = rig.end()
            scene = simulated_scene(rig.config.image_shape)
            assert_saved(account, [Image(i, scene.image(i), GOOD) for i in range(10 * run, 10 * run + 10)])
