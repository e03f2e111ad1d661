"""Read-back with databroker 1, databroker 2 and Filler, by the handlers of their entry points."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.plans import count
from bluesky.utils import MsgGenerator, RunEngineInterrupted
from event_model import Filler
from support.assertions.plans import Documents, PointCamera, run_plan
from support.peers import read_with_databroker
from support.processes.deployment import Service

from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.handlers import PublishedImagesHandler, RawFilesHandler

# The tests start several slow programs.
pytestmark = pytest.mark.timeout(200)

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]
SPECS = ("AD_HDF5", "STDDAQ_PUBLISHED", "STDDAQ_RAW")
PER_POINT = 4
# The second environment, which `make test-all` creates.
DATABROKER_1 = Path(sys.prefix) / "databroker1" / "bin" / "python"


def pixels_of(camera: PointCamera, per_point: int) -> np.ndarray:
    """Return the images that the camera published, (points, images of a point, height, width)."""
    pixels = np.array([image.pixels for image in camera.published])
    return pixels.reshape(-1, per_point, *pixels.shape[1:])


def read(python: Path, documents: Documents, directory: Path) -> dict[str, np.ndarray]:
    """Return the images of each run, as the databroker of an environment reads them."""
    assert python.exists(), (
        f"{python}: missing; `make test-all` creates it, or sh .ci/make-databroker1 {sys.prefix}"
    )
    lines = [json.dumps([name, doc]) for name, doc in documents.all]
    (directory / "documents").write_text("\n".join(lines))
    paths = (str(directory / "documents"), str(directory / "images.npz"))
    # databroker does not remove its temporary directories.
    env = {**os.environ, "TMPDIR": str(directory)}
    reader = Service([str(python), read_with_databroker.__file__, *paths], env)
    assert reader.wait(timeout=100) == 0, reader.output
    with np.load(paths[1]) as images:
        return dict(images)


@pytest.mark.slow
@pytest.mark.parametrize(
    "python",
    [
        pytest.param(DATABROKER_1, id="databroker 1", marks=pytest.mark.external),
        pytest.param(Path(sys.executable), id="databroker 2"),
    ],
)
def test_databroker_reads_every_kind_of_datum(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, tmp_path: Path, python: Path
):
    expected = {}
    for spec in SPECS:
        det, camera = make_detector(rig={"number_of_writers": 3}, documents=spec)
        det.images_per_event.put(PER_POINT)
        uid = run_plan(engine, count([det], 5))
        expected[uid] = pixels_of(camera, PER_POINT)
    found = read(python, documents, tmp_path)
    assert found.keys() == expected.keys()
    for uid, pixels in expected.items():
        np.testing.assert_array_equal(found[uid], pixels)


class Filled:
    """Fills each event as soon as the RunEngine emits it; `images` holds the filled images so far."""

    def __init__(self, filler: Filler) -> None:
        self._filler = filler
        self.images: list[np.ndarray] = []

    def __call__(self, name: str, doc: Any) -> None:
        _, found = self._filler(name, doc)
        if name == "event":
            self.images.append(np.asarray(found["data"]["det_image"]))


@pytest.fixture
def filled(engine: RunEngine) -> Iterator[Filled]:
    """Return the filled images of the documents that `engine` emits."""
    handlers = {"STDDAQ_PUBLISHED": PublishedImagesHandler, "STDDAQ_RAW": RawFilesHandler}
    with Filler(handlers, inplace=False) as filler:
        found = Filled(filler)
        engine.subscribe(found)
        yield found


@pytest.mark.parametrize("spec", ["STDDAQ_PUBLISHED", "STDDAQ_RAW"])
def test_filler_fills_events_while_the_plan_runs(
    engine: RunEngine, filled: Filled, make_detector: MakeDetector, spec: str
):
    det, camera = make_detector(rig={"number_of_writers": 3}, documents=spec)
    engine(count([det], 5))
    np.testing.assert_array_equal(filled.images, pixels_of(camera, 1))


@pytest.mark.parametrize("spec", ["STDDAQ_PUBLISHED", "STDDAQ_RAW"])
def test_images_that_a_pause_discarded_are_not_filled_in(
    engine: RunEngine, filled: Filled, make_detector: MakeDetector, spec: str
):
    det, camera = make_detector(rig={"number_of_writers": 3}, documents=spec)
    triggerable: Any = det

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> MsgGenerator[None]:
        for point in range(4):
            yield from bps.checkpoint()
            yield from bps.trigger(triggerable, wait=True)
            if point == 1:
                yield from bps.pause()
            yield from bps.create()
            yield from bps.read(det)
            yield from bps.save()

    with pytest.raises(RunEngineInterrupted):
        engine(plan())
    engine.resume()
    assert len(camera.published) == 5
    np.testing.assert_array_equal(filled.images, np.delete(pixels_of(camera, 1), 1, axis=0))
