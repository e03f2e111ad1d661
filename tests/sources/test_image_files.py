from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stddaq.errors import SourceError
from stddaq.sources import image_files
from stddaq.sources.image_files import RecordedImages, open_images


class ArrayStack:
    """A stack that notes the parts that were read."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape: tuple[int, int, int] = array.shape  # pyright: ignore[reportAttributeAccessIssue]
        self.dtype = array.dtype
        self.reads: list[tuple[int, int]] = []
        self._array = array

    def read(self, first: int, end: int) -> np.ndarray:
        self.reads.append((first, end))
        return self._array[first:end]

    def close(self) -> None:
        pass


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.lists(st.integers(0, 100), max_size=30))
def test_large_stack_is_read_in_blocks_and_every_image_is_the_right_one(
    n_images: int, per_block: int, wanted: list[int]
) -> None:
    array = np.arange(n_images * 6, dtype=np.uint16).reshape(n_images, 2, 3)
    stack = ArrayStack(array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "CACHE_BYTES", 0)
        patch.setattr(image_files, "BLOCK_BYTES", per_block * 12)
        images = RecordedImages("a test", stack)
    for index in wanted:
        np.testing.assert_array_equal(images[index % n_images], array[index % n_images])
    assert all(0 < end - first <= per_block for first, end in stack.reads)


def test_small_stack_is_read_once() -> None:
    stack = ArrayStack(np.zeros((10, 2, 3), np.uint16))
    images = RecordedImages("a test", stack)
    for index in (3, 9, 0, 5):
        images[index]
    assert stack.reads == [(0, 10)]


def test_image_that_cannot_be_decoded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "CACHE_BYTES", 0)
    monkeypatch.setattr(image_files, "BLOCK_BYTES", 1)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("images", (3, 4, 5), np.uint16, chunks=(1, 4, 5), compression="gzip")
        dataset[0] = 7
        dataset.id.write_direct_chunk((2, 0, 0), b"not compressed by anybody")
    with open_images(str(path)) as images:
        assert images[0].tolist() == [[7] * 5] * 4
        with pytest.raises(SourceError, match=r"x\.h5:/images: image 2 cannot be read: "):
            images[2]


def test_file_name_with_a_colon_is_a_file_name(tmp_path: Path) -> None:
    path = tmp_path / "10:30.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((2, 3, 4), np.uint16)
    for name in (path, f"{path}:images", f"{path}:/images"):
        with open_images(str(name)) as images:
            assert images.shape == (2, 3, 4)
            assert images.where == f"{path}:/images"
