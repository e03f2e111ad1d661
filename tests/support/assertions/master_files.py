"""What a master file shows, and its refusals."""

from __future__ import annotations

from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from support.data.raw_files import Image, RunSpec, dataset, pixels

from stddaq.errors import FileLayoutError
from stddaq.files.master_file import create_master_file
from stddaq.files.nexus import DATA, DETECTOR, IMAGE_ID, IMAGE_METADATA


def assert_shows(master: Path, images: list[Image], spec: RunSpec) -> None:
    """Check that the file shows the run's images in order, pixel by pixel and row by row."""
    ids = [image.image_id for image in images]
    with h5py.File(master) as file:
        np.testing.assert_array_equal(dataset(file, DATA)[()], pixels(images, spec.shape, spec.dtype))
        assert (
            dataset(file, IMAGE_METADATA)["image_id"].tolist() == ids == dataset(file, IMAGE_ID)[()].tolist()
        )
        assert (dataset(file, IMAGE_METADATA)["status"] == 1).all()
        if spec.metadata_file:
            assert dataset(file, f"{DETECTOR}/metadata")["image_id"].tolist() == ids


def assert_refused(directory: Path, raw: list[Path], match: str, metadata_file: Path | None = None) -> None:
    """Check that the master file is refused with one line and leaves no file behind."""
    before = sorted(directory.iterdir())
    with pytest.raises(FileLayoutError, match=match) as caught:
        create_master_file(directory / "m.h5", raw, metadata_file=metadata_file)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(directory.iterdir()) == before
