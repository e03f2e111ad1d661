"""The master file over the parts of several drivers, and its readers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from silx.io.nxdata.parse import get_default
from support.data.raw_files import Image, RunSpec, dataset, pixels, stream, write_run

import stddaq
from stddaq.errors import FileLayoutError, OutputExistsError
from stddaq.files.info import describe
from stddaq.files.joined_runs import create_joined_master
from stddaq.files.run import read_run
from stddaq.files.sources import OtherRunError

SHAPES = (2, 3), (4, 2)


def join(directory: Path, *parts: Sequence[Image], overwrite: bool = False) -> Path:
    """Write the raw files of parts, and the master file over them. Return its path."""
    runs = []
    for number, (images, shape) in enumerate(zip(parts, SHAPES, strict=True), 1):
        spec = RunSpec(
            prefix=f"filePart{number}_", shape=shape, detector=f"d{number}", run_id=f"run-{number}"
        )
        runs.append(read_run(write_run(directory, images, spec)))
    path = directory / "fileMaster.h5"
    create_joined_master(path, runs, overwrite=overwrite)
    return path


def assert_joined(path: Path, ids: Sequence[int], epochs: Sequence[dict[int, int]] = ({}, {})) -> None:
    """Check that each part shows `ids`, by HDF5 and by `open_run`. `epochs`: of late ids, by part."""
    with h5py.File(path) as file:
        for number, (shape, of_part) in enumerate(zip(SHAPES, epochs, strict=True), 1):
            expected = pixels([Image(of_part.get(i, 0), i) for i in ids], shape)
            assert np.array_equal(dataset(file, f"/entry/part{number}/data")[()], expected)
            assert dataset(file, f"/entry/part{number}/image_id")[()].tolist() == list(ids)
            run = stddaq.open_run(path, part=number)
            assert run.image_ids.tolist() == list(ids)
            assert np.array_equal(run.images[:], expected)


@settings(deadline=None, max_examples=30)
@given(
    first=st.sets(st.integers(0, 40), max_size=30),
    second=st.sets(st.integers(0, 40), max_size=30),
)
def test_the_images_that_all_parts_have_are_shown_by_id(
    tmp_path_factory: pytest.TempPathFactory, first: set[int], second: set[int]
):
    directory = tmp_path_factory.mktemp("joined")
    path = join(directory, stream(sorted(first)), stream(sorted(second)))
    assert_joined(path, sorted(first & second))
    shutil.rmtree(directory)


def test_late_images_of_one_part_are_matched_with_those_of_the_other(tmp_path: Path):
    late = stream([0, 1, 4, 5], [2, 3, 6, 7])
    path = join(tmp_path, stream(range(8)), late)
    assert_joined(path, range(8), ({}, {image.image_id: image.epoch for image in late}))


def test_many_images_with_gaps_are_matched(tmp_path: Path):
    first, second = (
        sorted({*range(6000)} - {*range(0, 6000, 7)}),
        sorted({*range(6000)} - {*range(1, 6000, 5)}),
    )
    path = join(tmp_path, stream(first), stream(second))
    assert_joined(path, sorted({*first} & {*second}))


def test_silx_shows_the_first_part_by_default(tmp_path: Path):
    path = join(tmp_path, stream(range(5)), stream(range(5)))
    with h5py.File(path) as file:
        shown = get_default(file)
        assert shown is not None
        assert shown.is_valid
        assert shown.signal is not None
        assert shown.signal.name == "/entry/part1/data"
        assert shown.axes_names is not None
        assert shown.axes_names[0] == "image_id"


def test_a_run_whose_ids_restart_cannot_be_joined(tmp_path: Path):
    with pytest.raises(FileLayoutError, match="expected each once, got some twice"):
        join(tmp_path, stream(range(5)), stream(range(5), range(3)))
    assert not (tmp_path / "fileMaster.h5").exists()


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path):
    path = join(tmp_path, stream(range(5)), stream(range(5)))
    before = path.read_bytes()
    (tmp_path / "other").mkdir()
    runs = [read_run(sorted(tmp_path.glob(f"filePart{number}_*.h5"))) for number in (1, 2)]
    with pytest.raises(OutputExistsError):
        create_joined_master(path, runs)
    assert path.read_bytes() == before
    assert create_joined_master(path, runs, overwrite=True) == 5


def test_open_run_says_which_parts_there_are(tmp_path: Path):
    path = join(tmp_path, stream(range(5)), stream(range(5)))
    with pytest.raises(FileLayoutError, match=r"expected part=1 to part=2 of the drivers.*, got no part"):
        stddaq.open_run(path)
    with pytest.raises(FileLayoutError, match="expected a part from 1 to 2, got part 3"):
        stddaq.open_run(path, part=3)
    with pytest.raises(FileLayoutError, match="expected the master file of several drivers, got none"):
        stddaq.open_run(tmp_path / "filePart1_0.h5", part=1)


def test_raw_files_that_were_replaced_are_not_shown(tmp_path: Path):
    path = join(tmp_path, stream(range(5)), stream(range(5)))
    spec = RunSpec(prefix="filePart2_", shape=SHAPES[1], detector="d2", run_id="another")
    for raw in spec.raw_paths(tmp_path):
        raw.unlink()
    write_run(tmp_path, stream(range(5)), spec)
    with pytest.raises(OtherRunError, match="another"):
        stddaq.open_run(path, part=2)
    spec.raw_paths(tmp_path)[1].unlink()
    with pytest.raises(FileLayoutError, match=r"filePart2_1\.h5"):
        stddaq.open_run(path, part=2)


def test_the_description_names_what_it_is(tmp_path: Path):
    info = describe(join(tmp_path, stream(range(5)), stream(range(2, 5))))
    assert (info.kind, info.n_images) == ("joined master", 3)
    assert info.ids is not None
    assert (info.ids.first, info.ids.last) == (2, 4)
