"""Read-back with a real tiled server and TiledWriter, during a plan and after it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.plans import count
from bluesky_tiled_plugins import TiledWriter
from support.assertions.plans import Documents, PointCamera, in_step_with, run_plan
from support.processes.recording import images_of
from support.processes.tiled_server import TiledServer
from tiled.client.utils import ClientError

from stddaq.errors import FileLayoutError
from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.camera import as_camera
from stddaq_ophyd.plans import fly
from stddaq_ophyd.tiled_export import raw_export

# The tests start several slow programs.
pytestmark = pytest.mark.timeout(200)

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]


@pytest.fixture
def tiled(tiled_server: TiledServer) -> Iterator[Any]:
    """Return a client of the server."""
    with tiled_server.client() as client:
        yield client


def images_in(run: Any, key: str = "det_image", stream: str = "primary") -> np.ndarray:
    """Return the images (events, images per event, height, width) of a run in tiled."""
    return run[stream][key].read()


def expected_of(camera: PointCamera, per_point: int) -> np.ndarray:
    """Return the images that the camera published, in the same shape."""
    pixels = np.array([image.pixels for image in camera.published])
    return pixels.reshape(-1, per_point, *pixels.shape[1:])


@pytest.mark.slow
@pytest.mark.parametrize(("n_writers", "per_point"), [(1, 1), (3, 4), (8, 3)])
def test_images_are_read_during_the_plan_and_after_it(
    engine: RunEngine, make_detector: MakeDetector, tiled: Any, n_writers: int, per_point: int
):
    det, camera = make_detector(rig={"number_of_writers": n_writers})
    det.images_per_event.put(per_point)
    seen: list[int] = []

    def look(name: str, doc: dict[str, Any]) -> None:
        found = images_in(tiled.values().last())
        np.testing.assert_array_equal(found, expected_of(camera, per_point))
        seen.append(len(found))

    engine.subscribe(TiledWriter(tiled, batch_size=1))
    engine.subscribe(look, "event")
    uid = run_plan(engine, count([det], 5))
    assert seen == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(images_in(tiled[uid]), expected_of(camera, per_point))


@pytest.mark.slow
def test_a_flight_is_read_during_the_flight_and_after_it(
    engine: RunEngine, documents: Documents, make_detector: MakeDetector, tiled: Any
):
    det, camera = make_detector()
    images = images_of(range(60))
    expected = np.array([image.pixels for image in images])[:, None]
    publish = threading.Thread(
        target=camera.rig.publish, args=(in_step_with(documents, images), 0.01), daemon=True
    )
    det._camera = as_camera(publish.start)
    seen: list[int] = []

    def look(name: str, doc: dict[str, Any]) -> None:
        found = images_in(tiled.values().last(), stream="images")
        np.testing.assert_array_equal(found, expected[: doc["indices"]["stop"]])
        seen.append(len(found))

    engine.subscribe(TiledWriter(tiled, batch_size=1))
    engine.subscribe(look, "stream_datum")
    uid = run_plan(engine, fly([det], 60, period=0.1))
    assert seen[0] < seen[-1] == 60
    np.testing.assert_array_equal(images_in(tiled[uid], stream="images"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("per_point", [1, 3])
def test_images_of_an_ophyd_async_plan_are_read_during_the_plan_and_after_it(
    engine: RunEngine, make_async_detector: Callable[..., tuple[Any, PointCamera]], tiled: Any, per_point: int
):
    from ophyd_async.core import TriggerInfo

    det, camera = make_async_detector(rig={"number_of_writers": 3})
    seen: list[int] = []

    def look(name: str, doc: dict[str, Any]) -> None:
        found = images_in(tiled.values().last(), "det")
        np.testing.assert_array_equal(found, expected_of(camera, per_point))
        seen.append(len(found))

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.prepare(det, TriggerInfo(collections_per_event=per_point), wait=True)
        for _ in range(4):
            yield from bps.trigger_and_read([det])

    engine.subscribe(TiledWriter(tiled, batch_size=1))
    token = engine.subscribe(look, "event")
    uid = run_plan(engine, plan())
    assert seen == [1, 2, 3, 4]
    np.testing.assert_array_equal(images_in(tiled[uid], "det"), expected_of(camera, per_point))
    engine.unsubscribe(token)
    # A flight as well, of the same device.
    engine.unsubscribe(token)
    n_before = len(camera.published)
    uid = run_plan(engine, fly([det], 10, period=0.1))
    pixels = np.array([image.pixels for image in camera.published[n_before:]])
    np.testing.assert_array_equal(images_in(tiled[uid], "det", "images"), pixels[:, None])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AD_HDF5", "STDDAQ_PUBLISHED"])
def test_resource_and_datum_can_be_read(
    engine: RunEngine, make_detector: MakeDetector, tiled: Any, kind: str
):
    det, camera = make_detector(documents=kind)
    det.images_per_event.put(3)
    engine.subscribe(TiledWriter(tiled))
    uid = run_plan(engine, count([det], 4))
    np.testing.assert_array_equal(images_in(tiled[uid]), expected_of(camera, 3))


@pytest.mark.slow
def test_a_server_killed_during_a_run_loses_nothing_with_a_backup_directory(
    engine: RunEngine,
    make_detector: MakeDetector,
    tiled: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    # By default the client retries for 45 s (TILED_RETRY_TIMEOUT), and the plan waits.
    monkeypatch.setattr("tiled.client.utils.TILED_RETRY_ATTEMPTS", 1)
    det, camera = make_detector()
    (tmp_path / "mortal").mkdir()

    def read_and_kill(name: str, doc: dict[str, Any]) -> None:
        if doc["seq_num"] == 2:
            # This server has tiled's own adapter, unlike that of the other tests.
            np.testing.assert_array_equal(images_in(client.values().last()), expected_of(camera, 1))
            mortal.service.kill()

    with TiledServer(tmp_path / "mortal", tmp_path) as mortal, mortal.client() as client:
        engine.subscribe(TiledWriter(client, batch_size=1, backup_directory=str(tmp_path / "backup")))
        engine.subscribe(read_and_kill, "event")
        uid = run_plan(engine, count([det], 5))
    (backup,) = (tmp_path / "backup").iterdir()
    written_later = TiledWriter(tiled)
    for line in backup.read_text().splitlines():
        written_later(*json.loads(line).values())
    np.testing.assert_array_equal(images_in(tiled[uid]), expected_of(camera, 1))
    assert det.driver_state() == "idle"


@pytest.mark.slow
def test_the_checked_adapter_refuses_images_whose_raw_file_is_missing(
    engine: RunEngine, make_detector: MakeDetector, tiled: Any
):
    det, camera = make_detector(rig={"number_of_writers": 3})
    engine.subscribe(TiledWriter(tiled, batch_size=1))
    uid = run_plan(engine, count([det], 5))
    np.testing.assert_array_equal(images_in(tiled[uid]), expected_of(camera, 1))
    (camera.rig.directory / "det_00001_1.h5").unlink()
    with pytest.raises(ClientError, match=r"det_00001_1\.h5: is missing"):
        images_in(tiled[uid])


def test_raw_files_as_resources_are_refused(engine: RunEngine, make_detector: MakeDetector, tiled: Any):
    det, _ = make_detector(documents="STDDAQ_RAW")
    engine.subscribe(TiledWriter(tiled, batch_size=1))
    with pytest.raises(FileLayoutError, match='give the device documents="stream"'):
        engine(count([det], 2))


@pytest.mark.slow
@pytest.mark.parametrize("n_runs", [1, 2])
def test_an_export_has_the_raw_files_and_shows_the_images(
    engine: RunEngine, make_detector: MakeDetector, tiled: Any, tmp_path: Path, n_runs: int
):
    det, camera = make_detector(rig={"number_of_writers": 3})

    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        for _ in range(n_runs):
            for _ in range(4):
                yield from bps.trigger_and_read([det])
            # Later points are in the files of another run.
            det.stop()

    engine.subscribe(TiledWriter(tiled, batch_size=1))
    uid = run_plan(engine, plan())
    node = tiled[uid]["primary"]["det_image"]
    np.testing.assert_array_equal(node.read(), expected_of(camera, 1))
    files = raw_export(node, tmp_path / "export")
    assert len(files) == 1 + 3 * n_runs
    with pytest.raises(FileLayoutError, match="exists already"):
        raw_export(node, tmp_path / "export")
    (published,) = [path for path in files if path.name.endswith("Published.h5")]
    for path in camera.rig.directory.iterdir():
        path.unlink()
    with h5py.File(published) as file:
        np.testing.assert_array_equal(file["entry/data/data"], [image.pixels for image in camera.published])
