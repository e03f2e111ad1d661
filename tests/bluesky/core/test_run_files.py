"""The images of a point, and its scalars, from files that may still grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.data.raw_files import RunSpec, pixels, stream, write_run

from stddaq.files import opening
from stddaq.files.growing_run import GrowingFiles
from stddaq_ophyd.core.ready_images import ReadyImages
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.run_files import feed_point
from stddaq_ophyd.core.scalars import WantedScalars

REGION = (0, 2, 1, 3)
WANTED = WantedScalars(mean=True, regions={"top": REGION})
N_WRITERS = 2


@pytest.fixture
def growing(tmp_path: Path) -> GrowingFiles:
    """Return the raw files of images 0 to 9, divided over the writers by their ids."""
    spec = RunSpec(n_writers=N_WRITERS)
    write_run(tmp_path, stream(range(10)), spec)
    return GrowingFiles(spec.raw_paths(tmp_path))


def counts(n_images: int) -> RunCounts:
    return RunCounts(n_images, tuple(len(range(i, n_images, N_WRITERS)) for i in range(N_WRITERS)))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list of the files that are opened."""
    found: list[Path] = []
    open_hdf5 = opening._hdf5_file

    def note(path: Path, swmr: bool = False) -> object:
        found.append(path)
        return open_hdf5(path, swmr)

    monkeypatch.setattr(opening, "_hdf5_file", note)
    return found


@pytest.mark.parametrize(("before", "n"), [(4, 1), (5, 1), (3, 4)])
def test_a_point_opens_each_raw_file_with_new_images_once(
    growing: GrowingFiles, opened: list[Path], before: int, n: int
) -> None:
    images = ReadyImages(counts(before), n, may_restart=True)
    found = feed_point(growing, images, counts(before + n), WANTED)
    taken = images.take(n)
    assert taken.ids.tolist() == list(range(before, before + n))
    assert len(opened) == len(set(opened)) == min(n, N_WRITERS)
    expected = pixels(stream(range(before, before + n)))
    assert found is not None
    assert found.mean == expected[-1].mean(dtype=np.float64)
    first_row, last_row, first_column, last_column = REGION
    assert found.sums == {"top": expected[:, first_row:last_row, first_column:last_column].sum(dtype=float)}


def test_scalars_of_images_of_an_earlier_reading_are_read_too(growing: GrowingFiles) -> None:
    images = ReadyImages(counts(0), 4, may_restart=True)
    assert feed_point(growing, images, counts(3), WANTED) is None
    found = feed_point(growing, images, counts(4), WANTED)
    expected = pixels(stream(range(4)))
    assert found is not None
    assert found.mean == expected[-1].mean(dtype=np.float64)
    assert found.sums["top"] == expected[:, 0:2, 1:3].sum(dtype=float)


def test_nothing_is_read_of_pixels_that_are_not_wanted(growing: GrowingFiles) -> None:
    images = ReadyImages(counts(0), 1, may_restart=True)
    assert feed_point(growing, images, counts(1), WantedScalars()) is None
    assert images.is_complete
