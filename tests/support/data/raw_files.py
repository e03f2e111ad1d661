"""Raw and metadata files written with plain h5py, in the layout of stddaq's writers and of C++ writers.

The pixels identify their image, so that a wrong mapping is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import blosc2 as library
import h5py
import hdf5plugin
import numpy as np

from stddaq.files.file_format import FILE_FORMAT

ROW = np.dtype([("image_id", "<u8"), ("status", "<u8")])
EPOCH_ROW = np.dtype([("first_row", "<u8"), ("epoch", "<u8")])
GF_ROW = np.dtype(
    [
        ("image_id", "<u8"),
        ("scan_id", "<u8"),
        ("scan_time", "<u4"),
        ("sync_time", "<u4"),
        ("frame_timestamp", "<u8"),
        ("exposure_time", "<u8"),
    ]
)


class Image(NamedTuple):
    """One image of a run: its epoch and id."""

    epoch: int
    image_id: int


def pixels(images: Sequence[Image], shape: tuple[int, int] = (2, 3), dtype: str = "<u2") -> np.ndarray:
    """Return the pixels of the images, (n, height, width); each image has values of its own."""
    keys = np.array([image.image_id * 7 + image.epoch * 1009 for image in images], np.int64)
    offsets = np.arange(shape[0] * shape[1]).reshape(shape)
    return (keys[:, None, None] + offsets).astype(dtype)


def stream(*epochs: Sequence[int]) -> list[Image]:
    """Return the images of a run in order, from one sequence of increasing ids per epoch."""
    return [Image(number, image_id) for number, ids in enumerate(epochs) for image_id in ids]


def divide(images: Sequence[Image], n_writers: int, division: str) -> list[list[Image]]:
    """Return the images of each writer."""
    files: list[list[Image]] = [[] for _ in range(n_writers)]
    for index, image in enumerate(images):
        files[(image.image_id if division == "image_id" else index) % n_writers].append(image)
    return files


@dataclass(frozen=True)
class RunSpec:
    """The layout of the files of a run."""

    n_writers: int = 2
    division: str = "image_id"
    by_stddaq: bool = True
    prefix: str = "file"
    detector: str = "det"
    shape: tuple[int, int] = (2, 3)
    dtype: str = "<u2"
    run_id: str = "run-1"
    filter: Any = None
    metadata_file: bool = False

    def raw_paths(self, directory: Path) -> list[Path]:
        return [directory / f"{self.prefix}{writer}.h5" for writer in range(self.n_writers)]


def write_run(directory: Path, images: Sequence[Image], spec: RunSpec | None = None) -> list[Path]:
    """Write the raw files (and metadata file) of a run into `directory`. Return the raw files' paths."""
    spec = spec or RunSpec()
    paths = spec.raw_paths(directory)
    for writer, (path, mine) in enumerate(
        zip(paths, divide(images, spec.n_writers, spec.division), strict=True)
    ):
        write_raw_file(path, mine, spec, writer)
    if spec.metadata_file:
        write_metadata_file(directory / f"{spec.prefix}Meta.h5", images, spec)
    return paths


def write_raw_file(path: Path, images: Sequence[Image], spec: RunSpec, writer: int = 0) -> None:
    """Write one raw file; those of C++ writers have no attributes."""
    rows = np.array([(image.image_id, 1) for image in images], ROW)
    with h5py.File(path, "w", libver=FILE_FORMAT if spec.by_stddaq else "earliest") as file:
        group = file.create_group(spec.detector)
        data = group.create_dataset(
            "data",
            shape=(len(images), *spec.shape),
            maxshape=(None, *spec.shape),
            chunks=(1 if spec.filter else 4, *spec.shape),
            dtype=spec.dtype,
            **(spec.filter or {}),
        )
        if images:
            data[...] = pixels(images, spec.shape, spec.dtype)
        group.create_dataset("metadata", data=rows, maxshape=(None,), chunks=(64,))
        if spec.by_stddaq:
            group.attrs.update(attributes(spec), writer=writer)
            group.create_dataset(
                "epochs", data=np.array(epochs(images), EPOCH_ROW), maxshape=(None,), chunks=(64,)
            )


def write_metadata_file(path: Path, images: Sequence[Image], spec: RunSpec) -> None:
    """Write the GigaFRoST metadata file: one row per image in the order of arrival."""
    rows = np.zeros(len(images), GF_ROW)
    rows["image_id"] = [image.image_id for image in images]
    rows["frame_timestamp"] = np.arange(len(images)) + 1000
    with h5py.File(path, "w", libver=FILE_FORMAT) as file:
        group = file.create_group(spec.detector)
        group.create_dataset("metadata", data=rows, maxshape=(None,), chunks=(64,))
        if spec.by_stddaq:
            group.attrs.update(attributes(spec))


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return the dataset `name` of an open file."""
    found = file[name]
    assert isinstance(found, h5py.Dataset)
    return found


def bitshuffle() -> Any:
    """Return the arguments of `create_dataset` for bitshuffle with lz4."""
    return dict(hdf5plugin.Bitshuffle(cname="lz4"))


def blosc2() -> Any:
    """Return the arguments of `create_dataset` for blosc2."""
    return dict(hdf5plugin.Blosc2())


def compressed_image(stored: bytes, suffix: str) -> bytes:
    """What the compressor made, from the chunk in a raw file."""
    if suffix != "blosc2":
        return bytes(stored)
    frame: Any = library.schunk_from_cframe(bytes(stored))
    return bytes(frame.get_chunk(0))


def attributes(spec: RunSpec) -> dict[str, object]:
    """Return the attributes that stddaq's writers give their files."""
    return {
        "number_of_writers": spec.n_writers,
        "image_division": spec.division,
        "run_id": spec.run_id,
        "source": "image",
        "stddaq_version": "0.1.0",
    }


def epochs(images: Sequence[Image]) -> list[tuple[int, int]]:
    """Return (first row, epoch) of each restart in a file, as stddaq's writers store them."""
    found: list[tuple[int, int]] = []
    current = 0
    for row, image in enumerate(images):
        if image.epoch != current:
            current = image.epoch
            found.append((row, current))
    return found
