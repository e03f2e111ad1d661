"""Handlers read the images of a point, or raise; they never return fill values."""

from __future__ import annotations

import importlib.metadata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.data.raw_files import RunSpec, bitshuffle, dataset, pixels, stream, write_run
from support.processes.recording import MakeRig, images_of

from stddaq.errors import FileLayoutError
from stddaq.files.aggregate import aggregate_run
from stddaq.files.raw_rows import read_raw_file
from stddaq.files.sources import ImagesMissingError
from stddaq_ophyd.core.datum_rows import datum_rows
from stddaq_ophyd.handlers import PublishedImagesHandler, RawFilesHandler

# The ids have a gap and a restart; neither writers nor points divide the number of images.
IMAGES = stream([*range(20), *range(27, 60)], range(50))
N_PER_POINT = 4


def test_handlers_are_found_by_their_specs():
    found = {
        entry.name: entry.load() for entry in importlib.metadata.entry_points(group="databroker.handlers")
    }
    for handler in (PublishedImagesHandler, RawFilesHandler):
        for spec in handler.specs:
            assert found[spec] is handler


@pytest.mark.parametrize(
    ("n_writers", "division"),
    [(1, "image_id"), (2, "image_id"), (3, "image_id"), (8, "image_id"), (2, "arrival"), (5, "arrival")],
)
def test_points_of_several_raw_files_are_their_images_in_order(tmp_path: Path, n_writers: int, division: str):
    spec = RunSpec(n_writers=n_writers, division=division, filter=bitshuffle() if n_writers == 3 else None)
    raw = write_run(tmp_path, IMAGES, spec)
    master = aggregate_run(raw).path
    expected = pixels(IMAGES)
    for handler in (RawFilesHandler(raw[0], N_PER_POINT), PublishedImagesHandler(master, N_PER_POINT)):
        n_points = len(IMAGES) // N_PER_POINT
        with ThreadPoolExecutor(4) as threads:
            points = list(threads.map(lambda lazy: lazy.compute(), map(handler, range(n_points))))
        np.testing.assert_array_equal(np.concatenate(points), expected[: n_points * N_PER_POINT])
        with pytest.raises(
            ImagesMissingError,
            match=f"expected {n_points * N_PER_POINT + N_PER_POINT} images.*, got {len(IMAGES)}$",
        ):
            handler(point_number=n_points)


@pytest.mark.parametrize("n_writers", [1, 3, 8])
def test_a_datum_holds_the_rows_of_its_point_in_any_pattern(tmp_path: Path, n_writers: int):
    write_run(tmp_path, IMAGES, RunSpec(n_writers=n_writers))
    files = [read_raw_file(tmp_path / f"file{i}.h5") for i in range(n_writers)]
    writers = np.array([image.image_id % n_writers for image in IMAGES])
    rows = np.empty(len(IMAGES), int)
    for i, file in enumerate(files):
        rows[writers == i] = np.arange(file.n_rows)
    random = np.random.default_rng(1)
    for chosen in (np.arange(5, 12), np.array([2]), np.sort(random.choice(len(IMAGES), 40, replace=False))):
        handler = RawFilesHandler(tmp_path / "file0.h5", len(chosen), template="file{writer}.h5")
        found = [list(part) for part in datum_rows(writers[chosen], rows[chosen])]
        images = handler(rows=found)
        np.testing.assert_array_equal(images.compute(), pixels(IMAGES)[chosen])
        np.testing.assert_array_equal(images[1:-1].compute(), pixels(IMAGES)[chosen][1:-1])


def test_a_large_point_is_read_in_blocks_when_it_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stddaq_ophyd.handlers.BLOCK_BYTES", 3 * 2 * 3 * 2)
    (raw, _) = write_run(tmp_path, IMAGES)
    images = RawFilesHandler(raw, 20)(point_number=1)
    assert images.chunks[0] == (3, 3, 3, 3, 3, 3, 2)
    np.testing.assert_array_equal(images[7:9, 1].compute(), pixels(IMAGES)[27:29, 1])
    raw.unlink()
    with pytest.raises(FileLayoutError, match=r"file0\.h5: is missing"):
        images.compute()


def test_files_are_read_while_they_are_written_and_after_they_are_closed(make_rig: MakeRig):
    rig = make_rig(number_of_writers=3)
    images = images_of(range(50))
    rig.begin(n_image=1000)
    handler = RawFilesHandler(rig.path("file0.h5"), 1)
    points = []
    for image in images:
        rig.publish([image])
        rig.wait_for_count(image.image_id + 1)
        points.append(handler(rows=[[image.image_id % 3, image.image_id // 3, 0, 1, 1]]))
        np.testing.assert_array_equal(points[-1].compute()[0], image.pixels)
    with pytest.raises(FileLayoutError, match="not closed"):
        handler(point_number=0)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda lazy: lazy.compute()[0], points))
    np.testing.assert_array_equal(found, [image.pixels for image in images])
    rig.end(stop=True)
    for point in range(50):
        np.testing.assert_array_equal(handler(point).compute()[0], images[point].pixels)


@pytest.mark.parametrize("kind", ["aggregate", "raw"])
def test_a_raw_file_that_is_deleted_or_shortened_is_an_error(tmp_path: Path, kind: str):
    raw = write_run(tmp_path, IMAGES, RunSpec(n_writers=3))
    handler = (
        RawFilesHandler(raw[0], 6) if kind == "raw" else PublishedImagesHandler(aggregate_run(raw).path, 6)
    )
    lazy = handler(point_number=0)
    last = (len(IMAGES) // 6) - 1
    handler(point_number=last).compute()
    with h5py.File(raw[1], "a") as file:
        dataset(file, "det/data").resize(10, axis=0)
    with pytest.raises(ImagesMissingError, match=r"file1\.h5: is short: expected \d+ images, got 10$"):
        handler(point_number=last)
    raw[1].write_bytes(raw[1].read_bytes()[:-100])
    with pytest.raises(FileLayoutError, match=r"file1\.h5: is truncated"):
        lazy.compute()
    raw[1].unlink()
    with pytest.raises(FileLayoutError, match=r"file1\.h5: is missing"):
        lazy.compute()


def test_another_handle_on_a_growing_file_leads_to_an_error_and_never_to_wrong_images(
    make_rig: MakeRig,
):
    rig = make_rig(number_of_writers=1)
    images = images_of(range(40))
    rig.begin(n_image=1000)
    rig.publish(images[:20])
    rig.wait_for_count(20)
    handler = RawFilesHandler(rig.path("file0.h5"), 1)
    with h5py.File(rig.path("file0.h5"), swmr=True) as file:
        assert len(dataset(file, f"{rig.config.detector_name}/data")) >= 20
        rig.publish(images[20:])
        rig.wait_for_count(40)
        # HDF5 shows the state that the other handle has read.
        with pytest.raises(ImagesMissingError, match="expected 40 images, got 2"):
            handler(rows=[[0, 39, 0, 1, 1]])
        np.testing.assert_array_equal(handler(rows=[[0, 3, 0, 1, 1]]).compute()[0], images[3].pixels)
    np.testing.assert_array_equal(handler(rows=[[0, 39, 0, 1, 1]]).compute()[0], images[39].pixels)
    rig.end(stop=True)
