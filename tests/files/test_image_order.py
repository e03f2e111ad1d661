"""The order of the images of a run, from the rows of its raw files in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.data.raw_files import ROW

from stddaq.errors import FileLayoutError
from stddaq.files.image_order import ImageOrder, order_images, rows_of_images
from stddaq.files.raw_rows import ImageRows, Origin, RawRows

SEVERAL_EPOCHS = [0, 0, 1, 1]


def raw_rows(
    ids: Sequence[int],
    epochs: Sequence[int] | None = None,
    division: str | None = None,
    name: str = "file0.h5",
) -> RawRows:
    """Return the rows of a raw file of a stddaq writer (with `division`) or of a C++ writer."""
    image_ids = np.array(ids, np.uint64)
    if epochs is None:
        drops = np.zeros(len(ids), np.uint64)
        drops[1:] = image_ids[1:] <= image_ids[:-1]
        found = np.cumsum(drops, dtype=np.uint64)
    else:
        found = np.array(epochs, np.uint64)
    return RawRows(
        path=Path(name),
        detector_name="det",
        origin=Origin(image_division=division),
        image_ids=image_ids,
        epochs=found,
        epochs_known=epochs is not None,
        row_dtype=ROW,
        unclosed=False,
        id_step=0,
        status=np.ones(len(ids), np.uint64),
        image_shape=(2, 3),
        dtype=np.dtype("<u2"),
        n_stored=len(ids),
    )


def cpp_files(*ids: Sequence[int]) -> list[RawRows]:
    """Return files without attributes."""
    return [raw_rows(of_file, name=f"file{i}.h5") for i, of_file in enumerate(ids)]


def files_of(order: ImageOrder) -> list[list[int]]:
    """Return the positions of each file's rows in the run."""
    return [positions.tolist() for positions in order.positions]


def test_ids_divided_by_writer_are_merged() -> None:
    order = order_images(cpp_files([0, 2, 8], [1, 5]))
    assert order.image_ids.tolist() == [0, 1, 2, 5, 8]
    assert files_of(order) == [[0, 2, 4], [1, 3]]
    assert (order.image_division, order.n_gaps, order.n_epochs) == ("image_id", 2, 1)


def test_one_file_keeps_its_order_and_names_no_division() -> None:
    order = order_images(cpp_files([3, 4, 9]))
    assert (order.image_ids.tolist(), order.image_division) == ([3, 4, 9], None)


def test_ids_that_do_not_increase_start_an_epoch_in_every_file() -> None:
    order = order_images(cpp_files([0, 2, 0, 2], [1, 1]))
    assert order.image_ids.tolist() == [0, 1, 2, 0, 1, 2]
    assert order.epochs.tolist() == [0, 0, 0, 1, 1, 1]
    assert files_of(order) == [[0, 2, 3, 5], [1, 4]]
    assert order.n_epochs == 2


def test_a_restart_is_not_a_gap() -> None:
    order = order_images(cpp_files([5, 6, 0, 1, 3]))
    assert (order.n_gaps, order.n_epochs) == (1, 2)


def test_files_that_disagree_on_the_number_of_restarts_are_refused() -> None:
    with pytest.raises(
        FileLayoutError,
        match=r"^file1\.h5: image ids that are not above the one before: expected 1 as in file0",
    ):
        order_images(cpp_files([0, 2, 0], [1, 3]))


def test_a_file_without_images_does_not_affect_restarts() -> None:
    order = order_images(cpp_files([0, 2, 0], []))
    assert files_of(order) == [[0, 1, 2], []]


def test_epochs_named_by_the_files_need_not_occur_in_each() -> None:
    files = [raw_rows([0, 2, 0], [0, 0, 2], "image_id"), raw_rows([1, 3], [1, 1], "image_id", "file1.h5")]
    order = order_images(files)
    assert order.image_ids.tolist() == [0, 2, 1, 3, 0]
    assert order.epochs.tolist() == [0, 0, 1, 1, 2]


def test_ids_dealt_in_turn_are_in_the_order_of_arrival() -> None:
    order = order_images(cpp_files([1, 4, 0], [2, 6]))
    assert order.image_ids.tolist() == [1, 2, 4, 6, 0]
    assert order.epochs.tolist() == [0, 0, 0, 0, 1]
    assert order.image_division == "arrival"


def test_rising_ids_of_an_unknown_division_are_in_the_order_of_their_ids() -> None:
    order = order_images(cpp_files([1, 2, 3], [7]))
    assert (order.image_ids.tolist(), order.image_division) == ([1, 2, 3, 7], None)


def test_restarts_of_an_unknown_division_are_refused() -> None:
    with pytest.raises(FileLayoutError, match=r"^file0\.h5: its image ids restart.* order .* unknown$"):
        order_images(cpp_files([1, 2, 1], [7]))


def test_an_image_in_two_files_names_both() -> None:
    files = [raw_rows([1, 2], [0, 0], "arrival"), raw_rows([2, 3], [0, 0], "arrival", "file1.h5")]
    with pytest.raises(FileLayoutError, match=r"^file0\.h5 and file1\.h5: both hold image 2$"):
        order_images(files)


def test_an_image_in_the_file_of_another_writer_is_named() -> None:
    files = [raw_rows([0, 2], [0, 0], "image_id"), raw_rows([1, 4], [0, 0], "image_id", "file1.h5")]
    with pytest.raises(FileLayoutError, match=r"^file1\.h5: holds image 4, which belongs to writer 0 of 2"):
        order_images(files)


def test_files_of_two_divisions_are_refused() -> None:
    files = [raw_rows([0], [0], "image_id"), raw_rows([1], [0], "arrival", "file1.h5")]
    with pytest.raises(FileLayoutError, match=r"image_division: expected one value .* arrival and image_id"):
        order_images(files)


def test_a_run_without_images_has_an_empty_order() -> None:
    order = order_images(cpp_files([], []))
    assert (order.n_images, order.n_gaps, order.n_epochs, files_of(order)) == (0, 0, 0, [[], []])


@pytest.mark.parametrize("epochs", [[0, 0, 0, 0], SEVERAL_EPOCHS])
def test_rows_of_a_metadata_file_are_found_by_epoch_and_id(epochs: list[int]) -> None:
    ids = [3, 5, 8, 9] if epochs != SEVERAL_EPOCHS else [8, 9, 3, 5]
    table = raw_rows(ids, epochs)
    order = order_images([raw_rows([ids[1], ids[3]], [epochs[1], epochs[3]], "arrival")])
    assert rows_of_images(order, table).tolist() == [1, 3]


@pytest.mark.parametrize(("has", "lacks"), [([3, 5], 9), ([5, 9], 3), ([], 3)])
def test_metadata_file_without_an_image_is_refused(has: list[int], lacks: int) -> None:
    order = order_images(cpp_files([3, 5, 9]))
    table: ImageRows = raw_rows(has, name="fileMeta.h5")
    with pytest.raises(FileLayoutError, match=rf"^fileMeta\.h5: .* the first is image {lacks}$"):
        rows_of_images(order, table)
