"""Plans with a detector of two parts, each of which has a driver of its own: one run, one master file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.plans import count
from bluesky.utils import FailedStatus
from ophyd_async.core import init_devices
from support.assertions.plans import Documents, stream_images
from support.processes.deployment import wait_until
from support.processes.joined_drivers import (
    SHAPES,
    JoinedDrivers,
    assert_master_shows,
    joined_drivers,
)
from support.processes.recording import MakeRig, pixels_of

from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.async_detector import AsyncStdDaqDetector


class Camera:
    """Publishes the next images of both parts on each call.

    Attributes:
        without_second: ids of images that the second part does not get.
        before: called before each exposure with its first id.
    """

    def __init__(self, drivers: JoinedDrivers) -> None:
        self._drivers, self.n_published = drivers, 0
        self.without_second: set[int] = set()
        self.before: Callable[[int], None] = lambda first: None

    def fire(self, n_images: int) -> None:
        first = self.n_published
        self.before(first)
        self.n_published += n_images
        for image_id in range(first, first + n_images):
            self._drivers.publish([image_id], *((1,) if image_id in self.without_second else (1, 2)))


@pytest.fixture
def drivers(make_rig: MakeRig) -> Iterator[JoinedDrivers]:
    with joined_drivers(make_rig) as make:
        yield make()


@pytest.fixture
def camera(drivers: JoinedDrivers) -> Camera:
    return Camera(drivers)


@pytest.fixture(params=["ophyd", "ophyd-async"])
def detector(
    request: pytest.FixtureRequest, drivers: JoinedDrivers, camera: Camera, engine: RunEngine
) -> Iterator[Any]:
    options: dict[str, Any] = {
        "paths": drivers.directory,
        "trigger": camera,
        "other_drivers": drivers.urls[1:],
        "engine": engine,
    }
    if request.param == "ophyd":
        made = StdDaqDetector(drivers.urls[0], name="det", **options)
        yield made
        made.unstage().wait(60)
        return
    with init_devices():
        det = AsyncStdDaqDetector(drivers.urls[0], **options)
    yield det
    asyncio.run_coroutine_threadsafe(det.disconnect(), engine.loop).result(60)


def key_of(detector: Any) -> str:
    return "det_image" if isinstance(detector, StdDaqDetector) else "det"


def test_a_plan_records_all_parts_as_one_run(
    engine: RunEngine, documents: Documents, detector: Any, drivers: JoinedDrivers
):
    engine(count([detector], 5))
    expected = [pixels_of(i, SHAPES[0], salt=1) for i in range(5)]
    assert np.array_equal(stream_images(documents, key_of(detector)), expected)
    assert_master_shows(drivers, range(5), "det_00001_")
    for part in drivers.parts:
        assert part.account()["metadata"]["uid"] == documents["start"][0]["uid"]
    # The names of the next run continue.
    engine(count([detector], 2))
    assert_master_shows(drivers, [5, 6], "det_00002_")
    for part in drivers.parts:
        assert part.client.wait(("idle",), 60)


def test_a_plan_that_one_driver_refuses_leaves_no_run_and_no_files(
    engine: RunEngine, detector: Any, drivers: JoinedDrivers, tmp_path: Any
):
    (tmp_path / "other").mkdir()
    second = drivers.parts[1].client
    second.start(tmp_path / "other")
    with pytest.raises(FailedStatus, match=f"{drivers.urls[1]}: the driver is busy"):
        engine(count([detector], 2))
    assert drivers.parts[0].client.status().status == "idle"
    second.stop()
    second.wait(("idle",), 60)
    assert list(drivers.directory.iterdir()) == []
    engine(count([detector], 1))


@pytest.mark.slow
def test_a_driver_that_is_killed_fails_the_plan_and_stops_the_others(
    engine: RunEngine, detector: Any, drivers: JoinedDrivers, camera: Camera
):
    def kill(first: int) -> None:
        if first == 3:
            drivers.parts[1].driver.kill()

    camera.before = kill
    with pytest.raises(FailedStatus, match=r"part 2 .*killed"):
        engine(count([detector], 5))
    first = drivers.parts[0].client
    wait_until(lambda: first.status().status == "idle", what="the end of the run of the other driver")
    # The images before are whole.
    assert_master_shows(drivers, range(3), "det_00001_")
    with h5py.File(drivers.directory / "det_00001_Part1_Master.h5") as file:
        assert np.array_equal(file["/entry/data/image_id"], range(4))  # pyright: ignore


@pytest.mark.slow
def test_a_point_is_not_complete_before_each_part_has_its_images(
    engine: RunEngine, detector: Any, drivers: JoinedDrivers, camera: Camera
):
    camera.without_second = {2}
    if isinstance(detector, StdDaqDetector):
        detector.margin.put(1)
    with pytest.raises(FailedStatus, match=r"expected 1 images.*got 0"):
        engine(count([detector], 5))
    assert_master_shows(drivers, range(2), "det_00001_")
