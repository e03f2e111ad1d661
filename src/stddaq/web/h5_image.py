"""One image of an HDF5 file, reduced and encoded as live images are."""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.info import describe_datasets
from stddaq.files.nexus import DATA
from stddaq.preview.encoding import described, exact
from stddaq.preview.levels import Levels
from stddaq.preview.pictures import Part
from stddaq.preview.reduction import Reduction
from stddaq.text import bytes_text, mismatch
from stddaq.web.errors import RequestInvalidError
from stddaq.wire.preview import frame
from stddaq.wire.preview_requests import View

MAX_IMAGE_BYTES = 256 * 2**20


def images_of(file: h5py.File) -> h5py.Dataset:
    """Return the images of a raw, master or other file. Raise `FileLayoutError` if it has none."""
    datasets = [dataset for _, dataset in describe_datasets(file)]
    found = [one for one in datasets if one.ndim == 3 and one.dtype.kind in "uif" and one.shape[0]]
    if not found:
        raise FileLayoutError(mismatch(file.filename, "images, a three-dimensional dataset", "none"))
    return next((dataset for dataset in found if dataset.name == DATA), found[0])


def image_frame(filename: str, images: h5py.Dataset, index: int) -> bytes:
    """Return header and payload of an image. Raise `RequestInvalidError`."""
    rows = _rows_beside(images)
    # While a file is written, an image is complete when its row is there.
    n_images = len(images) if rows is None else min(len(images), len(rows))
    if index >= n_images:
        raise RequestInvalidError(mismatch("index", f"0 to {n_images - 1}", f"{index}"))
    shape, dtype = images.shape[1:], images.dtype.newbyteorder("=")
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > MAX_IMAGE_BYTES:
        expected = f"images of at most {bytes_text(MAX_IMAGE_BYTES)}"
        raise RequestInvalidError(mismatch(f"{images.name}", expected, bytes_text(n_bytes)))
    reduction = Reduction(shape, dtype)
    reduced = reduction.reduce(images[index].astype(dtype, copy=False))
    part = Part((0, 0), reduction.bin, reduced)
    picture, payload = described(part, reduced, View(), Levels().of(reduced))
    header: dict[str, Any] = {
        "v": 1,
        "filename": filename,
        "dataset": images.name,
        "index": index,
        "n_images": n_images,
        **_row(rows, index),
        "shape": list(shape),
        "dtype": dtype.name,
    }
    return frame(header | picture, payload)


def _rows_beside(images: h5py.Dataset) -> h5py.Dataset | None:
    rows = images.file.get(f"{(images.name or '').rpartition('/')[0]}/metadata")
    if not isinstance(rows, h5py.Dataset) or rows.ndim != 1:
        return None
    return rows if {"image_id", "status"} <= set(rows.dtype.names or ()) else None


def _row(rows: h5py.Dataset | None, index: int) -> dict[str, Any]:
    if rows is None:
        return {"image": None, "status": None}
    row = np.asarray(rows[index])
    return {"image": exact(int(row["image_id"])), "status": int(row["status"])}
