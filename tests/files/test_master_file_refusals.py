"""What a master file is not made of, and how the refusal names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.assertions.master_files import assert_refused, assert_shows
from support.data.raw_files import (
    EPOCH_ROW,
    Image,
    RunSpec,
    dataset,
    stream,
    write_metadata_file,
    write_raw_file,
    write_run,
)

from stddaq.errors import FileLayoutError
from stddaq.files.master_file import create_master_file


@pytest.mark.parametrize("by_stddaq", [True, False])
def test_missing_raw_file_is_named(tmp_path: Path, by_stddaq: bool) -> None:
    raw = write_run(tmp_path, stream(range(40)), RunSpec(n_writers=12, by_stddaq=by_stddaq))
    assert_refused(tmp_path, [*raw[:10], *raw[11:]], r"file10\.h5: is missing")
    assert_refused(tmp_path, raw[:11], r"file11\.h5: is missing")
    raw[10].unlink()
    assert_refused(tmp_path, raw, r"file10\.h5: is missing")
    assert_refused(tmp_path, [], "raw files: expected at least one, got none")


def test_short_data_is_named(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    with h5py.File(raw[1], "r+") as file:
        dataset(file, "det/data").resize(2, axis=0)
    assert_refused(tmp_path, raw, r"file1\.h5: is short: /det/data holds 2 images, its metadata 4 rows")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"shape": (3, 3)}, "image shape"),
        ({"dtype": "<u4"}, "pixel type"),
        ({"detector": "other"}, "detector_name"),
        ({"run_id": "run-2"}, "run_id"),
        ({"division": "arrival"}, "image_division"),
        ({"n_writers": 3}, "number_of_writers"),
    ],
)
def test_file_of_another_run_is_named(tmp_path: Path, change: dict[str, object], what: str) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    write_raw_file(raw[1], stream([1, 3]), replace(RunSpec(), **change), 1)
    assert_refused(
        tmp_path, raw, rf"file1\.h5: is not of the same run as .*file0\.h5: {what}: expected .*, got "
    )


def test_image_of_another_writer_is_named(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    write_raw_file(raw[1], stream([1, 4]), RunSpec(), 1)
    assert_refused(tmp_path, raw, r"file1\.h5: holds image 4, which belongs to writer 0 of 2")


def test_image_that_occurs_twice_is_named(tmp_path: Path) -> None:
    spec = RunSpec(division="arrival")
    raw = write_run(tmp_path, stream(range(9)), spec)
    write_raw_file(raw[1], stream([1, 4]), spec, 1)
    assert_refused(tmp_path, raw, r"file0\.h5 and .*file1\.h5: both hold image 4")


def test_same_writer_twice_is_named(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    write_raw_file(raw[1], stream([0]), RunSpec(), 0)
    assert_refused(tmp_path, raw, r"file1\.h5: belongs to writer 0, as does .*file0\.h5")


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all"])
def test_file_that_is_not_hdf5_is_named(tmp_path: Path, content: bytes) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    raw[1].write_bytes(content)
    assert_refused(tmp_path, raw, r"file1\.h5: is not an HDF5 file")


def test_truncated_file_is_named(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    raw[1].write_bytes(raw[1].read_bytes()[:-100])
    assert_refused(tmp_path, raw, r"file1\.h5: is truncated")


def test_file_that_is_not_a_raw_file_is_named(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    with h5py.File(raw[1], "w") as file:
        file["else"] = 1
    assert_refused(tmp_path, raw, r"file1\.h5: expected a raw file \(.*\), got /else")


def test_file_that_is_being_written_is_named(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    with h5py.File(raw[1], "r+", libver="latest") as file:
        file.swmr_mode = True
        flagged = raw[1].read_bytes()
    raw[1].write_bytes(flagged)
    assert_refused(tmp_path, raw, r"file1\.h5: was not closed: .*stddaq repair")


def test_metadata_file_without_an_image_is_named(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    meta = tmp_path / "fileMeta.h5"
    write_metadata_file(meta, stream([0, 1, 2, 4, 5, 6, 7, 8]), RunSpec())
    assert_refused(
        tmp_path,
        raw,
        r"fileMeta\.h5: expected a row for each of the run's 9 images, got none for 1 .* first is image 3",
        meta,
    )


def test_restarts_that_cpp_files_do_not_show_are_refused(tmp_path: Path) -> None:
    spec = RunSpec(by_stddaq=False)
    raw = spec.raw_paths(tmp_path)
    write_raw_file(raw[0], stream([0, 2, 4], [2, 4]), spec, 0)
    write_raw_file(raw[1], stream([1, 3, 5]), spec, 1)
    assert_refused(
        tmp_path,
        raw,
        r"file1\.h5: image ids that .*: expected 1 as in .*file0\.h5, got 0; .* order .* is unknown",
    )
    # The metadata file shows all restarts.
    images = [*stream(range(5)), Image(1, 2), Image(1, 4), Image(1, 5)]
    raw = write_run(tmp_path, images, replace(spec, metadata_file=True))
    create_master_file(tmp_path / "m.h5", raw, metadata_file=tmp_path / "fileMeta.h5")
    assert_shows(tmp_path / "m.h5", images, spec)


def test_epochs_that_do_not_fit_the_ids_are_refused(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    with h5py.File(raw[1], "r+") as file:
        dataset(file, "det/epochs").resize(2, axis=0)
        dataset(file, "det/epochs")[:] = np.array([(3, 2), (1, 1)], EPOCH_ROW)
    assert_refused(tmp_path, raw, r"file1\.h5: /det/epochs: does not fit")


def test_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    raw = write_run(tmp_path, stream(range(9)))
    with pytest.raises(FileLayoutError, match=r"nowhere/m\.h5: cannot be written"):
        create_master_file(tmp_path / "nowhere" / "m.h5", raw)
