"""Raw files of runs, written without services."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stddaq.files.raw_file import RawFile, RawLayout

BLOCK_BYTES = 16 * 2**20
BATCH = 1000


def write_raw_files(
    directory: Path, ids: Sequence[int] | np.ndarray, shape: tuple[int, int], n_writers: int
) -> list[Path]:
    """Write uint16 images of the given ids, divided by id. Return the files of writer 0, 1, ..."""
    layout = RawLayout("bench", shape, np.dtype("<u2"), BLOCK_BYTES, 0)
    image = np.random.default_rng(1).integers(0, 4096, shape, "<u2").data.cast("B")
    paths, all_ids = [], np.asarray(ids, np.uint64)
    for writer in range(n_writers):
        attributes = {
            "writer": writer,
            "number_of_writers": n_writers,
            "image_division": "image_id",
            "run_id": "0" * 32,
            "source": "image",
            "stddaq_version": "0",
        }
        paths.append(directory / f"file{writer}.h5")
        mine = all_ids[all_ids % n_writers == writer].tolist()
        with contextlib.closing(
            RawFile.create(paths[-1], layout, attributes, expected_images=len(mine))
        ) as raw:
            for first in range(0, len(mine), BATCH):
                batch = mine[first : first + BATCH]
                raw.put([image] * len(batch))
                raw.declare((image_id, 1) for image_id in batch)
                raw.flush()
    return paths
