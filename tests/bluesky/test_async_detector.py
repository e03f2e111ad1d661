"""The ophyd-async device: documents of points and flights lead to the recorded images."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.plans import count, scan
from bluesky.utils import FailedStatus
from ophyd.sim import SynAxis
from ophyd_async.core import (
    DetectorTrigger,
    DetectorTriggerLogic,
    StaticFilenameProvider,
    StaticPathProvider,
    TriggerInfo,
    UUIDFilenameProvider,
    soft_command,
    soft_signal_rw,
)
from support.assertions.plans import Documents, PointCamera, assert_images, in_step_with, stream_images
from support.processes.recording import image_of

from stddaq_ophyd import AcquisitionError, DirectoryPaths, StdDaqDetector
from stddaq_ophyd.async_camera import as_async_camera
from stddaq_ophyd.async_detector import AsyncStdDaqDetector
from stddaq_ophyd.preprocessors import name_streams

MakeDetector = Callable[..., tuple[AsyncStdDaqDetector, PointCamera]]


class EdgeTriggered(DetectorTriggerLogic):
    """A camera that is armed and waits for pulses."""

    async def prepare_internal(self, num: int, livetime: float, deadtime: float) -> None:
        pass

    async def prepare_edge(self, num: int, livetime: float) -> None:
        pass


@bpp.run_decorator()
def flight(
    det: AsyncStdDaqDetector, info: TriggerInfo, *, n_kickoffs: int = 1, stream: str = "primary"
) -> Any:
    """Take what `info` says, in `n_kickoffs` equal parts."""
    yield from bps.prepare(det, info, wait=True)
    yield from bps.declare_stream(det, name=stream, collect=True)
    for _ in range(n_kickoffs):
        yield from bps.abs_set(det.events_to_kickoff, info.number_of_events // n_kickoffs, wait=True)
        yield from bps.kickoff(det, wait=True)
        yield from bps.collect_while_completing(
            flyers=[det], dets=[det], flush_period=0.25, stream_name=stream
        )


def staged(det: AsyncStdDaqDetector, plan: Any) -> Any:
    """Stage `det` around `plan`."""
    return bpp.stage_wrapper(plan, [det])


@pytest.mark.parametrize("n_writers", [1, 3])
def test_the_documents_of_a_count_lead_to_its_images(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector, n_writers: int
):
    det, camera = make_async_detector(rig={"number_of_writers": n_writers})
    seen: list[int] = []
    engine(count([det], 5), {"event": [lambda name, doc: seen.append(len(stream_images(documents, "det")))]})
    assert seen == [1, 2, 3, 4, 5]
    assert_images(stream_images(documents, "det"), camera.published)
    names = [name for name, _ in documents.all]
    assert names == ["start", "descriptor", "stream_resource", *["stream_datum", "event"] * 5, "stop"]
    (descriptor,) = documents["descriptor"]
    height, width = camera.rig.config.image_shape
    assert descriptor["data_keys"]["det"]["shape"] == [1, height, width]
    assert descriptor["data_keys"]["det"]["dtype_numpy"] == camera.rig.config.dtype.str
    configuration = descriptor["configuration"]["det"]["data"]
    assert configuration["det-number_of_writers"] == n_writers
    assert configuration["det-driver-url"] == camera.rig.url


def test_both_kinds_of_devices_work_in_one_plan(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector, make_detector: Any
):
    sync: StdDaqDetector
    det, camera = make_async_detector()
    sync, other = make_detector(name="sync")
    motor: Any = SynAxis(name="motor")
    engine(scan([det, sync], motor, 0, 1, 4))
    assert_images(stream_images(documents, "det"), camera.published)
    assert_images(stream_images(documents, "sync_image"), other.published)
    assert len(documents["event"]) == 4


def test_points_of_several_images_are_prepared_by_the_plan(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    exposure_time, n_frames = soft_signal_rw(float, name="exposure"), soft_signal_rw(int, name="frames")
    det, camera = make_async_detector(
        rig={"number_of_writers": 3}, exposure_time=exposure_time, n_frames=n_frames, deadtime=0.001
    )
    read: list[Any] = []

    @bpp.run_decorator()
    def plan() -> Any:
        info = TriggerInfo(livetime=0.1, collections_per_event=4)
        yield from bps.prepare(det, info, wait=True)
        read.append((yield from bps.rd(exposure_time)))
        read.append((yield from bps.rd(n_frames)))
        for _ in range(3):
            yield from bps.trigger_and_read([det])
        # The second preparation uses the files of the first.
        yield from bps.prepare(det, info, wait=True)
        yield from bps.trigger_and_read([det])

    engine(staged(det, plan()))
    assert read == [0.1, 4]
    assert len(documents["event"]) == 4
    assert_images(stream_images(documents, "det"), camera.published)
    assert documents["descriptor"][0]["data_keys"]["det"]["shape"][0] == 4


def test_each_stream_of_one_staging_counts_from_zero(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector()

    @bpp.run_decorator()
    def plan() -> Any:
        for stream in "aabbb":
            yield from bps.trigger_and_read([det], name=stream)

    engine(staged(det, plan()))
    assert_images(stream_images(documents, "det", "a"), camera.published[:2])
    assert_images(stream_images(documents, "det", "b"), camera.published[2:])


def test_a_plan_may_return_to_a_stream_that_the_preprocessor_names(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector()
    engine.preprocessors.append(name_streams)

    @bpp.run_decorator()
    def plan() -> Any:
        for stream in "aba":
            yield from bps.trigger_and_read([det], name=stream)

    engine(staged(det, plan()))
    first, second, third = camera.published
    assert_images(stream_images(documents, "det", "a"), [first, third])
    assert_images(stream_images(documents, "det", "b"), [second])


def test_a_flight_without_end_is_refused(engine: RunEngine, make_async_detector: MakeDetector):
    det, _ = make_async_detector()
    with pytest.raises(FailedStatus, match="number_of_events: expected a number from 1, got 0"):
        engine(staged(det, bps.prepare(det, TriggerInfo(number_of_events=0), wait=True)))


@pytest.mark.parametrize("cameras", ["command", "signal", "coroutine"])
def test_a_camera_is_triggered_by_what_ophyd_async_has(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector, cameras: str
):
    det, camera = make_async_detector()

    async def fire() -> None:
        camera.fire(1)

    def fire_by_signal(value: Any, **_: Any) -> None:
        if value["trigger"]["value"]:
            camera.fire(1)

    signal = soft_signal_rw(bool, name="trigger")
    engine.loop.call_soon_threadsafe(signal.subscribe, fire_by_signal)
    trigger = {"command": soft_command(fire), "signal": signal, "coroutine": fire}[cameras]
    det._camera = as_async_camera(trigger, True)
    engine(count([det], 3))
    assert_images(stream_images(documents, "det"), camera.published)
    assert len(camera.published) == 3


def test_a_camera_that_fails_fails_the_point_at_once(engine: RunEngine, make_async_detector: MakeDetector):
    async def fail() -> None:
        raise OSError("no power")

    det, _ = make_async_detector(trigger=soft_command(fail))
    with pytest.raises(FailedStatus) as failed:
        engine(count([det], 1))
    assert "the camera failed: no power" in str(failed.value.__cause__)


@pytest.mark.slow
def test_documents_of_a_flight_are_emitted_while_its_images_arrive(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector(rig={"number_of_writers": 3})
    images = [image_of(i, camera.rig.config.image_shape) for i in range(200)]
    paced = in_step_with(documents, images)
    publish = threading.Thread(target=camera.rig.publish, args=(paced, 0.005), daemon=True)
    det._camera = as_async_camera(publish.start)
    engine(staged(det, flight(det, TriggerInfo(number_of_events=100, collections_per_event=2))))
    assert_images(stream_images(documents, "det"), images)
    assert len(documents["stream_datum"]) > 2
    assert documents["stream_datum"][-1]["indices"]["stop"] == 100


def test_several_kickoffs_of_one_preparation_take_their_part_each(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector()
    engine(staged(det, flight(det, TriggerInfo(number_of_events=12), n_kickoffs=3)))
    assert len(camera.published) == 12
    assert_images(stream_images(documents, "det"), camera.published)


@pytest.mark.parametrize("n_kickoffs", [1, 2])
def test_an_external_trigger_may_start_right_after_the_preparation(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector, n_kickoffs: int
):
    det, camera = make_async_detector(trigger=None, trigger_logic=EdgeTriggered())
    info = TriggerInfo(number_of_events=20, trigger=DetectorTrigger.EXTERNAL_EDGE)

    def publish(message: Any) -> Any:
        if message.command != "declare_stream":
            return None, None
        camera.fire(20)
        return None, None

    engine(staged(det, bpp.plan_mutator(flight(det, info, n_kickoffs=n_kickoffs), publish)))
    assert_images(stream_images(documents, "det"), camera.published)


def test_points_of_an_external_trigger_wait_for_its_pulses(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector(trigger=None, trigger_logic=EdgeTriggered())

    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.prepare(det, TriggerInfo(trigger=DetectorTrigger.EXTERNAL_EDGE), wait=True)
        camera.fire(1)
        yield from bps.trigger_and_read([det])

    engine(staged(det, plan()))
    assert_images(stream_images(documents, "det"), camera.published)


def test_a_preparation_before_a_stock_plan_is_forgotten(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector()

    def plan() -> Any:
        yield from bps.prepare(det, TriggerInfo(number_of_events=5), wait=True)
        yield from count([det], 2)

    engine(plan())
    assert_images(stream_images(documents, "det"), camera.published)


def test_an_event_without_a_trigger_fails(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector()

    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.trigger_and_read([det])
        yield from bps.create()
        yield from bps.read(det)
        yield from bps.save()

    with pytest.raises(AcquisitionError, match="expected a point for each event, got an event without"):
        engine(staged(det, plan()))
    assert len(documents["event"]) == 1
    assert_images(stream_images(documents, "det"), camera.published)


def test_path_providers_of_both_kinds_name_the_files(
    engine: RunEngine, documents: Documents, make_async_detector: MakeDetector
):
    det, camera = make_async_detector()
    directory = camera.rig.directory
    det._paths = StaticPathProvider(UUIDFilenameProvider(), directory / "new", create_dir_depth=-1)
    engine(count([det]))
    (published,) = (directory / "new").glob("*_Published.h5")
    assert documents["stream_resource"][0]["uri"] == f"file://localhost{published}"
    det._paths = DirectoryPaths(directory)
    engine(count([det]))
    assert (directory / "det_00001_Published.h5").exists()
    det._paths = StaticPathProvider(StaticFilenameProvider("same"), directory)
    engine(count([det]))
    with pytest.raises(FailedStatus) as failed:
        engine(count([det]))
    assert "same_" in str(failed.value.__cause__)
