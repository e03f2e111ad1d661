"""Streams: configured in the middle, a baseline, runs within runs, lazy staging, what hints name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.callbacks.best_effort import BestEffortCallback
from bluesky.plans import count, fly, scan
from bluesky.utils import FailedStatus
from matplotlib import pyplot as plt
from ophyd.sim import SynAxis
from support.assertions.plans import Documents, PointCamera, assert_images, stream_images

from stddaq_ophyd import AcquisitionError
from stddaq_ophyd.plans import fly as fly_images
from stddaq_ophyd.plans import fly_scan
from stddaq_ophyd.preprocessors import name_streams

MakeDetector = Callable[..., tuple[Any, PointCamera]]


@pytest.mark.parametrize("what", ["configure the detector", "configure another device", "describe"])
def test_what_a_plan_does_between_points_does_not_change_the_stream(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, what: str
):
    det, camera = make_detector()
    motor: Any = SynAxis(name="motor")

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        for position in range(4):
            if what == "describe":
                det.describe()
                det.describe_collect()
            elif what == "configure the detector":
                yield from bps.configure(det, {"exposure_time": 0.01 * position})
            else:
                yield from bps.configure(motor, {"velocity": position})
            yield from bps.trigger_and_read([det, motor])

    engine(plan())
    assert len(documents["stream_resource"]) == 1
    resource = documents["stream_resource"][0]["uid"]
    assert [doc["indices"]["start"] for doc in documents["stream_datum"]] == [0, 1, 2, 3]
    assert {doc["stream_resource"] for doc in documents["stream_datum"]} == {resource}
    assert_images(stream_images(documents, stream="primary"), camera.published)
    configured = documents["descriptor"][-1]["configuration"]["det"]["data"]["det_exposure_time"]
    assert configured == (0.03 if what == "configure the detector" else 0)


@pytest.mark.parametrize("is_named", [False, True])
def test_a_baseline_needs_named_streams(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, is_named: bool
):
    det, camera = make_detector()
    engine.preprocessors.append(bpp.SupplementalData(baseline=[det]))
    if not is_named:
        with pytest.raises(FailedStatus, match="name_streams names streams"):
            engine(count([det], 2))
        return
    engine.preprocessors.append(name_streams)
    engine(count([det], 2))
    taken = camera.published
    assert_images(stream_images(documents, stream="baseline"), [taken[0], taken[3]])
    assert_images(stream_images(documents, stream="primary"), taken[1:3])


@pytest.mark.parametrize("kind", ["stream", "STDDAQ_PUBLISHED"])
def test_runs_within_runs_have_streams_of_their_own(
    engine: RunEngine, make_detector: MakeDetector, kind: str
):
    det, camera = make_detector(documents=kind)
    engine.preprocessors.append(name_streams)
    found = Documents()

    def point(run: str) -> Any:
        return bpp.set_run_key_wrapper(bps.trigger_and_read([det], name="primary"), run)

    @bpp.stage_decorator([det])
    def plan() -> Any:
        for run in ("outer", "inner"):
            yield from bpp.set_run_key_wrapper(bps.open_run(), run)
        for run in ("outer", "inner", "inner", "outer"):
            yield from point(run)
        for run in ("inner", "outer"):
            yield from bpp.set_run_key_wrapper(bps.close_run(), run)

    engine(plan(), found)
    outer, inner = (doc["uid"] for doc in found["start"])
    if kind == "stream":
        resources = {doc["uid"]: doc["run_start"] for doc in found["stream_resource"]}
        shown = [resources[doc["stream_resource"]] for doc in found["stream_datum"]]
        places = [doc["indices"]["start"] for doc in found["stream_datum"]]
    else:
        resources = {doc["uid"]: doc["run_start"] for doc in found["resource"]}
        shown = [resources[doc["resource"]] for doc in found["datum"]]
        places = [doc["datum_kwargs"]["point_number"] for doc in found["datum"]]
    assert shown == [outer, inner, inner, outer]
    assert places == [0, 0, 1, 1]
    assert len(camera.published) == 4


@pytest.mark.parametrize("kind", ["AD_HDF5", "STDDAQ_PUBLISHED", "STDDAQ_RAW"])
def test_each_run_of_one_staging_has_one_resource(engine: RunEngine, make_detector: MakeDetector, kind: str):
    det, _ = make_detector(documents=kind)

    def run() -> Any:
        return bpp.run_wrapper(bps.repeat(lambda: bps.trigger_and_read([det]), num=3))

    runs = [Documents(), Documents()]
    det.stage().wait(60)
    for found in runs:
        engine(run(), found)
    det.unstage().wait(60)
    for found in runs:
        assert len(found["resource"]) == 1
        resources = {doc["uid"] for doc in found["resource"]}
        datums = {doc["datum_id"]: doc["resource"] for doc in found["datum"]}
        values = [doc["data"]["det_image"] for doc in found["event"]]
        assert values == list(datums)
        assert set(datums.values()) == resources


def test_lazily_staged_detectors_work(engine: RunEngine, documents: Documents, make_detector: MakeDetector):
    det, camera = make_detector()

    @bpp.run_decorator()
    def plan() -> Any:
        for _ in range(3):
            yield from bps.trigger_and_read([det])

    engine(bpp.lazily_stage_wrapper(plan()))
    assert_images(stream_images(documents), camera.published)
    assert det.driver_state() == "idle"


def test_events_have_the_mean_of_the_last_image_and_the_sums_of_regions(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector(
        rig={"number_of_writers": 3}, regions={"spot": (2, 5, 10, 20), "corner": (0, 1, 0, 1)}
    )
    det.images_per_event.put(4)
    engine(count([det], 3))
    for event in documents["event"]:
        first = 4 * (event["seq_num"] - 1)
        pixels = np.array([image.pixels for image in camera.published[first : first + 4]], float)
        assert event["data"]["det_mean"] == pytest.approx(pixels[-1].mean())
        assert event["data"]["det_spot"] == pixels[:, 2:5, 10:20].sum()
        assert event["data"]["det_corner"] == pixels[:, 0, 0].sum()
    (descriptor,) = documents["descriptor"]
    assert descriptor["hints"]["det"]["fields"] == ["det_mean", "det_spot", "det_corner"]


def test_images_are_not_read_when_nothing_of_them_is_wanted(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, _ = make_detector()
    det.mean.kind = "omitted"
    engine(count([det]))
    assert "det_mean" not in documents["event"][0]["data"]
    assert documents["descriptor"][0]["hints"]["det"]["fields"] == [
        "det_n_images",
        "det_n_recorded",
        "det_n_bad",
    ]


@pytest.mark.slow
def test_plots_and_tables_show_points_and_flights(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, capsys: pytest.CaptureFixture[str]
):
    mpl.use("Agg")
    det, _ = make_detector()
    motor: Any = SynAxis(name="motor")
    engine.subscribe(BestEffortCallback())
    engine(scan([det], motor, 0, 1, 3))
    axes = plt.gcf().axes
    assert [axis.get_ylabel() for axis in axes] == ["det_mean"]
    engine(fly_images([det], 20, period=0.1))
    engine(fly_scan([det], motor, 0, 1, 20, period=0.1))
    shown = capsys.readouterr()
    assert "det_n_recorded" in shown.out
    assert "rror" not in shown.out + shown.err
    for descriptor in documents["descriptor"]:
        for hints in descriptor["hints"].values():
            assert set(hints.get("fields", [])) <= descriptor["data_keys"].keys()
    plt.close("all")


def test_the_plan_fly_of_bluesky_says_what_to_use(engine: RunEngine, make_detector: MakeDetector):
    det, _ = make_detector()
    with pytest.raises(AcquisitionError, match=r"stddaq_ophyd\.plans\.fly\(\[det\], n\)"):
        engine(fly([det]))
    det.stage().wait(60)
    with pytest.raises(AcquisitionError, match=r"stddaq_ophyd\.plans\.fly\(\[det\], n\)"):
        engine(fly([det]))
    det.unstage().wait(60)


def test_a_flight_does_not_take_the_number_of_an_earlier_one(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, _ = make_detector()
    engine(fly_images([det], 5))
    det.stage().wait(60)
    with pytest.raises(AcquisitionError, match=r"det\.prepare\(n\)"):
        det.kickoff()
    det.unstage().wait(60)
