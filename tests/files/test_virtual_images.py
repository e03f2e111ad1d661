"""Images of master and published images files are read from the raw files, in every pattern of mappings."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from support.data.raw_files import RunSpec, bitshuffle, pixels, stream, write_run

from stddaq.errors import FileLayoutError
from stddaq.files.aggregate import aggregate_run
from stddaq.files.growing_run import of_closed_run
from stddaq.files.nexus import DATA, IMAGE_METADATA
from stddaq.files.published_images import PublishedImagesFile
from stddaq.files.run import read_run
from stddaq.files.sources import ImagesMissingError
from stddaq.files.virtual import MAX_SINGLE_STRETCHES
from stddaq.files.virtual_images import VirtualImages

pytestmark = pytest.mark.usefixtures("past_hdf5")
IMAGES = stream([*range(20), *range(27, 60)], range(50))


@pytest.fixture
def past_hdf5(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read blocks of the smallest images from the raw files."""
    monkeypatch.setattr("stddaq.files.virtual_images.SMALL_BYTES", 0)


@pytest.mark.parametrize("n_writers", [1, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_all_parts_of_a_master_file_are_read(tmp_path: Path, n_writers: int, compressed: bool) -> None:
    spec = RunSpec(n_writers=n_writers, filter=bitshuffle() if compressed else None)
    master = VirtualImages(aggregate_run(write_run(tmp_path, IMAGES, spec)).path, DATA)
    expected = pixels(IMAGES)
    assert master.check(0, None) == (expected.shape, expected.dtype)
    for start, stop in [(0, len(IMAGES)), (0, 1), (17, 31), (50, 60), (len(IMAGES) - 1, len(IMAGES)), (5, 5)]:
        np.testing.assert_array_equal(master.read(start, stop), expected[start:stop])
    with pytest.raises(ImagesMissingError, match=f"expected 104 images, got {len(IMAGES)}"):
        master.read(100, 104)


@pytest.mark.parametrize("by_image", [True, False])
def test_mappings_of_many_stretches_are_read(
    tmp_path: Path, by_image: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_image:
        monkeypatch.setattr("stddaq.files.virtual.MAX_SINGLE_IMAGES", 1000)
    ids = np.sort(np.random.default_rng(3).choice(4000, 2000, replace=False)).tolist()
    images = stream(ids)
    raw = write_run(tmp_path, images)
    path = aggregate_run(raw).path
    with h5py.File(path) as file:
        mapped = file[DATA]
        assert isinstance(mapped, h5py.Dataset)
        rows = file[IMAGE_METADATA]
        assert isinstance(rows, h5py.Dataset)
        assert len(rows.virtual_sources()) < MAX_SINGLE_STRETCHES
        # Neighbours that stand in the same file share a mapping.
        n_mappings = len(mapped.virtual_sources())
        assert 1000 < n_mappings < 2000 if by_image else n_mappings == len(rows.virtual_sources())
    master = VirtualImages(path, DATA)
    for start, stop in [(0, 2000), (700, 900), (1999, 2000)]:
        np.testing.assert_array_equal(master.read(start, stop), pixels(images)[start:stop])


def test_published_images_of_several_runs_are_read(tmp_path: Path) -> None:
    published = PublishedImagesFile(tmp_path / "filePublished.h5")
    expected = []
    for spec in (RunSpec(n_writers=3), RunSpec(run_id="run-2", prefix="other")):
        published.extend(of_closed_run(read_run(write_run(tmp_path, IMAGES, spec)))[5:40])
        expected.append(pixels(IMAGES)[5:40])
    published.write(live=False)
    images = VirtualImages(published.path, DATA)
    np.testing.assert_array_equal(images.read(0, 70), np.concatenate(expected))
    np.testing.assert_array_equal(images.read(30, 41), np.concatenate(expected)[30:41])


def test_other_datasets_are_read_as_they_are(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = np.arange(24).reshape(4, 2, 3)
        file["number"] = 5
    assert VirtualImages(tmp_path / "a.h5", "images").read(1, 3)[0, 0].tolist() == [6, 7, 8]
    for name in ("number", "nothing"):
        with pytest.raises(FileLayoutError, match=f"expected images {name}, got none"):
            VirtualImages(tmp_path / "a.h5", name).read(0, 1)


def test_raw_files_are_read_without_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    master = VirtualImages(aggregate_run(write_run(tmp_path, IMAGES)).path, DATA)
    read = list[np.ndarray]()
    monkeypatch.setattr("stddaq.files.virtual_images.read_images", lambda *args: read.append(args[2]))
    master.read(3, 13)
    assert sum(map(len, read)) == 10
