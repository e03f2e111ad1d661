"""A run as a Zarr group (version 3): the arrays `images`, `image_id` and `status`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stddaq.files.export.source import Source, chunk_images

CHUNK_BYTES = 8 * 2**20


class ImageWriter:
    """See `Writer`."""

    def __init__(self, path: Path, source: Source, n_done: int) -> None:
        self._source, run = source, source.run
        self.step = chunk_images(source.image_bytes, CHUNK_BYTES)
        if n_done:
            self._images: Any = zarr.open_group(path, mode="r+")["images"]
            return
        attributes = {"run_id": run.run_id, "detector": run.detector_name, "account": run.account}
        group = zarr.create_group(path, zarr_format=3, attributes=attributes)
        for name, values in (("image_id", run.image_ids), ("status", run.status)):
            group.create_array(name, data=values, dimension_names=["image"])
        self._images = group.create_array(
            "images",
            shape=run.images.shape,
            chunks=(self.step, *run.image_shape),
            dtype=run.dtype,
            dimension_names=["image", "y", "x"],
        )

    def write(self, first: int, end: int) -> None:
        self._images[first:end] = self._source.images(first, end)

    def close(self) -> None:
        pass


@contextmanager
def reader(path: Path) -> Iterator[Callable[[int, int], np.ndarray]]:
    images: Any = zarr.open_group(path, mode="r")["images"]
    yield lambda first, end: np.asarray(images[first:end])
