"""After a fault or an interruption of a plan with the ophyd-async device, the next plan is right."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bluesky import RunEngine, RunEngineInterrupted
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.plans import count
from bluesky.utils import FailedStatus
from ophyd_async.core import NotConnectedError, TriggerInfo, init_devices
from support.assertions.plans import (
    STEP,
    Documents,
    PointCamera,
    assert_images,
    pausing,
    stream_images,
)
from support.processes.deployment import free_port, wait_until
from support.processes.recording import Rig

from stddaq_ophyd import AcquisitionError
from stddaq_ophyd.async_detector import AsyncStdDaqDetector
from stddaq_ophyd.plans import fly

MakeDetector = Callable[..., tuple[AsyncStdDaqDetector, PointCamera]]

FLIGHT = TriggerInfo(number_of_events=20)


def failure(engine: RunEngine, plan: Any) -> str:
    """Run a plan that must fail on the device. Return the device's message."""
    with pytest.raises(FailedStatus) as failed:
        engine(plan)
    assert isinstance(failed.value.__cause__, AcquisitionError)
    return str(failed.value.__cause__)


def wait_until_idle(rig: Rig) -> None:
    """Wait until the driver is idle."""
    wait_until(lambda: rig.client.status().status == "idle", what="the driver to be idle")


def assert_next_plan_works(engine: RunEngine, det: AsyncStdDaqDetector, camera: PointCamera) -> None:
    """Check that the next plan works without any repair, and that the driver is idle after it."""
    n_before, found = len(camera.published), Documents()
    engine(count([det], 2), found)
    assert_images(stream_images(found, "det"), camera.published[n_before:])
    assert det.error is None
    wait_until_idle(camera.rig)


def points(det: AsyncStdDaqDetector, info: TriggerInfo, n_points: int) -> Any:
    """Take points as `info` says."""

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.prepare(det, info, wait=True)
        for _ in range(n_points):
            yield from bps.checkpoint()
            yield from bps.trigger_and_read([det])

    return plan()


def flight(det: AsyncStdDaqDetector, info: TriggerInfo = FLIGHT) -> Any:
    """Take a flight."""

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.prepare(det, info, wait=True)
        yield from bps.declare_stream(det, name="primary", collect=True)
        yield from bps.kickoff(det, wait=True)
        yield from bps.collect_while_completing([det], [det], flush_period=0.1, stream_name="primary")

    return plan()


def test_connecting_fails_without_a_driver_and_names_it(engine: RunEngine, tmp_path: Path):
    url = f"ws://127.0.0.1:{free_port()}"
    det = AsyncStdDaqDetector(url, tmp_path, name="det")
    with pytest.raises(NotConnectedError, match=url), init_devices():
        _ = AsyncStdDaqDetector(url, tmp_path, name="other")
    with pytest.raises(FailedStatus) as failed:
        engine(count([det]))
    assert "det: cannot start a run" in str(failed.value.__cause__)


def test_a_directory_that_is_refused_fails_the_plan_with_the_drivers_reason(
    engine: RunEngine, make_async_detector: MakeDetector, tmp_path: Path, directory: Path
):
    det, camera = make_async_detector(
        rig={"driver": ["--allowed-root", directory]}, paths=tmp_path / "elsewhere"
    )
    text = failure(engine, count([det]))
    assert f"expected a directory below {directory}, got {tmp_path / 'elsewhere'}" in text
    det._paths = directory
    assert_next_plan_works(engine, det, camera)


@pytest.mark.slow
def test_a_stalled_camera_fails_the_point_and_its_message_counts_the_images(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector()
    camera.skip_calls = {3}
    text = failure(engine, points(det, TriggerInfo(collections_per_event=3, exposure_timeout=3), 5))
    assert "det: expected 3 images, each within 3 s, got 0" in text
    assert str(camera.rig.directory) in text
    assert f"driver {camera.rig.url} is recording" in text
    assert str(det.error) == text
    assert len(documents["event"]) == 2
    assert_images(stream_images(documents, "det"), camera.published)
    assert_next_plan_works(engine, det, camera)


@pytest.mark.slow
def test_a_stalled_camera_fails_the_flight(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector()
    camera.n_held_back = 5
    text = failure(engine, flight(det, TriggerInfo(number_of_events=20, exposure_timeout=3)))
    assert "det: expected 20 images, each within 3 s, got 15" in text
    camera.n_held_back = 0
    assert_next_plan_works(engine, det, camera)


def test_bad_images_fail_the_point_unless_they_are_allowed(
    engine: RunEngine, make_async_detector: MakeDetector
):
    det, camera = make_async_detector()
    camera.damaged = {1, 2}
    assert "det: expected 1 good images, got 1 damaged among them" in failure(engine, count([det], 2))

    def allowing() -> Any:
        yield from bps.mv(det.allow_bad, True)
        yield from count([det], 2)

    engine(allowing())


@pytest.mark.fault(
    fault="the driver is killed",
    state="a point of an ophyd-async plan waits for its image",
    promise="the plan fails at once with the reason, and the device connects to the next driver",
)
def test_a_driver_that_is_killed_fails_the_point_at_once(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector, seen: Any
):
    det, camera = make_async_detector()
    camera.skip_calls = {3}
    camera.on_skip = lambda: threading.Timer(0.2, camera.rig.driver.kill).start()
    text = failure(engine, count([det], 5))
    assert "the driver closed the connection, or was killed" in text
    assert len(documents["event"]) == 2
    states: list[str] = []

    def note(value: Any, **_: Any) -> None:
        states.append(value["det-driver-state"]["value"])

    engine.loop.call_soon_threadsafe(det.driver.state.subscribe, note)
    wait_until(lambda: "disconnected" in states, what="the state disconnected")
    seen("the plan fails with the reason; the state of the device is disconnected")


def test_a_pause_after_any_message_of_a_step_leaves_no_orphan_in_the_documents(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector(rig={"number_of_writers": 3})
    expected: list[Any] = []
    # An event references the image of the last trigger before it.
    engine.subscribe(lambda name, doc: expected.extend(camera.published[-1:]), "stream_datum")
    with pytest.raises(RunEngineInterrupted):
        engine(pausing(count([det], 3)))
    for _ in STEP[1:]:
        with pytest.raises(RunEngineInterrupted):
            engine.resume()
    engine.resume()
    assert documents["stop"][0]["exit_status"] == "success"
    assert [doc["seq_num"] for doc in documents["event"]] == [1, 1, 2, 3]
    assert len(camera.published) > len(expected)
    assert_images(stream_images(documents, "det"), expected)
    assert_next_plan_works(engine, det, camera)


def test_a_pause_while_images_are_missing_takes_the_point_again(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector()
    camera.skip_calls = {2}
    camera.on_skip = lambda: threading.Timer(0.1, engine.request_pause).start()
    with pytest.raises(RunEngineInterrupted):
        engine(points(det, TriggerInfo(exposure_timeout=60), 3))
    engine.resume()
    assert documents["stop"][0]["exit_status"] == "success"
    assert_images(stream_images(documents, "det"), camera.published)
    assert_next_plan_works(engine, det, camera)


@pytest.mark.parametrize("how", ["abort", "resume"])
def test_a_paused_flight_can_be_aborted_or_resumed(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector, how: str
):
    det, camera = make_async_detector()
    camera.n_held_back = 7
    token = engine.subscribe(
        lambda name, doc: threading.Thread(target=engine.request_pause).start(), "stream_datum"
    )
    with pytest.raises(RunEngineInterrupted):
        engine(fly([det], 20, period=0.1))
    engine.unsubscribe(token)
    if how == "resume":
        camera.n_held_back = 0
        camera.fire(7)
    getattr(engine, how)()
    wait_until_idle(camera.rig)
    assert documents["stop"][0]["exit_status"] == {"abort": "abort", "resume": "success"}[how]
    assert_images(stream_images(documents, "det"), camera.published)
    camera.n_held_back = 0
    assert_next_plan_works(engine, det, camera)


@pytest.mark.parametrize("how", ["abort", "halt", "stop"])
def test_the_next_plan_works_after_a_plan_that_ended_during_a_point(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector, how: str
):
    det, camera = make_async_detector()
    camera.skip_calls = {3}
    camera.on_skip = lambda: threading.Timer(0.1, getattr(engine, how)).start()
    with pytest.raises(RunEngineInterrupted):
        engine(points(det, TriggerInfo(exposure_timeout=60), 5))
    assert documents["stop"][0]["exit_status"] == {"abort": "abort", "halt": "abort", "stop": "success"}[how]
    assert len(documents["event"]) == 2
    # Without waiting for the driver, which a halt leaves to the background.
    assert_next_plan_works(engine, det, camera)


def test_a_camera_that_hangs_does_not_keep_an_aborted_plan(
    engine: RunEngine, make_async_detector: MakeDetector, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stddaq_ophyd.core.camera.STOP_TIMEOUT_S", 0.2)
    det, camera = make_async_detector()
    hung = threading.Event()
    camera.skip_calls = {2}

    def hang() -> None:
        threading.Timer(0.1, engine.abort).start()
        hung.wait(60)

    camera.on_skip = hang
    with pytest.raises(FailedStatus, match=r"camera: expected stopped within 0\.2 s, got no answer"):
        engine(count([det], 3))
    wait_until_idle(camera.rig)
    hung.set()
    monkeypatch.setattr("stddaq_ophyd.core.camera.STOP_TIMEOUT_S", 60)
    assert_next_plan_works(engine, det, camera)


def test_a_flight_that_was_not_collected_fails_what_follows(
    engine: RunEngine, make_async_detector: MakeDetector
):
    det, _ = make_async_detector()

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.prepare(det, FLIGHT, wait=True)
        yield from bps.kickoff(det, wait=True)
        yield from bps.complete(det, wait=True)
        yield from bps.prepare(det, TriggerInfo(), wait=True)

    text = failure(engine, plan())
    assert "expected a flight of 20 events that was collected, got 0 events collected" in text
