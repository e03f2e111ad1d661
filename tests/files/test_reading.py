"""Reading a run back: the images in order, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from support.data.raw_files import RunSpec, bitshuffle, dataset, pixels, stream, write_raw_file, write_run

from stddaq.errors import FileLayoutError
from stddaq.files.master_file import create_master_file
from stddaq.files.reading import open_run

IMAGES = stream([0, 1, 2, 5, 6, 9], range(4))


@pytest.mark.parametrize("spec", [RunSpec(n_writers=3), RunSpec(division="arrival", filter=bitshuffle())])
def test_run_reads_the_same_from_master_and_raw_files(tmp_path: Path, spec: RunSpec) -> None:
    raw = write_run(tmp_path, IMAGES, spec)
    create_master_file(tmp_path / "fileMaster.h5", raw)
    expected = pixels(IMAGES, spec.shape, spec.dtype)
    for path in (tmp_path / "fileMaster.h5", tmp_path, raw[1]):
        with open_run(path) as run:
            assert run.n_images == 10
            assert run.image_ids.tolist() == [image.image_id for image in IMAGES]
            assert run.status.tolist() == [1] * 10
            assert (run.image_shape, run.dtype) == (spec.shape, np.dtype("<u2"))
            for start, stop in [(0, 10), (0, 1), (3, 8), (9, 10), (4, 4)]:
                np.testing.assert_array_equal(run.read(start, stop), expected[start:stop])
            for start, stop in [(-1, 3), (0, 11), (5, 4)]:
                with pytest.raises(IndexError):
                    run.read(start, stop)


@pytest.mark.parametrize("given", ["fileMaster.h5", "file0.h5"])
def test_missing_or_short_raw_file_is_named(tmp_path: Path, given: str) -> None:
    raw = write_run(tmp_path, IMAGES, RunSpec(n_writers=3))
    create_master_file(tmp_path / "fileMaster.h5", raw)
    with h5py.File(raw[1], "r+") as file:
        dataset(file, "det/data").resize(1, axis=0)
    with pytest.raises(FileLayoutError, match=r"file1\.h5: is short"), open_run(tmp_path / given):
        pass
    raw[2].unlink()
    raw[1].unlink()
    with pytest.raises(FileLayoutError, match=r"file1\.h5: is missing"), open_run(tmp_path / given):
        pass


def test_raw_file_that_changed_after_its_master_file_is_an_error(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(6)))
    create_master_file(tmp_path / "fileMaster.h5", raw)
    write_raw_file(raw[1], stream([1, 3]), RunSpec(), 1)
    with (
        pytest.raises(FileLayoutError, match="does not show the images"),
        open_run(tmp_path / "fileMaster.h5"),
    ):
        pass


def test_errors_of_the_reader_are_not_reported_as_damage(tmp_path: Path) -> None:
    write_run(tmp_path, stream(range(6)))
    with pytest.raises(ValueError, match="mine"), open_run(tmp_path):
        raise ValueError("mine")
