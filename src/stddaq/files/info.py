"""Read what a file holds, for `stddaq info` and the REST API."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.file_info import DatasetInfo, FileInfo, IdsInfo, StatusInfo, shape_text
from stddaq.files.nexus import (
    APPLICATION_METADATA,
    DATA,
    DETECTOR,
    ENTRY,
    EPOCHS,
    IMAGE_ID,
    IMAGE_METADATA,
    JOINED_IDS,
    TOMOGRAM,
    TOMOGRAM_IMAGES,
    account_of,
)
from stddaq.files.opened_run import sources_of_master
from stddaq.files.opening import Opened, examine
from stddaq.files.raw_rows import ImageRows, metadata_file_of, metadata_group, raw_file_of, raw_group
from stddaq.files.repair import being_written
from stddaq.files.sources import check_sources
from stddaq.files.virtual import mappings_of
from stddaq.text import command_line, mismatch

FILTER_NAMES = {1: "gzip", 2: "shuffle", 32000: "lzf", 32004: "lz4", 32008: "bitshuffle", 32026: "blosc2"}
GOOD, OVERWRITTEN = 1, 3
# A writer touches its file twice a second; one that was killed has done so lately, too.
TOUCHED_LATELY_S = 5.0


def describe(path: Path) -> FileInfo:
    """Describe any HDF5 file, even one that is being written or whose writer was killed.

    Raises `FileLayoutError` when it is missing, not HDF5 or damaged.
    """
    with examine(path, allow_unclosed=True) as opened:
        file = opened.file
        if raw_group(file) is not None:
            return _raw(path, opened)
        if metadata_group(file) is not None:
            return _metadata(path, opened)
        found = [file.get(name) for name in (DATA, IMAGE_ID, IMAGE_METADATA)]
        parts = [dataset for dataset in found if isinstance(dataset, h5py.Dataset)]
        if len(parts) == len(found):
            return _master(path, opened, *parts)
        if APPLICATION_METADATA in file and isinstance(images := file.get(DATA), h5py.Dataset):
            return _application(path, opened, images, "NXmx", ENTRY)
        if isinstance(images := file.get(TOMOGRAM_IMAGES), h5py.Dataset):
            return _application(path, opened, images, "NXtomo", TOMOGRAM)
        datasets = tuple(info for info, _ in describe_datasets(file))
        if isinstance(ids := file.get(JOINED_IDS), h5py.Dataset):
            return _joined(path, opened, ids, datasets)
        return FileInfo(path, "other", path.stat().st_size, datasets, unclosed=why_unclosed(path, opened))


def _raw(path: Path, opened: Opened) -> FileInfo:
    raw = raw_file_of(path, opened)
    group = raw_group(opened.file)
    assert group is not None
    return FileInfo(
        path,
        "raw",
        path.stat().st_size,
        tuple(_dataset(dataset) for dataset in group.values() if isinstance(dataset, h5py.Dataset)),
        detector_name=raw.detector_name,
        n_images=raw.n_rows,
        image_shape=raw.image_shape,
        dtype=str(raw.dtype),
        pixel_bytes=raw.n_rows * raw.image_shape[0] * raw.image_shape[1] * raw.dtype.itemsize,
        ids=ids_info(raw.image_ids, raw.epochs, _step_of(raw)),
        status=status_info(raw.image_ids, raw.status),
        origin=_origin(raw),
        unclosed=why_unclosed(path, opened),
    )


def _metadata(path: Path, opened: Opened) -> FileInfo:
    rows = metadata_file_of(path, opened)
    group = metadata_group(opened.file)
    assert group is not None
    return FileInfo(
        path,
        "metadata",
        path.stat().st_size,
        tuple(_dataset(dataset) for dataset in group.values() if isinstance(dataset, h5py.Dataset)),
        detector_name=rows.detector_name,
        n_images=rows.n_rows,
        ids=ids_info(rows.image_ids, rows.epochs, 1),
        origin=_origin(rows),
        unclosed=why_unclosed(path, opened),
    )


def _master(
    path: Path, opened: Opened, images: h5py.Dataset, image_ids: h5py.Dataset, rows: h5py.Dataset
) -> FileInfo:
    file = opened.file
    if images.ndim != 3 or image_ids.shape != images.shape[:1] or image_ids.dtype.kind not in "ui":
        raise FileLayoutError(
            f"{path}: is not a master file: found images {shape_text(images.shape)} and image "
            f"ids {shape_text(image_ids.shape)} of {image_ids.dtype}, expected (n, height, width) and "
            "integers (n)"
        )
    ids = image_ids[()].astype(np.uint64)
    epochs = file.get(EPOCHS)
    epoch_of = epochs[()] if isinstance(epochs, h5py.Dataset) else np.zeros(len(ids), np.uint64)
    sources = sources_of_master(path, images)
    missing = tuple(source for source in sources if not source.exists())
    differs = None if missing else _difference(path, images)
    return FileInfo(
        path,
        "master" if images.is_virtual else "exported",
        path.stat().st_size,
        tuple(_dataset(dataset) for dataset in (images, image_ids, rows)),
        detector_name=_string(file, f"{DETECTOR}/local_name"),
        n_images=images.shape[0],
        image_shape=(images.shape[1], images.shape[2]),
        dtype=str(images.dtype),
        ids=ids_info(ids, epoch_of, 1),
        # The rows are fill values if a source is missing, and those of other images if it differs.
        status=None if missing or differs else status_info(ids, rows.fields("status")[()]),
        unclosed=why_unclosed(path, opened),
        sources=tuple(sources),
        missing=missing,
        differs=differs,
        account=account_of(file),
    )


def _joined(
    path: Path, opened: Opened, image_ids: h5py.Dataset, datasets: tuple[DatasetInfo, ...]
) -> FileInfo:
    ids = image_ids[()].astype(np.uint64)
    return FileInfo(
        path,
        "joined master",
        path.stat().st_size,
        datasets,
        n_images=len(ids),
        ids=ids_info(ids, np.zeros_like(ids), 1),
        unclosed=why_unclosed(path, opened),
        account=account_of(opened.file),
    )


def _application(
    path: Path, opened: Opened, images: h5py.Dataset, definition: Literal["NXmx", "NXtomo"], entry: str
) -> FileInfo:
    file = opened.file
    if images.ndim != 3 or not images.is_virtual:
        expected = "a virtual dataset (n, height, width)"
        raise FileLayoutError(
            mismatch(f"{path}: {images.name}", expected, f"shape {shape_text(images.shape)}")
        )
    sources = sources_of_master(path, images)
    missing = tuple(source for source in sources if not source.exists())
    n_pixels = sum(mapping.places.get_select_npoints() for mapping in mappings_of(images))
    return FileInfo(
        path,
        definition if f"{entry}/definition" in file else "application",
        path.stat().st_size,
        (_dataset(images),),
        detector_name=_string(file, f"{entry}/instrument/detector/local_name"),
        n_images=n_pixels // max(1, images.shape[1] * images.shape[2]),
        image_shape=(images.shape[1], images.shape[2]),
        dtype=str(images.dtype),
        unclosed=why_unclosed(path, opened),
        sources=tuple(sources),
        missing=missing,
        differs=None if missing else _difference(path, images),
        account=account_of(file),
    )


def _difference(path: Path, images: h5py.Dataset) -> str | None:
    try:
        check_sources(path, images)
    except FileLayoutError as error:
        return str(error)
    return None


def ids_info(image_ids: np.ndarray, epochs: np.ndarray, step: int) -> IdsInfo | None:
    """Summarise ids (n,) that grow by `step` within each of `epochs` (n,); None for no images."""
    if not len(image_ids):
        return None
    same_epoch = epochs[1:] == epochs[:-1]
    # Ids grow within an epoch, so a difference of two uint64 cannot wrap around.
    distance = image_ids[1:] - image_ids[:-1]
    before = np.flatnonzero(same_epoch & (distance > step))
    n_skipped = sum(((distance[before] - 1) // step).tolist())
    gaps = ((int(image_ids[i]) + step, int(image_ids[i + 1]) - step) for i in before)
    return IdsInfo(
        first=int(image_ids[0]),
        last=int(image_ids[-1]),
        step=step,
        gaps=tuple((first, max(first, last)) for first, last in gaps),
        n_skipped=n_skipped,
        n_epochs=int(np.count_nonzero(~same_epoch)) + 1,
    )


def status_info(image_ids: np.ndarray, status: np.ndarray) -> StatusInfo:
    """Sort ids (n,) by status (n,)."""
    overwritten, good = status == OVERWRITTEN, status == GOOD
    return StatusInfo(
        int(np.count_nonzero(good)),
        tuple(image_ids[~good & ~overwritten].tolist()),
        tuple(image_ids[overwritten].tolist()),
    )


def _step_of(raw: ImageRows) -> int:
    if raw.origin.image_division == "image_id" and raw.origin.number_of_writers:
        return raw.origin.number_of_writers
    distances = np.diff(raw.image_ids.astype(np.int64))
    grown = distances[distances > 0]
    # C++ files have no such attribute; the usual distance gives the number.
    return int(np.median(grown)) if len(grown) else 1


def _origin(rows: ImageRows) -> dict[str, str | int]:
    origin = rows.origin
    known = {
        "run_id": origin.run_id,
        "writer": origin.writer,
        "number_of_writers": origin.number_of_writers,
        "image_division": origin.image_division,
        "source": origin.source,
    }
    return {name: value for name, value in known.items() if value is not None}


def why_unclosed(path: Path, opened: Opened) -> str | None:
    """Return what is known of the writer of an unclosed file; None for a closed one."""
    if not opened.unclosed:
        return None
    if writing := being_written(path):
        return writing
    age = time.time() - path.stat().st_mtime
    if abs(age) < TOUCHED_LATELY_S:
        changed = f"changed {max(age, 0.0):.0f} s ago"
        return f"{changed}: its writer cannot be seen from here, or was just killed"
    command = command_line("stddaq", "repair", path)
    return (
        "no process that can be seen from here writes it: its writer was killed, or is stopped in another "
        f"container or on another host; {command} makes it readable"
    )


def _string(file: h5py.File, name: str) -> str | None:
    dataset = file.get(name)
    return str(dataset.asstr()[()]) if isinstance(dataset, h5py.Dataset) and dataset.shape == () else None


def describe_datasets(file: h5py.File) -> list[tuple[DatasetInfo, h5py.Dataset]]:
    """Return all datasets of the file itself; links to other files are not followed."""
    found: list[tuple[DatasetInfo, h5py.Dataset]] = []

    def visit(_name: str, member: h5py.HLObject) -> None:
        if isinstance(member, h5py.Dataset):
            found.append((_dataset(member), member))

    file.visititems(visit)
    return found


def _dataset(dataset: h5py.Dataset) -> DatasetInfo:
    creation = dataset.id.get_create_plist()
    filters = (creation.get_filter(i)[0] for i in range(creation.get_nfilters()))
    return DatasetInfo(
        name=dataset.name or "",
        shape=dataset.shape or (),
        dtype=_type(dataset.dtype),
        chunks=dataset.chunks,
        filters=tuple(FILTER_NAMES.get(number, f"filter {number}") for number in filters),
        virtual=dataset.is_virtual,
    )


def _type(dtype: np.dtype) -> str:
    if dtype.names is None:
        return str(dtype)
    return "{" + ", ".join(f"{name} {dtype[name]}" for name in dtype.names) + "}"
