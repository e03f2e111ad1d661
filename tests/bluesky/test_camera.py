"""Triggers of the camera (signals, callables, the simulator), and directories of the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.plans import count
from bluesky.utils import FailedStatus
from ophyd import Component, Signal
from support.assertions.plans import Documents, PointCamera, assert_images, stream_images
from support.processes.deployment import Deployment

from stddaq_ophyd import DirectoryPaths, SimulatedCamera, StdDaqDetector
from stddaq_ophyd.plans import fly

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]


def test_one_signal_triggers_and_another_gives_the_exposure_time(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    shutter, exposure = Signal(name="shutter", value=0), Signal(name="exposure", value=0.25)
    det, camera = make_detector(trigger=shutter, trigger_value=3, exposure_time=exposure)
    det.images_per_event.put(2)

    def take(value: int, **_: object) -> None:
        if value == 3:
            shutter.put(0)
            camera.fire(2)

    shutter.subscribe(take, run=False)
    engine(count([det], 2))
    assert_images(stream_images(documents), camera.published)
    assert documents["descriptor"][0]["configuration"]["det"]["data"]["det_exposure_time"] == 0.25
    shutter.clear_sub(take)
    det.margin.put(0.1)
    with pytest.raises(FailedStatus) as failed:
        engine(count([det]))
    assert "det: expected 2 images within 0.6 s, got 0" in str(failed.value.__cause__)


@pytest.mark.slow
def test_the_simulator_is_a_camera_of_the_detector(
    engine: RunEngine, documents: Documents, deployment: Deployment, directory: Path
):
    class Detector(StdDaqDetector):
        camera = Component(SimulatedCamera, deployment.detector_name, add_prefix=())

    _, url = deployment.start_driver()
    deployment.start_writers()
    det = Detector(url, name="det", paths=directory)
    det.images_per_event.put(3)
    # The error names a camera that does not answer.
    with pytest.raises(FailedStatus) as failed:
        engine(count([det]))
    assert "det_camera: " in str(failed.value.__cause__)
    command = (
        deployment.stddaq,
        "simulate",
        deployment.config_path,
        "--trigger",
        "--wait-for-subscribers",
        1,
    )
    deployment.run(*command, ready="ready")
    engine(count([det], 2))
    assert stream_images(documents).std(axis=(1, 2)).min() > 0
    det.camera.destroy()


def test_files_go_to_a_directory_of_the_scan_that_readers_see_under_another_name(
    engine: RunEngine, make_detector: MakeDetector, tmp_path: Path, directory: Path
):
    (tmp_path / "mount").symlink_to(directory)
    paths = DirectoryPaths(directory, read_directory=tmp_path / "mount", engine=engine)
    det, camera = make_detector(paths=paths)
    for scan in (1, 2):
        documents = Documents()
        engine(count([det]), documents)
        found = directory / f"scan_{scan:05d}"
        assert (found / "det_Master.h5").exists()
        assert documents["stream_resource"][-1]["uri"] == (
            f"file://localhost{tmp_path}/mount/scan_{scan:05d}/det_Published.h5"
        )
        configured = documents["descriptor"][0]["configuration"]["det"]["data"]
        assert (configured["det_directory"], configured["det_file_prefix"]) == (str(found), "det_")
        assert_images(stream_images(documents), camera.published[-1:])


def test_files_are_of_the_run_in_which_a_detector_is_staged(
    engine: RunEngine, make_detector: MakeDetector, directory: Path
):
    det, _ = make_detector(paths=DirectoryPaths(directory, engine=engine))
    stream: Any = det

    def staged_in_a_run(**md: Any) -> Any:
        yield from bps.open_run(md)
        yield from bpp.stage_wrapper(bps.trigger_and_read([stream]), [stream])
        yield from bps.close_run()

    engine(staged_in_a_run())
    engine(staged_in_a_run(scan_id=77))
    engine(count([stream]))
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["scan_00001", "scan_00003", "scan_00077"]


def with_points(det: Any) -> Any:
    yield from bps.trigger_and_read([det])
    yield from bps.trigger_and_read([det])


@pytest.mark.parametrize("is_flight", [False, True])
def test_files_are_of_the_run_whose_number_the_plan_chooses(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, directory: Path, is_flight: bool
):
    det, camera = make_detector(paths=DirectoryPaths(directory, engine=engine))
    # Plans of bluesky stage their detectors before they open the run.
    engine(fly([det], 3, md={"scan_id": 77}) if is_flight else count([det], 3, md={"scan_id": 77}))
    found = directory / "scan_00077"
    configured = documents["descriptor"][0]["configuration"]
    assert configured["det"]["data"]["det_directory"] == str(found)
    assert_images(stream_images(documents), camera.published)
    uri = documents["stream_resource"][0]["uri"]
    assert uri == f"file://localhost{found}/det_Published.h5"
    with h5py.File(found / "det_Master.h5") as file:
        images = file["entry/data/data"]
        assert isinstance(images, h5py.Dataset)
        assert len(images) == 3
    assert [path.name for path in directory.iterdir()] == ["scan_00077"]
    assert (det.orphans, det.driver_state()) == ({}, "idle")


def test_files_of_runs_in_one_staging_are_of_the_first_that_takes_images(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, directory: Path
):
    det, camera = make_detector(paths=DirectoryPaths(directory, engine=engine))

    @bpp.stage_decorator([det])
    def plan() -> Any:
        yield from bpp.run_wrapper(bps.null())
        yield from bpp.run_wrapper(with_points(det))
        yield from bpp.run_wrapper(with_points(det))

    engine(plan())
    directories = {Path(doc["uri"]).parent.name for doc in documents["stream_resource"]}
    assert directories == {"scan_00002"}
    assert len(camera.published) == 4
    assert det.orphans == {}


def test_files_are_of_the_scan_numbers_of_the_facility(
    engine: RunEngine, make_detector: MakeDetector, directory: Path
):
    det, _ = make_detector(paths=DirectoryPaths(directory, engine=engine))
    numbers = iter((100, 7))
    engine.scan_id_source = lambda md: next(numbers)  # pyright: ignore[reportAttributeAccessIssue]
    for number in (100, 7):
        found = Documents()
        engine(fly([det], 5), found)
        assert f"/scan_{number:05d}/" in found["stream_resource"][0]["uri"]
    assert sorted(path.name for path in directory.iterdir()) == ["scan_00007", "scan_00100"]
