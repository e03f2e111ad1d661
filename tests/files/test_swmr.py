"""Growing files: their creation, their rows, and a reader at the same time."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from support.data.raw_files import ROW, dataset

from stddaq.files.swmr import CHUNK_ROWS, GrowingRows, close_swmr_file, open_swmr_file
from stddaq.new_file import NewFile


def created(path: Path) -> h5py.File:
    """Return an empty file in a format with SWMR."""
    new = NewFile.create(path, overwrite=False)
    try:
        return open_swmr_file(new)
    finally:
        new.close()


def test_file_that_hdf5_cannot_create_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no space")

    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(OSError, match="HDF5 cannot create the file: no space") as caught:
        created(tmp_path / "file0.h5")
    assert caught.value.filename == str(tmp_path / "file0.h5")


def test_file_that_hdf5_cannot_close_is_an_error_of_the_system(tmp_path: Path) -> None:
    class Unclosable:
        def close(self) -> None:
            raise RuntimeError("no space")

    with pytest.raises(OSError, match="HDF5 cannot close the file: no space"):
        close_swmr_file(Unclosable(), tmp_path / "file0.h5")  # pyright: ignore[reportArgumentType]


def test_rows_are_readable_while_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "file0.h5"
    file = created(path)
    rows = GrowingRows(file, "metadata", ROW)
    file.swmr_mode = True
    rows.append([(7, 1), (8, 2)])
    with h5py.File(path, swmr=True, locking=False) as reader:
        assert dataset(reader, "metadata")[()].tolist() == [(7, 1), (8, 2)]
    rows.append([(9, 1)])
    assert rows.n_rows == 3
    rows.close()
    close_swmr_file(file, path)
    with h5py.File(path) as reader:
        assert dataset(reader, "metadata")[()].tolist() == [(7, 1), (8, 2), (9, 1)]


def test_blocks_cross_chunks(tmp_path: Path) -> None:
    path = tmp_path / "file0.h5"
    file = created(path)
    rows = GrowingRows(file, "metadata", ROW)
    n = CHUNK_ROWS - 1
    rows.append([(i, 1) for i in range(n)])
    rows.append([(i, 1) for i in range(n, n + 10)])
    rows.close()
    close_swmr_file(file, path)
    with h5py.File(path) as reader:
        assert np.array_equal(dataset(reader, "metadata")[()]["image_id"], np.arange(n + 10))


def test_rows_of_a_failed_append_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "file0.h5"
    file = created(path)
    rows = GrowingRows(file, "metadata", ROW)
    rows.append([(1, 1)])
    with pytest.raises((TypeError, ValueError)):
        rows.append([(2, 1), ("three", 1)])  # pyright: ignore[reportArgumentType]
    rows.cut()
    rows.append([(2, 1)])
    rows.close()
    close_swmr_file(file, path)
    with h5py.File(path) as reader:
        assert dataset(reader, "metadata")[()].tolist() == [(1, 1), (2, 1)]
