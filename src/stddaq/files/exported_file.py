"""The rows of an exported HDF5 file, which is read like a raw file of a run with one writer."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from stddaq.files.nexus import DATA, DETECTOR, IMAGE_METADATA
from stddaq.files.opening import examine
from stddaq.files.raw_rows import Origin, RawRows


def read_exported_file(path: Path) -> RawRows | None:
    """Return the rows of the HDF5 file at `path`; None if it is no exported one. Raises `FileLayoutError`."""
    with examine(path, allow_unclosed=True) as opened:
        images, rows, name = (
            opened.file.get(name) for name in (DATA, IMAGE_METADATA, f"{DETECTOR}/local_name")
        )
        if not all(isinstance(found, h5py.Dataset) for found in (images, rows, name)):
            return None
        assert isinstance(images, h5py.Dataset)
        assert isinstance(rows, h5py.Dataset)
        assert isinstance(name, h5py.Dataset)
        if images.is_virtual or images.ndim != 3 or rows.shape != images.shape[:1]:
            return None
        stored = rows[()]
        image_ids = stored["image_id"].astype(np.uint64)
        # The images are in the order of the run: an id that is not above the one before it is a restart.
        steps_back = np.zeros(len(image_ids), np.uint64)
        steps_back[1:] = image_ids[1:] <= image_ids[:-1]
        return RawRows(
            path=path,
            detector_name=str(name.asstr()[()]),
            origin=Origin.of(rows.parent),
            image_ids=image_ids,
            epochs=np.cumsum(steps_back, dtype=np.uint64),
            epochs_known=True,
            row_dtype=rows.dtype,
            unclosed=opened.unclosed,
            id_step=0,
            status=stored["status"].astype(np.uint64),
            image_shape=(images.shape[1], images.shape[2]),
            dtype=images.dtype,
            n_stored=images.shape[0],
            group_name=rows.parent.name or "",
        )
