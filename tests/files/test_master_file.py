"""The master file against the three-line reference of what it must show, and every way to refuse."""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.raw_files import Image, RunSpec, pixels, stream, write_run

from stddaq.files.master_file import DATA, DETECTOR, IMAGE_ID, IMAGE_METADATA, create_master_file


def check_shows(master: Path, images: list[Image], spec: RunSpec) -> None:
    """The reference: the run's images in their order, pixel by pixel and row by row."""
    with h5py.File(master) as file:
        np.testing.assert_array_equal(file[DATA][()], pixels(images, spec.shape, spec.dtype))
        ids = [image.image_id for image in images]
        assert file[IMAGE_METADATA]["image_id"].tolist() == ids == file[IMAGE_ID][()].tolist()
        assert (file[IMAGE_METADATA]["status"] == 1).all()
        if spec.metadata_file:
            assert file[f"{DETECTOR}/metadata"]["image_id"].tolist() == ids


increasing_ids = st.lists(st.integers(0, 60), unique=True, max_size=25).map(sorted)


@st.composite
def streams(draw: st.DrawFn) -> list[Image]:
    """A stream as a driver sees it: ids with gaps, restarted up to three times at an id not above the last."""
    passes = [ids for ids in draw(st.lists(increasing_ids, max_size=3)) if ids]
    kept = passes[:1]
    for ids in passes[1:]:
        if ids[0] <= kept[-1][-1]:
            kept.append(ids)
    return stream(*kept)


@settings(deadline=None, max_examples=60)
@given(
    images=streams(),
    n_writers=st.integers(1, 12),
    division=st.sampled_from(["image_id", "arrival"]),
    metadata_file=st.booleans(),
)
def test_master_file_shows_every_image_in_order(
    images: list[Image], n_writers: int, division: str, metadata_file: bool
) -> None:
    spec = RunSpec(n_writers=n_writers, division=division, metadata_file=metadata_file)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        raw = write_run(directory, images, spec)
        master = directory / "fileMaster.h5"
        meta = directory / "fileMeta.h5" if metadata_file else None
        summary = create_master_file(master, raw, metadata_file=meta)
        assert summary.n_images == len(images)
        check_shows(master, images, spec)
        assert sorted(path.name for path in directory.iterdir() if path.name.startswith(".")) == []
