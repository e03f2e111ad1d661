"""Points: documents of a plan lead to the recorded images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.plans import count
from bluesky.utils import FailedStatus
from support.assertions.plans import Documents, PointCamera, assert_images, stream_images

from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.preprocessors import name_streams

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]


@pytest.mark.parametrize(("n_writers", "images_per_event"), [(2, 1), (3, 4)])
def test_the_documents_of_a_count_lead_to_its_images(
    engine: RunEngine,
    documents: Documents,
    make_detector: MakeDetector,
    n_writers: int,
    images_per_event: int,
):
    det, camera = make_detector(rig={"number_of_writers": n_writers})
    det.images_per_event.put(images_per_event)
    seen: list[int] = []
    engine(count([det], 5), {"event": [lambda name, doc: seen.append(len(stream_images(documents)))]})
    assert seen == [n * images_per_event for n in (1, 2, 3, 4, 5)]
    assert_images(stream_images(documents), camera.published)
    # After the run it is an ordinary NeXus file.
    with h5py.File(camera.rig.path("det_00001_Published.h5")) as file:
        assert file.attrs["default"] == "entry"
        assert_images(np.asarray(file["entry/data/data"]), camera.published)


@pytest.mark.parametrize("division", ["image_id", "arrival"])
def test_points_of_a_camera_that_is_armed_for_each_point_are_one_run_in_order(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, division: str
):
    det, camera = make_detector(rig={"number_of_writers": 3, "image_division": division})
    camera.is_rearmed = True
    det.images_per_event.put(4)
    engine(count([det], 4))
    assert_images(stream_images(documents), camera.published)
    assert not list(camera.rig.directory.glob("*part2*"))


def test_a_plan_that_returns_to_a_stream_without_naming_it_fails(
    engine: RunEngine, make_detector: MakeDetector
):
    det, _ = make_detector()

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        for stream in "aba":
            yield from bps.trigger_and_read([det], name=stream)

    with pytest.raises(FailedStatus, match=r"continue those of another stream; .*name_streams"):
        engine(plan())


@pytest.mark.parametrize(("streams", "not_in_order"), [("aabbb", False), ("abbab", True)])
def test_each_stream_and_each_run_of_one_staging_has_a_published_images_file_of_its_own(
    engine: RunEngine,
    documents: Documents,
    make_detector: MakeDetector,
    streams: str,
    not_in_order: bool,
):
    det, camera = make_detector()

    def of(stream: str) -> list[int]:
        return [place for place, name in enumerate(streams) if name == stream]

    if not_in_order:
        engine.preprocessors.append(name_streams)

    def one_run(streams: str) -> Any:
        yield from bps.open_run()
        for stream in streams:
            yield from bps.trigger_and_read([det], name=stream)
        yield from bps.close_run()

    def two_runs() -> Any:
        yield from one_run(streams)
        yield from one_run("aa")

    engine(bpp.stage_wrapper(two_runs(), [det]))
    runs: list[Documents] = []
    for name, doc in documents.all:
        if name == "start":
            runs.append(Documents())
        runs[-1](name, doc)
    taken = camera.published
    for run, stream, places in ((0, "a", of("a")), (0, "b", of("b")), (1, "a", (5, 6))):
        assert_images(stream_images(runs[run], stream=stream), [taken[i] for i in places])
