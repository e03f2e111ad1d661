"""The picture of missing images: every one is seen, where it belongs, in runs of any length."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image, ImageColor
from support.data.raw_files import RunSpec, dataset, stream, write_run

from stddaq import open_run
from stddaq.files.master_file import create_master_file
from stddaq.files.plot_missing import COLOURS, DAMAGED, GOOD, LOST, NOTHING, SKIPPED, MissingImages


def columns(ids: Any, n_files: int, **bad: int) -> MissingImages:
    """Return what is shown of images, of which some ids have a bad status; `i7=3`: that of image 7."""
    ids = np.asarray(ids, np.uint64)
    status = np.ones(len(ids), np.uint64)
    for name, value in bad.items():
        status[ids == int(name[1:])] = value
    return MissingImages.of(ids, status, (ids % n_files).astype(np.int64), n_files)


def test_each_image_of_a_short_run_has_a_column() -> None:
    found = columns([0, 1, 2, 3, 6, 7], 2, i2=2, i7=3)
    assert found.n_positions == 8
    assert found.worst.tolist() == [
        [GOOD, NOTHING, DAMAGED, NOTHING, NOTHING, NOTHING, GOOD, NOTHING],
        [NOTHING, GOOD, NOTHING, GOOD, NOTHING, NOTHING, NOTHING, LOST],
    ]
    assert found.counts[SKIPPED].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert found.totals.tolist() == [0, 4, 1, 1, 2]


def test_one_bad_image_of_a_million_has_its_column() -> None:
    skipped = {700_000, *range(500_000, 510_000)}
    found = columns(
        np.setdiff1d(np.arange(10**6) + 10**12, [10**12 + one for one in skipped]), 16, i1000000123456=3
    )
    n_columns = found.worst.shape[1]
    assert 100 < n_columns <= 300
    assert np.argwhere(found.worst >= DAMAGED).tolist() == [[123456 % 16, 123456 * n_columns // 10**6]]
    assert found.counts[LOST].sum() == 1
    shown = np.flatnonzero(found.counts[SKIPPED]) / n_columns
    assert set(np.round(shown, 2)) == {0.5, 0.51, 0.7}
    assert found.counts[SKIPPED].sum() == pytest.approx(10_001)
    assert found.totals[SKIPPED] == 10_001


def test_restarts_follow_each_other_and_late_images_have_their_place() -> None:
    restarted = columns([0, 1, 4, 0, 1, 2], 1)
    assert restarted.positions.tolist() == [0, 1, 4, 5, 6, 7]
    assert (restarted.restarts.tolist(), restarted.totals[SKIPPED]) == ([5], 2)
    late = columns([0, 1, 3, 2, 5], 1, i2=3)
    assert (late.restarts.tolist(), late.worst[0].tolist()) == ([], [GOOD, GOOD, LOST, GOOD, NOTHING, GOOD])


def test_huge_gaps_are_shown() -> None:
    found = columns([5, 2**62], 1)
    assert found.totals[SKIPPED] == pytest.approx(2**62)
    assert (found.counts[SKIPPED] > 0).all()


def colours_of(figure: Any) -> set[tuple[int, ...]]:
    """Return the colours with at least 100 pixels in the picture of a figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    found, numbers = np.unique(
        np.asarray(Image.open(content).convert("RGB")).reshape(-1, 3), axis=0, return_counts=True
    )
    return {tuple(colour) for colour in found[numbers >= 100].tolist()}


def rgb(kind: int) -> tuple[int, ...]:
    return ImageColor.getrgb(COLOURS[kind])


@pytest.mark.slow
def test_a_picture_shows_each_kind_and_what_the_files_are_called(tmp_path: Path) -> None:
    directory = tmp_path / "a$b$c"
    directory.mkdir()
    raw = write_run(directory, stream([*range(40), *range(45, 2000)]), RunSpec(n_writers=4))
    text = '{"outcome": "file_saved", "count": 1995, "recording_s": 20.0}'
    create_master_file(directory / "fileMaster.h5", raw, account=text)
    figure = open_run(directory).plot_missing()
    assert rgb(GOOD) in colours_of(figure)
    assert not {rgb(DAMAGED), rgb(LOST)} & colours_of(figure)
    for row, status in ((7, 2), (300, 3)):
        with h5py.File(raw[1], "r+") as file:
            rows = dataset(file, "det/metadata")
            rows[row] = (rows[row]["image_id"], status)
    figure = open_run(directory).plot_missing()
    assert {rgb(GOOD), rgb(DAMAGED), rgb(LOST), rgb(SKIPPED)} <= colours_of(figure)
    bars, writers, skipped = figure.axes
    assert [label.get_text() for label in writers.get_yticklabels()] == [path.name for path in raw]
    assert skipped.get_xlabel() == "image id"
    assert bars.child_axes[0].get_xlabel() == "seconds after the first image, at a constant rate"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "1993 good",
        "1 damaged",
        "1 overwritten or failed",
        "5 skipped",
    ]


def test_a_run_without_images_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    assert open_run(tmp_path).plot_missing().get_suptitle() == f"{tmp_path}: no images"
