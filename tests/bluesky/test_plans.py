"""Flights with live documents, tomography, and their tables and progress bars."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.callbacks.best_effort import BestEffortCallback
from bluesky.utils import FailedStatus, ProgressBarManager
from ophyd import Signal
from ophyd.sim import SynAxis
from support.assertions.plans import Documents, PointCamera, assert_images, in_step_with, stream_images
from support.processes.recording import Rig, images_of

from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.camera import as_camera
from stddaq_ophyd.plans import fly, fly_scan, tomography

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]


class SlowCamera(PointCamera):
    """Publishes images in the background at its own rate, in step with the documents of their flight."""

    def __init__(self, rig: Rig, documents: Documents) -> None:
        super().__init__(rig)
        self._documents = documents
        self._publisher = ThreadPoolExecutor(max_workers=1)

    def fire(self, n_images: int) -> None:
        first = len(self.published)
        images = images_of(range(first, first + n_images), shape=self.rig.config.image_shape)
        self.published += images
        self._publisher.submit(self.rig.publish, in_step_with(self._documents, images), 0.005)

    def close(self) -> None:
        """Stop publishing."""
        self._publisher.shutdown(cancel_futures=True)


@pytest.fixture
def make_flyer(make_detector: MakeDetector, documents: Documents) -> Iterator[MakeDetector]:
    """Return a function like `make_detector`, for a detector with a slow camera."""
    made: list[SlowCamera] = []

    def make(rig: dict[str, Any] | None = None, **options: Any) -> tuple[StdDaqDetector, PointCamera]:
        detector, camera = make_detector(rig, **options)
        slow = SlowCamera(camera.rig, documents)
        made.append(slow)
        detector._camera = slow
        return detector, slow

    yield make
    for camera in made:
        camera.close()


@pytest.mark.slow
def test_documents_of_a_flight_are_emitted_while_its_images_arrive(
    engine: RunEngine, documents: Documents, make_flyer: MakeDetector
):
    det, camera = make_flyer(rig={"number_of_writers": 3})
    det.images_per_event.put(2)
    motor: Any = SynAxis(name="motor")
    engine(fly_scan([det], motor, 2, 5, 250, period=0.2))
    assert_images(stream_images(documents), camera.published)
    stops = [datum["indices"]["stop"] for datum in documents["stream_datum"]]
    assert len(stops) > 2
    assert stops[-1] == 250
    (descriptor,) = [doc for doc in documents["descriptor"] if doc["name"] == "primary"]
    events = [doc["data"] for doc in documents["event"] if doc["descriptor"] == descriptor["uid"]]
    recorded = [data["det_n_recorded"] for data in events]
    assert recorded == sorted(recorded)
    assert (recorded[-1], events[-1]["det_n_bad"], events[-1]["motor"]) == (500, 0, 5)
    assert motor.position == 5


@pytest.mark.slow
def test_tables_and_progress_bars_show_a_flight(
    engine: RunEngine, make_flyer: MakeDetector, capsys: pytest.CaptureFixture[str]
):
    det, _ = make_flyer()
    best_effort = BestEffortCallback()
    best_effort.disable_plots()
    engine.subscribe(best_effort)
    engine.waiting_hook = ProgressBarManager()  # pyright: ignore[reportAttributeAccessIssue]
    engine(fly([det], 200, period=0.2))
    shown = capsys.readouterr().out
    assert "det_n_recorded" in shown
    assert re.search(r"\| +200 \|", shown)
    assert re.search(r"det: +\d+%.*images", shown)


def test_tomography_puts_darks_flats_and_projections_into_separate_streams(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector
):
    det, camera = make_detector(rig={"number_of_writers": 3})
    # bluesky's protocols do not know the types of ophyd's Status.
    rotation: Any = SynAxis(name="rotation")
    sample: Any = SynAxis(name="sample")
    shutter: Any = Signal(name="shutter", value=1)
    beamline: list[tuple[Any, Any]] = []

    def expose() -> None:
        beamline.append((shutter.get(), sample.position))
        camera.fire(1)

    det._camera = as_camera(expose)
    engine(
        tomography(
            *([det], rotation, 0, 180, 7),
            shutter=shutter,
            sample=sample,
            sample_in=0,
            sample_out=25,
            n_darks=3,
            n_flats=4,
        )
    )
    assert beamline == [(0, 0)] * 3 + [(1, 25)] * 4 + [(1, 0)] * 7
    assert (shutter.get(), sample.position) == (0, 0)
    first = 0
    for stream, n in (("darks", 3), ("flats", 4), ("primary", 7)):
        assert_images(stream_images(documents, stream=stream), camera.published[first : first + n])
        first += n
    (primary,) = [doc["uid"] for doc in documents["descriptor"] if doc["name"] == "primary"]
    angles = [doc["data"]["rotation"] for doc in documents["event"] if doc["descriptor"] == primary]
    np.testing.assert_allclose(angles, np.arange(7) * 180 / 7)


@pytest.mark.slow
def test_a_flight_whose_images_stop_fails_and_publishes_those_that_arrived(
    engine: RunEngine, documents: Documents, make_flyer: MakeDetector
):
    det, camera = make_flyer()
    det.margin.put(3)
    fire = camera.fire
    camera.fire = lambda n_images: fire(30)
    with pytest.raises(FailedStatus) as failure:
        engine(fly([det], 100, period=0.2))
    assert "det: expected 100 images, each within 3 s, got 30" in str(failure.value.__cause__)
    assert documents["stop"][0]["exit_status"] == "fail"
    assert_images(stream_images(documents), camera.published)
    assert det.driver_state() == "idle"
