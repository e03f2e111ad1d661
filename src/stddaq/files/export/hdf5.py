"""A run as one HDF5 file with the tree of a master file. Compressed images are copied as they are stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers the filters of compressed images)
import numpy as np
from h5py import h5d, h5p, h5s, h5t, h5z  # pyright: ignore[reportAttributeAccessIssue]

import stddaq
from stddaq.files.compressed_chunks import FILTERS
from stddaq.files.export.source import Source, chunk_images
from stddaq.files.file_format import FILE_FORMAT
from stddaq.files.nexus import ACCOUNT, DATA, IMAGE_METADATA, lost_pixel, nexus_group
from stddaq.files.opening import open_file
from stddaq.files.raw_file import METADATA_DTYPE
from stddaq.files.reading import Run
from stddaq.text import shown
from stddaq.wire.std_daq import image_metadata_pb2 as pb

BITSHUFFLE, _ = FILTERS[pb.h5bitshuffle_lz4]
# Of images that are not compressed.
CHUNK_BYTES = 2**20


class ImageWriter:
    """See `Writer`."""

    def __init__(self, path: Path, source: Source, n_done: int) -> None:
        self._source = source
        self._open_files = ExitStack()
        try:
            self._stored = open_compressed(source.run, self._open_files)
            self.step = 1 if self._stored else images_of_chunk(source)
            mode = "r+" if n_done else "w"
            file = h5py.File(path, mode, libver=FILE_FORMAT, locking=False)
            self._file = self._open_files.enter_context(file)
            if not n_done:
                self._lay_out()
            self._images = self._dataset(DATA)
        except BaseException:
            self._open_files.close()
            raise

    def write(self, first: int, end: int) -> None:
        if not self._stored:
            self._images[first:end] = self._source.images(first, end)
        else:
            self._copy(first, end)
        self._file.flush()

    def close(self) -> None:
        self._open_files.close()

    def _copy(self, first: int, end: int) -> None:
        """Copy compressed images."""
        files, rows = self._source.run.stored_at(np.arange(first, end))
        for image, file, row in zip(range(first, end), files.tolist(), rows.tolist(), strict=True):
            if self._source.lost[image]:
                self._images[image] = lost_pixel(self._images.dtype)
                continue
            mask, chunk = self._stored[file].id.read_direct_chunk((row, 0, 0))
            self._images.id.write_direct_chunk((image, 0, 0), chunk, mask)

    def _lay_out(self) -> None:
        run, file = self._source.run, self._file
        account = run.account or {}
        file.attrs.update({"NX_class": "NXroot", "default": "entry", "creator": "stddaq"})
        entry = nexus_group(file, "entry", "NXentry", default="data")
        entry["title"] = f"{run.detector_name} {run.run_id}" if run.run_id else run.detector_name
        known = {
            "entry_identifier": run.run_id,
            "start_time": account.get("started_at"),
            "end_time": account.get("finished_at"),
        }
        for name, value in known.items():
            if isinstance(value, str):
                entry[name] = value
        data = nexus_group(entry, "data", "NXdata", signal="data", interpretation="image", image_id_indices=0)
        data.attrs["axes"] = ["image_id", ".", "."]
        if run.run_id:
            data.attrs["run_id"] = run.run_id
        data["image_id"] = run.image_ids
        rows = np.empty(len(run), METADATA_DTYPE)
        rows["image_id"], rows["status"] = run.image_ids, run.status
        data["metadata"] = rows
        images = self._create_images(data)
        images.attrs.update({"interpretation": "image", "long_name": run.detector_name, "target": DATA})
        detector = nexus_group(nexus_group(entry, "instrument", "NXinstrument"), "detector", "NXdetector")
        detector["local_name"] = run.detector_name
        detector["data"] = images
        fields = run.detector_metadata
        if fields is not None:
            detector["metadata"] = fields
        group = nexus_group(entry, "stddaq", "NXcollection")
        group["version"] = stddaq.__version__
        if run.account is not None:
            group[ACCOUNT] = json.dumps(run.account)
        file["interleaved_data"], file["interleaved_metadata"] = file[DATA], file[IMAGE_METADATA]

    def _create_images(self, group: h5py.Group) -> h5py.Dataset:
        run = self._source.run
        creation = h5p.create(h5p.DATASET_CREATE)
        creation.set_chunk((self.step, *run.image_shape))
        for code, options in _filters(self._stored[0]) if self._stored else ():
            creation.set_filter(code, h5z.FLAG_MANDATORY, options)
        creation.set_fill_value(lost_pixel(run.dtype))
        space = h5s.create_simple(run.images.shape)
        return h5py.Dataset(
            h5d.create(group.id, b"data", h5t.py_create(run.dtype, logical=True), space, creation)
        )

    def _dataset(self, name: str) -> h5py.Dataset:
        found = self._file[name]
        assert isinstance(found, h5py.Dataset), shown(name)
        return found


def images_of_chunk(source: Source) -> int:
    """Return how many images, which are not compressed, make a chunk. The last one takes as much space."""
    return min(chunk_images(source.image_bytes, CHUNK_BYTES), max(1, len(source)))


def open_compressed(run: Run, open_files: ExitStack) -> list[h5py.Dataset]:
    """Return the images of each raw file, if all are compressed in the same way, one by one; else none."""
    found: list[h5py.Dataset] = []
    for raw in run.raw_files:
        data = open_files.enter_context(open_file(raw.path)).file[f"{raw.rows.group}/data"]
        assert isinstance(data, h5py.Dataset)
        if data.chunks != (1, *run.image_shape) or not _filters(data):
            return []
        found.append(data)
    return found if all(_filters(data) == _filters(found[0]) for data in found) else []


def _filters(data: h5py.Dataset) -> list[tuple[int, tuple[int, ...]]]:
    """Return code and options of each filter."""
    creation = data.id.get_create_plist()
    found = [creation.get_filter(i) for i in range(creation.get_nfilters())]
    # Bitshuffle itself puts three values in front of its options.
    return [
        (code, options[3:] if code == BITSHUFFLE and len(options) > 3 else options)
        for code, _flags, options, _name in found
    ]


@contextmanager
def reader(path: Path) -> Iterator[Callable[[int, int], np.ndarray]]:
    with h5py.File(path, locking=False) as file:
        images = file[DATA]
        assert isinstance(images, h5py.Dataset)
        yield lambda first, end: images[first:end]
