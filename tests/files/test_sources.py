"""Master and published images files over another run's raw files, which HDF5 would show without an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.data.raw_files import RunSpec, dataset, pixels, stream, write_raw_file, write_run

from stddaq.errors import FileLayoutError
from stddaq.files.growing_run import of_closed_run
from stddaq.files.info import describe
from stddaq.files.master_file import create_master_file
from stddaq.files.nexus import DATA, IMAGE_METADATA
from stddaq.files.published_images import PublishedImagesFile
from stddaq.files.reading import open_run
from stddaq.files.run import read_run
from stddaq.files.sources import ImagesMissingError, check_sources
from stddaq_ophyd.handlers import PublishedImagesHandler

IMAGES = stream(range(10))


def make_master(directory: Path, raw: list[Path]) -> Path:
    create_master_file(directory / "fileMaster.h5", raw)
    return directory / "fileMaster.h5"


def make_published(directory: Path, raw: list[Path], live: bool = False) -> Path:
    published = PublishedImagesFile(directory / "filePublished.h5")
    published.extend(of_closed_run(read_run(raw))[2:8])
    published.write(live=live)
    return published.path


def make_live(directory: Path, raw: list[Path]) -> Path:
    return make_published(directory, raw, live=True)


def check(path: Path, start: int = 0, stop: int | None = None) -> None:
    with h5py.File(path) as file:
        for name in (DATA, IMAGE_METADATA):
            check_sources(path, dataset(file, name), start, stop)


@pytest.mark.parametrize("make", [make_master, make_published, make_live])
def test_a_file_over_the_raw_files_of_another_run_is_refused(
    tmp_path: Path, make: Callable[[Path, list[Path]], Path]
) -> None:
    raw = write_run(tmp_path, IMAGES)
    path = make(tmp_path, raw)
    check(path)
    first = PublishedImagesHandler(path)(1).compute()
    np.testing.assert_array_equal(first, pixels(IMAGES[1:2] if make is make_master else IMAGES[3:4]))
    for writer in range(2):
        write_raw_file(raw[writer], IMAGES[writer::2], RunSpec(run_id="run-2"), writer)
    expected = re.escape(f'{raw[0]}: is not of the same run as {path}: run_id: expected "run-1", got "run-2"')
    with pytest.raises(FileLayoutError, match=expected):
        check(path)
    with pytest.raises(FileLayoutError, match=expected):
        PublishedImagesHandler(path)(0)


@pytest.mark.parametrize("make", [make_master, make_published])
def test_a_file_over_other_images_is_refused_where_no_file_names_the_run(
    tmp_path: Path, make: Callable[[Path, list[Path]], Path]
) -> None:
    cpp = RunSpec(by_stddaq=False)
    raw = write_run(tmp_path, IMAGES, cpp)
    path = make(tmp_path, raw)
    check(path)
    write_raw_file(raw[1], stream([1, 3, 15, 17, 19]), cpp, 1)
    with pytest.raises(FileLayoutError, match=r"row \d: expected image 5, got image 15$"):
        check(path)
    check(path, 0, 2)


@pytest.mark.parametrize("make", [make_master, make_published, make_live])
def test_a_file_over_empty_raw_files_is_refused(
    tmp_path: Path, make: Callable[[Path, list[Path]], Path]
) -> None:
    raw = write_run(tmp_path, IMAGES)
    path = make(tmp_path, raw)
    for writer in range(2):
        write_raw_file(raw[writer], [], RunSpec(), writer)
    with pytest.raises(ImagesMissingError, match=r"file0\.h5: is short: expected \d images, got 0"):
        check(path)


def test_info_names_the_raw_file_of_another_run_and_counts_no_image_of_it_as_good(tmp_path: Path) -> None:
    raw = write_run(tmp_path, IMAGES)
    path = make_master(tmp_path, raw)
    assert describe(path).differs is None
    for run_id, ids in (("run-2", IMAGES[1::2]), ("run-1", [])):
        write_raw_file(raw[1], ids, RunSpec(run_id=run_id), 1)
        info = describe(path)
        assert info.status is None
        assert any(line.lstrip().startswith(f"not of this run:    {raw[1]}: is ") for line in info.lines())


def test_a_run_is_not_read_through_the_master_file_of_another_run(tmp_path: Path) -> None:
    raw = write_run(tmp_path, IMAGES)
    path = make_master(tmp_path, raw)
    write_run(tmp_path, IMAGES, RunSpec(run_id="run-2"))
    with pytest.raises(FileLayoutError, match="is not of the same run as"), open_run(path):
        pass


def test_a_published_images_file_may_show_several_runs_and_no_other(tmp_path: Path) -> None:
    specs = [RunSpec(), RunSpec(run_id="run-2", prefix="other")]
    published = PublishedImagesFile(tmp_path / "filePublished.h5")
    for spec in specs:
        published.extend(of_closed_run(read_run(write_run(tmp_path, IMAGES, spec))))
    published.write(live=False)
    check(published.path)
    write_run(tmp_path, IMAGES, RunSpec(run_id="run-3", prefix="other"))
    with pytest.raises(FileLayoutError, match='run_id: expected "run-1" or "run-2", got "run-3"'):
        check(published.path)
    check(published.path, 0, len(IMAGES))
