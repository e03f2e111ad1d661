"""Images of a run that is open for reading are chosen by integers only, and no caller moves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.data.raw_files import pixels, stream, write_run

from stddaq import open_run
from stddaq.errors import FileLayoutError
from stddaq.files.reading import LostImagesError

IMAGES = stream([0, 1, 2, 5, 6, 9], range(4))
MANY = stream(range(100))

NO_IDS: list[Any] = [
    [38.9],
    [38.0],
    ["a"],
    "38",
    38,
    [None],
    [True],
    np.array([38.9]),
    np.int64(38),
    np.ones(100, bool),
    [[3]],
    [3, np.array([4])],
]
NO_ROWS: list[Any] = [
    [1.5],
    1.5,
    "a",
    True,
    ...,
    slice(0.5),
    slice(0, 9, 0),
    [[1], [2, 3]],
    [100],
    -101,
    np.ones(9, bool),
]


def test_a_selection_of_no_integers_or_no_images_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, MANY)
    run = open_run(tmp_path)
    for ids in NO_IDS:
        with pytest.raises(IndexError, match=r"ids: expected (several )?integers, got"):
            run.select(ids=ids)
    for absent in (-1, 100, 2**63, 2**70):
        with pytest.raises(LostImagesError, match=f"expected images of the given ids, got no {absent}$"):
            run.select(ids=[5, absent])
    for rows in NO_ROWS:
        with pytest.raises(IndexError, match="rows: expected"):
            run.select(rows=rows)


def test_a_selection_is_in_the_order_of_the_run(tmp_path: Path) -> None:
    write_run(tmp_path, MANY)
    run = open_run(tmp_path)
    several: list[Any] = [{7, 3}, range(7, 2, -4), np.array([7, 3], np.uint8), run.image_ids[[7, 3]]]
    for ids in [*several, [np.int64(7), 3, 7]]:
        assert run.select(ids=ids).image_ids.tolist() == [3, 7]
    for rows in ([7, 3, 7], slice(7, 2, -4), np.array([-93, 3])):
        assert run.select(rows=rows).image_ids.tolist() == [3, 7]
    for part in (run.select(ids=[]), run.select(ids=np.array([])), run.select(rows=())):
        assert part.n_images == 0


def test_assignment_cannot_move_images(tmp_path: Path) -> None:
    for name, images in (("gaps", IMAGES), ("all", MANY)):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, images)
        run = open_run(tmp_path / name)
        for part in (run, run.select(rows=slice(5))):
            for values in (part.image_ids, part.status):
                with pytest.raises(ValueError, match="read-only"):
                    values[0] = 9
        # These are copies.
        run.good[:] = False
        run.skipped_ids[:] = 0
        assert run.good.all()
        np.testing.assert_array_equal(run.select(ids=[6]).images, pixels(images)[run.image_ids == 6])


def test_numbers_of_parts_and_blocks_are_integers(tmp_path: Path) -> None:
    write_run(tmp_path, MANY)
    run: Any = open_run(tmp_path)
    calls: list[Any] = [
        run.partitions,
        lambda n: run.partition(0, n),
        run.images.blocks,
        run.images.dask,
    ]
    for call in calls:
        for n in (0, -1):
            with pytest.raises(ValueError, match=f": expected at least 1, got {n}$"):
                call(n)
        for n in ("3", 1.0, True):
            with pytest.raises(TypeError, match=": expected an integer, got"):
                call(n)
        assert call(np.int64(3)) is not None
    for rank in ("0", None, 0.0):
        with pytest.raises(TypeError, match="rank: expected an integer, got"):
            run.partition(rank, 3)
    with pytest.raises(ValueError, match="rank: expected 0 to 2, got -1"):
        run.partition(-1, 3)
    with pytest.raises(IndexError, match="expected none, as there are no images, got 0"):
        run.select(rows=[]).images[0]


def test_arguments_of_open_run_are_checked(tmp_path: Path) -> None:
    write_run(tmp_path, IMAGES)
    checked: Any = open_run
    for name, wrong in (("prefix", 5), ("part", "1"), ("part", 1.0), ("damaged", "no"), ("growing", 1)):
        with pytest.raises(TypeError, match=f"{name}: expected .*, got"):
            checked(tmp_path, **{name: wrong})
    with pytest.raises(ValueError, match="part: expected at least 1, got 0"):
        open_run(tmp_path, part=0)
    for path, prefix in (("a" * 5000, None), (tmp_path, "a" * 5000), (tmp_path / "file0.h5", "a" * 300)):
        with pytest.raises(FileLayoutError, match=r"aaa.*: cannot be read: File name too long"):
            open_run(path, prefix)
