"""Read-back with databroker 1, databroker 2 and Filler, by the handlers of their entry points."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.plans import count
from event_model import Filler
from support import read_with_databroker
from support.plans import Documents, PointCamera, run_plan
from support.processes import Service

from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.handlers import AggregateHandler, RawFilesHandler

# Several programs that take seconds to start.
pytestmark = pytest.mark.timeout(200)

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]
SPECS = ("AD_HDF5", "STDDAQ_AGGREGATE", "STDDAQ_RAW")
PER_POINT = 4
# The environment beside that of the tests which `make test` makes.
DATABROKER_1 = Path(sys.prefix) / "databroker1" / "bin" / "python"


def pixels_of(camera: PointCamera, per_point: int) -> np.ndarray:
    """What the camera has published, (points, images of a point, height, width)."""
    pixels = np.array([image.pixels for image in camera.published])
    return pixels.reshape(-1, per_point, *pixels.shape[1:])


def read(python: Path, documents: Documents, directory: Path) -> dict[str, np.ndarray]:
    """The images of each run, as the databroker of an environment reads them."""
    assert python.exists(), (
        f"{python}: missing; `make test` makes it, or sh .ci/make-databroker1 {sys.prefix}"
    )
    lines = [json.dumps([name, doc]) for name, doc in documents.all]
    (directory / "documents").write_text("\n".join(lines))
    paths = (str(directory / "documents"), str(directory / "images.npz"))
    # It leaves temporary directories behind.
    env = {**os.environ, "TMPDIR": str(directory)}
    reader = Service([str(python), read_with_databroker.__file__, *paths], env)
    assert reader.wait(timeout=100) == 0, reader.output
    with np.load(paths[1]) as images:
        return dict(images)


def test_databroker_1_and_2_read_every_kind_of_datum(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, tmp_path: Path
):
    expected = {}
    for spec in SPECS:
        det, camera = make_detector(rig={"number_of_writers": 3}, documents=spec)
        det.images_per_trigger.put(PER_POINT)
        uid = run_plan(engine, count([det], 5))
        expected[uid] = pixels_of(camera, PER_POINT)
    for python in (DATABROKER_1, Path(sys.executable)):
        found = read(python, documents, tmp_path)
        assert found.keys() == expected.keys()
        for uid, pixels in expected.items():
            np.testing.assert_array_equal(found[uid], pixels)


@pytest.mark.parametrize("spec", ["STDDAQ_AGGREGATE", "STDDAQ_RAW"])
def test_filler_fills_events_while_the_plan_runs(engine: RunEngine, make_detector: MakeDetector, spec: str):
    det, camera = make_detector(rig={"number_of_writers": 3}, documents=spec)
    handlers = {"STDDAQ_AGGREGATE": AggregateHandler, "STDDAQ_RAW": RawFilesHandler}
    filled: list[np.ndarray] = []

    def fill(name: str, doc: Any) -> None:
        _, found = filler(name, doc)
        if name == "event":
            filled.append(np.asarray(found["data"]["det_image"]))

    with Filler(handlers, inplace=False) as filler:
        engine.subscribe(fill)
        engine(count([det], 5))
    np.testing.assert_array_equal(np.array(filled), pixels_of(camera, 1))
