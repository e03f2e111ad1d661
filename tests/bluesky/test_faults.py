"""After a fault during a plan the driver is idle, documents are true, and the next plan works."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bluesky import Msg, RunEngine, RunEngineInterrupted
from bluesky.plans import count
from bluesky.utils import FailedStatus
from ophyd.utils import RedundantStaging
from support.assertions.plans import (
    STEP,
    Documents,
    PointCamera,
    assert_images,
    pausing,
    skip_calls,
    stream_images,
)
from support.processes.deployment import free_port, wait_until
from support.processes.recording import Rig

from stddaq_ophyd import AcquisitionError, StdDaqDetector
from stddaq_ophyd.plans import fly

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]


def failure(engine: RunEngine, plan: Any) -> str:
    """Run a plan that must fail on the device. Return the device's message."""
    with pytest.raises(FailedStatus) as failed:
        engine(plan)
    assert isinstance(failed.value.__cause__, AcquisitionError)
    return str(failed.value.__cause__)


def wait_until_idle(rig: Rig) -> None:
    """Wait until the driver is idle."""
    wait_until(lambda: rig.client.status().status == "idle", what="the driver to be idle")


def assert_next_plan_works(engine: RunEngine, det: StdDaqDetector, camera: PointCamera) -> None:
    """Check that the driver is idle, and that the next plan works without any repair."""
    wait_until_idle(camera.rig)
    n_before, found = len(camera.published), Documents()
    engine(count([det], 2), found)
    assert_images(stream_images(found), camera.published[n_before:])
    assert det.error is None
    wait_until_idle(camera.rig)


def test_staging_fails_without_a_driver_and_the_message_says_what_to_do(engine: RunEngine, tmp_path: Path):
    url = f"ws://127.0.0.1:{free_port()}"
    det = StdDaqDetector(url, name="det", paths=tmp_path)
    text = failure(engine, count([det]))
    assert text.startswith("det: cannot start a run")
    assert url in text
    assert "stddaq up" in text
    assert str(tmp_path) in text


def test_a_directory_that_is_refused_fails_staging_at_once_with_the_drivers_reason(
    engine: RunEngine, make_detector: MakeDetector, tmp_path: Path, directory: Path
):
    det, camera = make_detector(rig={"driver": ["--allowed-root", directory]}, paths=tmp_path / "elsewhere")
    text = failure(engine, count([det]))
    assert f"expected a directory below {directory}, got {tmp_path / 'elsewhere'}" in text
    det.paths = directory
    assert_next_plan_works(engine, det, camera)


def test_a_skipped_trigger_fails_the_point_and_its_message_counts_the_images(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector()
    det.images_per_event.put(3)
    skip_calls(engine, det, camera, {3}, margin=0.3)
    text = failure(engine, count([det], 5))
    assert "det: expected 3 images within 0.3 s, got 0" in text
    assert str(camera.rig.directory) in text
    assert f"driver {camera.rig.url} is recording" in text
    assert str(det.error) == text
    assert documents["stop"][0]["exit_status"] == "fail"
    assert len(documents["event"]) == 2
    assert_images(stream_images(documents), camera.published)
    assert_next_plan_works(engine, det, camera)


def test_bad_images_fail_the_point_unless_they_are_allowed(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector()
    det.images_per_event.put(2)
    camera.damaged = {1, 2}
    assert "det: expected 2 good images, got 1 damaged among them" in failure(engine, count([det], 2))
    det.allow_bad.put(1)
    engine(count([det], 2))
    assert documents["event"][-1]["data"]["det_n_bad"] == 1


def test_a_writer_killed_during_a_scan_is_named_and_published_images_stay(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector()
    rig = camera.rig

    def kill(name: str, doc: Any) -> None:
        if name == "event" and doc["seq_num"] == 3:
            rig.writers[1].kill()

    text = failure(engine, subscribed(count([det], 8), kill, engine))
    assert "writer 1 exited or hangs" in text
    n_events = len(documents["event"])
    assert n_events >= 3
    wait_until_idle(rig)
    assert_images(stream_images(documents), camera.published[:n_events])
    rig.restart_writer(1)
    assert_next_plan_works(engine, det, camera)


def test_a_raw_file_that_is_removed_fails_the_point_and_is_named(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector()
    det.images_per_event.put(2)

    def remove(name: str, doc: Any) -> None:
        camera.rig.path("det_00001_1.h5").unlink()

    with pytest.raises(FailedStatus) as failed:
        engine(count([det], 3), {"event": [remove]})
    assert f"{camera.rig.path('det_00001_1.h5')}: is missing" in str(failed.value.__cause__)
    assert len(documents["stream_datum"]) == len(documents["event"]) == 1
    det.paths = camera.rig.directory.parent / "next"
    assert_next_plan_works(engine, det, camera)


def test_a_flight_without_images_fails(engine: RunEngine, documents: Documents, make_detector: MakeDetector):
    det, camera = make_detector()
    skip_calls(engine, det, camera, {1}, margin=0.3)
    assert "det: expected 10 images, each within 0.3 s, got 0" in failure(engine, fly([det], 10))
    assert documents["stop"][0]["exit_status"] == "fail"
    assert documents["stream_datum"] == []
    assert_next_plan_works(engine, det, camera)


@pytest.mark.parametrize("how", ["abort", "resume"])
def test_a_paused_flight_can_be_aborted_or_resumed(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, how: str
):
    det, camera = make_detector()
    det.margin.put(30)
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
    assert_images(stream_images(documents), camera.published)


def subscribed(plan: Any, callback: Callable[..., None], engine: RunEngine) -> Iterator[Msg]:
    """Run a plan with `callback` subscribed."""
    token = yield Msg("subscribe", None, callback, "all")
    yield from plan
    yield Msg("unsubscribe", None, token=token)


def test_a_pause_after_any_message_of_a_step_leaves_no_orphan_in_the_documents(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector(rig={"number_of_writers": 3})
    det.images_per_event.put(2)
    expected: list[Any] = []
    # An event references the images of the last trigger before it.
    engine.subscribe(lambda name, doc: expected.extend(camera.published[-2:]), "stream_datum")
    with pytest.raises(RunEngineInterrupted):
        engine(pausing(count([det], 3)))
    for _ in STEP[1:]:
        det.describe()  # `summary()` calls it as well; only a call of the RunEngine announces a new stream.
        with pytest.raises(RunEngineInterrupted):
            engine.resume()
    engine.resume()
    wait_until_idle(camera.rig)
    assert documents["stop"][0]["exit_status"] == "success"
    assert [doc["seq_num"] for doc in documents["event"]] == [1, 1, 2, 3]
    assert len(camera.published) > len(expected)
    assert_images(stream_images(documents), expected)


@pytest.mark.parametrize("how", ["abort", "halt", "stop"])
def test_the_next_plan_works_after_a_plan_that_ended_during_a_point(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, how: str
):
    det, camera = make_detector()
    det.margin.put(30)
    camera.skip_calls = {3}
    camera.on_skip = lambda: threading.Timer(0.1, getattr(engine, how)).start()
    with pytest.raises(RunEngineInterrupted):
        engine(count([det], 5))
    assert documents["stop"][0]["exit_status"] == {"abort": "abort", "halt": "abort", "stop": "success"}[how]
    assert len(documents["event"]) == 2
    assert det.read()["det_n_recorded"]["value"] == 2
    wait_until_idle(camera.rig)
    assert_images(stream_images(documents), camera.published)
    assert_next_plan_works(engine, det, camera)


def test_a_camera_that_hangs_does_not_keep_an_aborted_plan(
    engine: RunEngine, make_detector: MakeDetector, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stddaq_ophyd.core.camera.STOP_TIMEOUT_S", 0.2)
    det, camera = make_detector()
    hung = threading.Event()
    camera.skip_calls = {2}

    def hang() -> None:
        threading.Timer(0.1, engine.abort).start()
        hung.wait(60)

    camera.on_skip = hang
    with pytest.raises(RunEngineInterrupted):
        engine(count([det], 3))
    wait_until_idle(camera.rig)
    hung.set()
    monkeypatch.setattr("stddaq_ophyd.core.camera.STOP_TIMEOUT_S", 60)
    assert_next_plan_works(engine, det, camera)


def test_two_sigints_pause_a_waiting_point_and_abort_leaves_the_driver_idle(
    documents: Documents, make_detector: MakeDetector
):
    engine = RunEngine({})
    engine.subscribe(documents)
    det, camera = make_detector()
    det.margin.put(30)
    camera.skip_calls = {2}

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def interrupt_twice() -> None:
        interrupt()
        # Two at once would be one, and the RunEngine counts no second within 0.1 s.
        wait_until(lambda: engine.deferred_pause_requested, what="the first SIGINT to be handled")
        threading.Timer(0.5, interrupt).start()

    camera.on_skip = lambda: threading.Timer(0.1, interrupt_twice).start()
    with pytest.raises(RunEngineInterrupted):
        engine(count([det], 5))
    assert engine.state == "paused"
    engine.abort()
    assert len(documents["event"]) == 1
    assert_next_plan_works(engine, det, camera)


def test_unstaging_twice_or_without_staging_is_harmless(make_detector: MakeDetector):
    det, camera = make_detector()
    det.unstage().wait(60)
    det.stage().wait(60)
    with pytest.raises(RedundantStaging, match="det is staged already"):
        det.stage()
    statuses = [det.unstage(), det.unstage()]
    for status in statuses:
        status.wait(60)
    wait_until_idle(camera.rig)
    det.stage().wait(60)
    det.stop()
    wait_until_idle(camera.rig)
    det.trigger().wait(60)
    det.margin.put(0.2)
    camera.skip_calls = {2}
    det.trigger()
    with pytest.raises(AcquisitionError, match=r"expected 1 images within 0\.2 s, got 0"):
        det.read()
    det.unstage().wait(60)
    wait_until_idle(camera.rig)


class HalvedCamera(PointCamera):
    """Publishes half of the images of its first trigger, and calls `on_half`."""

    def __init__(self, rig: Any, on_half: Callable[[], None]) -> None:
        super().__init__(rig)
        self.on_half = on_half
        self.n_left = 0

    def fire(self, n_images: int) -> None:
        if self.published:
            super().fire(n_images)
            return
        self.n_left = self.n_held_back = n_images // 2
        super().fire(n_images)
        self.n_held_back = 0
        self.on_half()

    def publish_rest(self) -> None:
        """Publish the other half, once."""
        n_left, self.n_left = self.n_left, 0
        if n_left:
            super().fire(n_left)

    def publish_rest_at(self, message: Msg) -> None:
        """Publish the other half when a plan triggers the detector."""
        if message.command == "trigger":
            self.publish_rest()


@pytest.mark.slow
@pytest.mark.parametrize("number_of_writers", [1, 5])
@pytest.mark.parametrize("rest", ["in the pause", "after the pause", "never"])
def test_a_point_that_is_interrupted_in_its_middle_is_taken_again(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, rest: str, number_of_writers: int
):
    det, other = make_detector(rig={"number_of_writers": number_of_writers})
    camera = HalvedCamera(other.rig, lambda: threading.Thread(target=engine.request_pause).start())
    det._camera = camera
    det.images_per_event.put(7)
    det.margin.put(1 if rest == "never" else 30)
    with pytest.raises(RunEngineInterrupted):
        engine(count([det], 3))
    # That of the next points.
    det.margin.put(30)
    if rest == "in the pause":
        camera.publish_rest()
    elif rest == "after the pause":
        engine.msg_hook = camera.publish_rest_at  # pyright: ignore[reportAttributeAccessIssue]
    engine.resume()
    n_first = 4 if rest == "never" else 7
    assert documents["stop"][0]["exit_status"] == "success"
    assert_images(stream_images(documents), camera.published[n_first:])
    assert len(camera.published) == n_first + 21
    wait_until_idle(camera.rig)
    assert sum(det.orphans.values()) == n_first
