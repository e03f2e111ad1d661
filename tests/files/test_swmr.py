"""Growing files: their creation, their rows, and a reader at the same time."""

from __future__ import annotations

import errno
import os
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


def test_file_of_a_killed_writer_ends_with_a_whole_chunk_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "file0.h5"
    file = created(path)
    rows = GrowingRows(file, "metadata", ROW)
    file.swmr_mode = True
    rows.append([(1, 1)])
    offset = dataset(file, "metadata").id.get_chunk_info(0).byte_offset
    assert path.stat().st_size >= offset + CHUNK_ROWS * ROW.itemsize
    rows.close()
    close_swmr_file(file, path)


@pytest.mark.parametrize("n_retried", [1, 30])
def test_rows_that_the_disk_did_not_take_are_invisible_and_may_be_appended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_retried: int
) -> None:
    path = tmp_path / "file0.h5"
    file = created(path)
    rows = GrowingRows(file, "metadata", ROW)
    file.swmr_mode = True
    n = CHUNK_ROWS - 5
    rows.append([(i, 1) for i in range(n)])
    write = os.pwrite

    def write_first_chunk_only(fd: int, content: memoryview, offset: int) -> int:
        if len(content) > 5 * ROW.itemsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, content, offset)

    more = [(n + i, 1) for i in range(30)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write_first_chunk_only)
        with pytest.raises(OSError, match="No space left"):
            rows.append(more)
    assert (rows.n_rows, dataset(file, "metadata").shape) == (n, (n,))
    # With fewer rows the second chunk is not needed; later it is.
    rows.append(more[:n_retried])
    with h5py.File(path, swmr=True, locking=False) as reader:
        assert dataset(reader, "metadata")["image_id"].tolist() == list(range(n + n_retried))
    rows.append([(n + n_retried + i, 1) for i in range(CHUNK_ROWS)])
    rows.close()
    close_swmr_file(file, path)
    with h5py.File(path) as reader:
        assert np.array_equal(dataset(reader, "metadata")["image_id"], np.arange(n + n_retried + CHUNK_ROWS))
