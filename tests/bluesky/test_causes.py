"""A plan has exactly the images that it caused: none of another plan, none lost, none twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.plans import count
from bluesky.utils import FailedStatus
from ophyd import Component, Device, Signal
from ophyd.sim import SynAxis
from ophyd.status import Status
from support.assertions.plans import Documents, PointCamera, assert_images, stream_images
from support.processes.deployment import wait_until
from support.processes.recording import image_of

from stddaq_ophyd import AcquisitionError, Exposure, StdDaqDetector
from stddaq_ophyd.camera import as_camera
from stddaq_ophyd.plans import fly

# bluesky's protocols do not know the types of ophyd's Status.
MakeDetector = Callable[..., tuple[Any, PointCamera]]


class NamingCamera(PointCamera):
    """Reports the id of its first image, and publishes images of an earlier trigger before it.

    Attributes:
        n_early: number of earlier images in each call.
    """

    n_early = 0
    names_first_image = True

    def fire(self, n_images: int) -> Any:
        if self.is_rearmed:
            self._next_id = 100  # Their slots must differ from those of the images that follow.
        self.publish_stray(self.n_early)
        first_id = 0 if self.is_rearmed else self._next_id
        super().fire(n_images)
        return Exposure(first_id=first_id if self.names_first_image else None)

    def publish_stray(self, n_images: int) -> None:
        """Publish images of no trigger."""
        stray = [image_of(self._next_id + i, self.rig.config.image_shape) for i in range(n_images)]
        self.rig.publish(stray)
        self._next_id += n_images


@pytest.mark.parametrize("n_writers", [1, 3])
@pytest.mark.parametrize("is_rearmed", [False, True])
def test_images_before_the_first_of_a_trigger_are_orphans(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, n_writers: int, is_rearmed: bool
):
    det, other = make_detector(rig={"number_of_writers": n_writers})
    camera = NamingCamera(other.rig)
    camera.n_early, camera.is_rearmed = 4, is_rearmed
    det._camera = camera
    det.images_per_event.put(3)
    engine(count([det], 3))
    assert_images(stream_images(documents), camera.published)
    assert det.orphans == {"earlier triggers": 12}


def test_images_between_points_are_in_no_event_of_a_camera_that_names_its_first_image(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, other = make_detector(rig={"number_of_writers": 3})
    camera = NamingCamera(other.rig)
    det._camera = camera

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        for n_stray in (0, 2, 1, 5):
            camera.publish_stray(n_stray)
            yield from bps.trigger_and_read([det])

    engine(plan())
    assert_images(stream_images(documents), camera.published)
    assert sum(det.orphans.values()) == 8


def test_a_camera_that_names_its_first_image_does_so_always(engine: RunEngine, make_detector: MakeDetector):
    det, other = make_detector()
    camera = NamingCamera(other.rig)
    det._camera = camera

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.trigger_and_read([det])
        camera.names_first_image = False
        yield from bps.trigger_and_read([det])

    with pytest.raises(FailedStatus) as failed:
        engine(plan())
    assert "expected the id of the first image, as before, got none" in str(
        failed.value.__cause__ or det.error
    )


def test_images_before_a_flight_are_orphans(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, other = make_detector(rig={"number_of_writers": 3})
    camera = NamingCamera(other.rig)
    camera.n_early = 7
    det._camera = camera
    engine(fly([det], 20, period=0.1))
    assert_images(stream_images(documents), camera.published)
    assert det.orphans == {"earlier triggers": 7}


@bpp.run_decorator()
def declared(det: Any, change: Callable[[], Any]) -> Any:
    """Return a plan that declares its stream and calls `change` before its second point."""
    yield from bps.declare_stream(det, name="primary")
    yield from bps.trigger_and_read([det])
    change()
    yield from bps.trigger_and_read([det])


def test_images_per_event_cannot_change_in_a_stream(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector()
    det.images_per_event.put(2)
    plan = bpp.stage_wrapper(declared(det, lambda: det.images_per_event.put(3)), [det])
    with pytest.raises(AcquisitionError, match="expected 2 images per event, as this stream was described"):
        engine(plan)
    assert_images(stream_images(documents), camera.published[:2])
    assert documents["stop"][0]["exit_status"] == "fail"


@pytest.mark.parametrize("when", ["before the point", "between trigger and read"])
def test_images_per_event_cannot_change_between_description_and_documents(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, when: str
):
    det, _ = make_detector()
    det.images_per_event.put(2)

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        if when == "before the point":
            yield from bps.declare_stream(det, name="primary")
            det.images_per_event.put(3)
        yield from bps.trigger(det, wait=True)
        if when == "between trigger and read":
            det.images_per_event.put(3)
        yield from bps.create("primary")
        yield from bps.read(det)
        yield from bps.save()

    with pytest.raises(AcquisitionError, match="as this stream was described"):
        engine(plan())
    assert not {"stream_resource", "stream_datum", "event"} & {name for name, _ in documents.all}


@bpp.run_decorator()
def flown(det: Any, then: Callable[[], Any], *, is_collected: bool = False) -> Any:
    """Return a plan with a completed flight of 10 events, and the plan `then` in the same run."""
    yield from bps.prepare(det, 10, wait=True)
    yield from bps.declare_stream(det, name="images", collect=True)
    yield from bps.kickoff(det, wait=True)
    yield from bps.complete(det, wait=True)
    if is_collected:
        yield from bps.collect(det, name="images")
    yield from then()


def kick_off_again(det: Any) -> Any:
    yield from bps.prepare(det, 5, wait=True)
    yield from bps.kickoff(det, wait=True)
    yield from bps.complete(det, wait=True)
    yield from bps.collect(det, name="images")


@pytest.mark.parametrize("then", [kick_off_again, lambda det: bps.trigger(det, wait=True)])
def test_a_flight_that_was_not_collected_is_not_replaced(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, then: Callable[..., Any]
):
    det, _ = make_detector()
    with pytest.raises(FailedStatus) as failed:
        engine(bpp.stage_wrapper(flown(det, lambda: then(det)), [det]))
    expected = "det: expected a flight of 10 events that was collected, got 0 events collected"
    assert expected in str(failed.value.__cause__)
    # The RunEngine collects all of them at the end.
    assert sum(det.orphans.values()) + documents_events(documents) == 10


def documents_events(found: Documents) -> int:
    return max((doc["indices"]["stop"] for doc in found["stream_datum"]), default=0)


def test_a_flight_that_is_never_collected_fails_at_the_end(engine: RunEngine, make_detector: MakeDetector):
    det, _ = make_detector()
    with pytest.raises(FailedStatus) as failed:
        engine(bpp.stage_wrapper(flown(det, bps.null), [det]))
    assert "expected a flight of 10 events that was collected" in str(failed.value.__cause__)
    assert det.orphans == {"flights without documents": 10}
    assert det.driver_state() == "idle"


def test_flights_and_points_follow_each_other_when_each_is_collected(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector()
    engine(bpp.stage_wrapper(flown(det, lambda: kick_off_again(det), is_collected=True), [det]))
    assert_images(stream_images(documents), camera.published)
    assert (len(camera.published), det.orphans) == (15, {})


def test_an_event_without_trigger_is_refused(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector()
    motor: Any = SynAxis(name="motor")

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        for position in range(3):
            yield from bps.mv(motor, position)
            if position != 1:
                yield from bps.trigger(det, wait=True)
            yield from bps.create("primary")
            yield from bps.read(det)
            yield from bps.read(motor)
            yield from bps.save()

    with pytest.raises(AcquisitionError, match="expected a point for each event, got an event without"):
        engine(plan())
    assert len(documents["event"]) == documents_events(documents) == 1
    assert_images(stream_images(documents), camera.published)


def test_a_trigger_that_returns_the_status_of_the_acquisition_is_not_waited_for(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector()
    acquisitions: list[Status] = []

    def acquire() -> Status:
        camera.fire(1)
        acquisitions.append(Status())
        return acquisitions[-1]

    det._camera = as_camera(acquire)
    engine(count([det], 2))
    assert_images(stream_images(documents), camera.published)
    assert [status.done for status in acquisitions] == [False, False]
    for status in acquisitions:
        status.set_finished()


def test_a_camera_that_fails_while_images_are_waited_for_fails_the_point(
    engine: RunEngine, make_detector: MakeDetector
):
    status = Status()
    fail = threading.Timer(0.2, lambda: status.set_exception(RuntimeError("no trigger line")))
    fail.start()
    det, _ = make_detector(trigger=lambda: status)
    det.margin.put(30)
    with pytest.raises(FailedStatus) as failed:
        engine(count([det]))
    assert "det: recorded 0 of 1 images, the camera failed: no trigger line" in str(failed.value.__cause__)


def test_a_device_that_does_not_trigger_its_detector_is_refused(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    other, camera = make_detector()

    class Endstation(Device):
        det = Component(StdDaqDetector, other.prefix, paths=other.paths, trigger=camera)
        temperature = Component(Signal, value=20)

    endstation: Any = Endstation(name="endstation")
    with pytest.raises(
        AcquisitionError, match=r"endstation_det: read: expected a trigger before it, got none"
    ):
        engine(count([endstation]))
    assert documents["descriptor"] == []
    # As the error advises. The RunEngine stages the whole endstation.
    engine(count([endstation.det, endstation.temperature], 2))
    wait_until(lambda: endstation.det.driver_state() == "idle", what="the driver to be idle")
    assert_images(stream_images(documents, key="endstation_det_image"), camera.published)


def test_a_device_that_passes_no_documents_on_is_named(make_detector: MakeDetector):
    other, camera = make_detector()

    class Endstation(Device):
        det = Component(StdDaqDetector, other.prefix, paths=other.paths, trigger=camera)

    endstation: Any = Endstation(name="endstation")
    endstation.stage()
    endstation.det.trigger().wait(60)
    with pytest.raises(AcquisitionError, match=r"documents of 1 images, got none; .*use endstation\.det in"):
        endstation.det.unstage().wait(60)


def test_a_component_that_cannot_be_staged_says_why(make_detector: MakeDetector, tmp_path: Path):
    other, _ = make_detector()

    class Endstation(Device):
        det = Component(StdDaqDetector, other.prefix, paths=tmp_path / "missing" / "\0")

    endstation: Any = Endstation(name="endstation")
    endstation.stage()
    endstation.det._steps.wait_until_done(60)
    with pytest.raises(AcquisitionError, match="endstation_det: trigger: not staged: "):
        endstation.det.trigger()


def test_a_device_that_passes_triggers_and_documents_on_may_hold_a_detector(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    other, camera = make_detector()

    class Endstation(Device):
        det = Component(StdDaqDetector, other.prefix, paths=other.paths, trigger=camera)

        def trigger(self) -> Any:
            return self.det.trigger()

        def collect_asset_docs(self, index: int | None = None) -> Any:
            return self.det.collect_asset_docs(index)

        def get_index(self) -> int:
            return self.det.get_index()

    endstation: Any = Endstation(name="endstation")
    engine(count([endstation], 3))
    wait_until(lambda: endstation.det.driver_state() == "idle", what="the driver to be idle")
    assert_images(stream_images(documents, key="endstation_det_image"), camera.published)


def test_two_run_engines_use_a_detector_in_turn(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector()
    newer = RunEngine({}, context_managers=[])
    found = Documents()
    newer(count([det], 2), found)
    n = len(camera.published)
    assert_images(stream_images(found), camera.published)
    # The older RunEngine also has a new stream, with other images_per_event.
    det.images_per_event.put(2)
    engine(count([det], 2))
    assert_images(stream_images(documents), camera.published[n:])
    newer.loop.call_soon_threadsafe(newer.loop.stop)
    newer._th.join()
    newer.loop.close()
