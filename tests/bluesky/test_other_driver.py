"""Devices with a driver that reports only status, count and reason, and files readable after closing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky.plans import count
from support.assertions.plans import Documents, PointCamera, assert_images, skip_calls, stream_images
from support.peers.cpp_driver import start_cpp_driver
from support.processes.deployment import Deployment
from support.processes.recording import Rig

from stddaq.client import DriverClient
from stddaq_ophyd import AcquisitionError, StdDaqDetector
from stddaq_ophyd.plans import fly


@pytest.fixture(params=[[], ["--by-arrival"]], ids=["by_id", "by_arrival"])
def device(
    request: pytest.FixtureRequest, deployment: Deployment, directory: Path
) -> Iterator[tuple[StdDaqDetector, PointCamera]]:
    """Return a detector with the stand-in for the C++ driver."""
    _, url = start_cpp_driver(deployment, *request.param)
    with Rig(deployment, directory) as rig:
        rig.wait_for_subscription()
        camera = PointCamera(rig)
        yield StdDaqDetector(url, name="det", paths=directory, trigger=camera, config=rig.config), camera


def test_points_are_published_after_their_files_are_closed(
    engine: RunEngine, documents: Documents, device: tuple[StdDaqDetector, PointCamera]
):
    det, camera = device
    det.images_per_event.put(5)
    seen: list[Any] = []
    engine.subscribe(lambda name, doc: seen.append(len(stream_images(documents))), "event")
    engine(count([det], 3))
    assert seen == [5, 10, 15]
    assert_images(stream_images(documents), camera.published)
    with DriverClient(det.prefix) as driver:
        assert driver.latest.status == "idle"


def test_a_flight_is_published_after_its_files_are_closed(
    engine: RunEngine, documents: Documents, device: tuple[StdDaqDetector, PointCamera]
):
    det, camera = device
    engine(fly([det], 23, period=0.1))
    assert_images(stream_images(documents), camera.published)
    assert documents["event"][-1]["data"]["det_n_recorded"] == 23


@pytest.mark.slow
def test_a_point_without_images_fails_and_the_next_plan_works(
    engine: RunEngine, documents: Documents, device: tuple[StdDaqDetector, PointCamera]
):
    det, camera = device
    skip_calls(engine, det, camera, {2}, margin=0.5)
    with pytest.raises(Exception, match=r"expected 1 images within 0\.5 s, got 0") as failed:
        engine(count([det], 3))
    assert isinstance(failed.value.__cause__, AcquisitionError)
    assert_images(stream_images(documents), camera.published)
    engine(count([det], 2))
    assert documents["stop"][-1]["exit_status"] == "success"
