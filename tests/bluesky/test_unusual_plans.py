"""Plans that suspend in a point, drop events, monitor counts, or use two detectors of one driver."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from bluesky import RunEngine, RunEngineInterrupted
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.plans import count, rel_scan
from bluesky.suspenders import SuspendBoolHigh
from bluesky.utils import FailedStatus
from ophyd import Signal
from ophyd.sim import SynAxis
from support.assertions.plans import Documents, PointCamera, assert_images, skip_calls, stream_images

from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.plans import tomography
from stddaq_ophyd.preprocessors import name_streams

# bluesky's protocols do not know the types of ophyd's Status.
MakeDetector = Callable[..., tuple[Any, PointCamera]]


@pytest.mark.parametrize("comes", [True, False])
def test_a_point_that_is_suspended_in_its_middle_is_taken_again(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, comes: bool
):
    det, camera = make_detector(rig={"number_of_writers": 3})
    det.images_per_event.put(4)
    beam_is_off = Signal(name="beam_is_off", value=0)
    engine.install_suspender(SuspendBoolHigh(beam_is_off))
    skip_calls(engine, det, camera, {2}, margin=30 if comes else 1)

    def lose_beam() -> None:
        beam_is_off.put(1)

        def regain() -> None:
            if comes:
                camera.fire(4)
            beam_is_off.put(0)

        threading.Timer(0.5, regain).start()

    camera.on_skip = lambda: threading.Thread(target=lose_beam).start()
    engine(count([det], 3))
    orphans = 4 if comes else 0
    expected = camera.published[:4] + camera.published[4 + orphans :]
    assert_images(stream_images(documents), expected)
    assert len(expected) == 12


def test_images_of_a_dropped_event_are_in_no_document(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector(rig={"number_of_writers": 3})

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        for i in range(4):
            yield from bps.trigger(det, wait=True)
            yield from bps.create("primary")
            yield from bps.read(det)
            yield from bps.drop() if i in (0, 2) else bps.save()

    engine(plan())
    assert_images(stream_images(documents), [camera.published[1], camera.published[3]])
    assert det.orphans == {"points without an event": 2}


def test_counts_can_be_monitored(engine: RunEngine, documents: Documents, make_detector: MakeDetector):
    det, camera = make_detector()
    engine(bpp.monitor_during_wrapper(count([det], 3), [det.n_recorded]))
    assert_images(stream_images(documents), camera.published)
    seen = [
        doc["data"]["det_n_recorded"] for doc in documents["event"] if list(doc["data"]) == ["det_n_recorded"]
    ]
    assert seen[-1] == 3


def test_of_two_detectors_on_one_driver_one_is_refused_and_the_driver_is_left_idle(
    engine: RunEngine, make_detector: MakeDetector
):
    det, camera = make_detector()
    other = StdDaqDetector(det.prefix, name="other", paths=det.paths, trigger=camera)
    with pytest.raises(FailedStatus, match=r"(det|other): .*busy"):
        engine(count([det, other], 2))
    found = Documents()
    engine(count([det], 2), found)
    assert_images(stream_images(found), camera.published[-2:])


def test_a_flight_is_collected_by_the_plan_of_bluesky(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector(rig={"number_of_writers": 3})

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.prepare(det, 20, wait=True)
        yield from bps.declare_stream(det, name="images", collect=True)
        yield from bps.kickoff(det, wait=True)
        yield from bps.collect_while_completing([det], [det], flush_period=0.1, stream_name="images")

    engine(plan())
    assert_images(stream_images(documents), camera.published)
    assert (len(camera.published), det.orphans) == (20, {})


@pytest.mark.slow
def test_a_point_of_two_detectors_is_taken_again_with_both_when_one_fails_in_a_pause(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector(rig={"number_of_writers": 3})
    other, other_camera = make_detector(name="other")
    skip_calls(engine, other, other_camera, {2}, margin=1)
    other_camera.on_skip = lambda: threading.Thread(target=engine.request_pause).start()
    with pytest.raises(RunEngineInterrupted):
        engine(rel_scan([det, other], SynAxis(name="motor"), 0, 1, 4))
    engine.resume()
    assert documents["stop"][0]["exit_status"] == "success"
    assert_images(stream_images(documents), camera.published[:1] + camera.published[2:])
    assert_images(stream_images(documents, key="other_image"), other_camera.published)
    assert (len(camera.published), len(other_camera.published)) == (5, 4)


@pytest.mark.slow
def test_a_scan_of_several_streams_survives_a_pause_in_each(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector(rig={"number_of_writers": 3})
    engine.preprocessors.append(name_streams)
    skip_calls(engine, det, camera, {2, 4, 7}, margin=1)
    camera.on_skip = lambda: threading.Thread(target=engine.request_pause).start()
    positions: dict[str, Any] = {"start": 0, "stop": 180, "num": 4, "sample_in": 0, "sample_out": 1}
    motors: dict[str, Any] = {name: SynAxis(name=name) for name in ("rotation", "sample", "shutter")}
    with pytest.raises(RunEngineInterrupted):
        engine(tomography([det], n_darks=2, n_flats=2, **positions, **motors))
    for _ in range(2):
        with pytest.raises(RunEngineInterrupted):
            engine.resume()
    engine.resume()
    assert documents["stop"][0]["exit_status"] == "success"
    assert_images(stream_images(documents, stream="darks"), camera.published[:2])
    assert_images(stream_images(documents, stream="flats"), camera.published[2:4])
    assert_images(stream_images(documents, stream="primary"), camera.published[4:])
    assert (len(camera.published), det.orphans) == (8, {})
