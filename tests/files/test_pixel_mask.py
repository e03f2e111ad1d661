"""Pixel masks from files of numpy and HDF5."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stddaq.errors import ConfigError, FileLayoutError
from stddaq.files.pixel_mask import read_pixel_mask, write_pixel_mask
from stddaq.run_metadata import Detector


@pytest.mark.parametrize("dtype", ["?", "u1", "<i4", "<u4"])
@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_mask_is_read_as_32_bits(tmp_path: Path, dtype: str, kind: str):
    mask = np.array([[0, 1, 0], [1, 0, 1]], dtype)
    name = str(tmp_path / f"mask.{kind}")
    if kind == "npy":
        np.save(name, mask)
    else:
        with h5py.File(name, "w") as file:
            file["a/mask"] = mask
        name += ":/a/mask"
    found = read_pixel_mask(name, (2, 3))
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, mask)


def test_pixels_of_users_are_dead_too(tmp_path: Path):
    np.save(tmp_path / "mask.npy", np.array([[0, 256, 257]], "<u4"))
    assert read_pixel_mask(str(tmp_path / "mask.npy"), (1, 3)).tolist() == [[0, 258, 259]]


@pytest.mark.parametrize(
    "mask",
    [np.zeros((3, 2), "u4"), np.zeros((1, 2, 3), "u4"), np.zeros((2, 3), "f4"), np.zeros((2, 3), "u8")],
)
def test_mask_of_another_shape_or_type_is_refused(tmp_path: Path, mask: Any):
    np.save(tmp_path / "mask.npy", mask)
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file["mask"] = mask
    for name in ("mask.npy", "mask.h5:mask"):
        with pytest.raises(FileLayoutError, match=r"expected a mask \(2, 3\) of integers"):
            read_pixel_mask(str(tmp_path / name), (2, 3))


def test_files_that_are_no_masks_are_named(tmp_path: Path):
    (tmp_path / "text.npy").write_text("no mask")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", a=np.zeros((2, 3)))
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    os.mkfifo(tmp_path / "pipe.npy")
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file.create_group("group")
    for name in (
        *("text.npy", "empty.npy", "several.npz", "objects.npy", "pipe.npy", "none.npy", "text.npy:/mask"),
        *("mask.h5:/group", "mask.h5:/none", "none.h5:/mask", "mask.h5"),
    ):
        with pytest.raises(FileLayoutError, match=name.partition(":")[0]):
            read_pixel_mask(str(tmp_path / name), (2, 3))


def test_masks_that_are_elsewhere_are_refused(tmp_path: Path):
    (tmp_path / "secret").write_bytes(bytes(24))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["mask"] = np.zeros((2, 3), "u4")
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("other.h5", "/mask")
        file.create_dataset("external", (2, 3), "u4", external=str(tmp_path / "secret"))
        layout = h5py.VirtualLayout((2, 3), "u4")
        layout[...] = h5py.VirtualSource("other.h5", "mask", (2, 3))
        file.create_virtual_dataset("virtual", layout)
    for name in ("linked", "external", "virtual"):
        with pytest.raises(FileLayoutError, match="expected a dataset that is in this file"):
            read_pixel_mask(f"{tmp_path}/mask.h5:/{name}", (2, 3))


def written_mask(directory: Path, detector: Detector, image_shape: tuple[int, int]) -> np.ndarray | None:
    """Return the mask that is written to a file; None without one."""
    with h5py.File(directory / "file.h5", "w") as file:
        stored = write_pixel_mask(file, "pixel_mask", detector, image_shape)
    if stored is None:
        return None
    with h5py.File(directory / "file.h5") as file:
        found = file["pixel_mask"]
        assert isinstance(found, h5py.Dataset)
        assert found.dtype == np.uint32
        return found[()]


def test_gaps_are_added_to_the_mask_of_the_file(tmp_path: Path):
    np.save(tmp_path / "mask.npy", np.array([[0, 2, 0], [0, 2, 0]], "<u4"))
    gaps = [[1, 0, 2, 0]]
    assert written_mask(tmp_path, Detector(), (2, 3)) is None
    without = written_mask(tmp_path, Detector(gaps=gaps), (2, 3))
    assert without is not None
    assert without.tolist() == [[0, 1, 1], [0, 0, 0]]
    both = written_mask(tmp_path, Detector(gaps=gaps, mask_file=str(tmp_path / "mask.npy")), (2, 3))
    assert both is not None
    assert both.tolist() == [[0, 3, 1], [0, 2, 0]]


def test_large_mask_of_gaps_is_written_at_its_gaps_only(tmp_path: Path):
    shape = (1100, 1000)
    expected = np.zeros(shape, np.uint32)
    expected[510:550] = 1
    found = written_mask(tmp_path, Detector(gaps=[[0, 510, 999, 549]]), shape)
    np.testing.assert_array_equal(found, expected)
    stored = (tmp_path / "file.h5").stat()
    assert stored.st_size > expected.nbytes > 512 * stored.st_blocks  # The rest of the file is a hole.

    expected[:, 500:510] = expected[200:250, 900:] = 1
    gaps = [[0, 510, 999, 549], [500, 0, 509, 1099], [900, 200, 999, 249]]
    np.testing.assert_array_equal(written_mask(tmp_path, Detector(gaps=gaps), shape), expected)


@pytest.mark.parametrize("gap", [[0, 0, 3, 0], [0, 0, 0, 2], [1, 0, 0, 0], [0, 1, 0, 0]])
def test_gaps_outside_the_image_are_refused(tmp_path: Path, gap: list[int]):
    with pytest.raises(ConfigError, match=r"detector\.gaps: expected corners x0 <= x1 < 3, y0 <= y1 < 2"):
        written_mask(tmp_path, Detector(gaps=[gap]), (2, 3))
