"""The master file `<prefix>Master.h5`: all images of a run as one array, in image order, nothing copied.

NeXus: `/entry/data` (NXdata) holds the virtual dataset `data` (n, H, W) over the raw files, its first axis
`image_id`, and the rows `metadata` beside it; `/entry/instrument/detector` the detector's own metadata if
there is a metadata file; `/entry/stddaq` the account of the run. The names of the raw files are relative, so
that a directory can be moved. Sources are checked first and read back through the new file, because HDF5
shows fill values for what it does not find.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stddaq.errors import FileLayoutError, OutputExistsError
from stddaq.files.file_format import FILE_FORMAT
from stddaq.files.nexus import (
    APPLICATION_METADATA,
    DATA,
    IMAGE_METADATA,
    lost_pixel,
    nexus_group,
    set_attributes,
)
from stddaq.files.nexus_account import write_account
from stddaq.files.opening import relative_name
from stddaq.files.run import RecordedRun, read_run
from stddaq.files.sources import mark_with_run_ids
from stddaq.files.virtual import (
    MappedRows,
    create_virtual_dataset,
    mapped_by_image,
    n_mappings,
    stretches,
)
from stddaq.new_file import replacing
from stddaq.open_directory import OutsideRootsError
from stddaq.text import mismatch


@dataclass(frozen=True, slots=True)
class MasterFile:
    """The content of a master file.

    Attributes:
        image_shape: (height, width) in pixels.
        n_mappings: of the images: one for each of some thousand; of more, grows with the gaps.
        n_gaps: ranges of image ids that are skipped.
        n_epochs: stretches of increasing ids, of which restarts and late ids make several.
        image_division: "image_id", "arrival", or None when the raw files do not say.
    """

    path: Path
    detector_name: str
    n_images: int
    image_shape: tuple[int, int]
    dtype: np.dtype
    n_mappings: int
    n_gaps: int
    n_epochs: int
    image_division: str | None
    raw_files: tuple[Path, ...]
    metadata_file: Path | None


def create_master_file(
    path: Path,
    raw_files: Sequence[Path],
    *,
    metadata_file: Path | None = None,
    account: str | None = None,
    nexus: str | None = None,
    overwrite: bool = False,
    roots: Sequence[Path] = (),
) -> MasterFile:
    """Create the master file `path` over all raw files of a run (any order), which must be closed.

    `account` is the JSON object of the driver, `nexus` the one of `Metadata.as_json`. The file appears
    complete or not at all, below one of `roots` if there are any. Raises `FileLayoutError` that names the raw
    or metadata file at fault, `OutputExistsError`, `OutsideRootsError`.
    """
    _check_new(path, overwrite)
    run = read_run(raw_files, metadata_file)
    return write_master_file(path, run, account=account, nexus=nexus, overwrite=overwrite, roots=roots)


def write_master_file(
    path: Path,
    run: RecordedRun,
    *,
    account: str | None = None,
    nexus: str | None = None,
    overwrite: bool = False,
    roots: Sequence[Path] = (),
) -> MasterFile:
    """Create the master file `path` of a run like `create_master_file`."""
    _check_new(path, overwrite)
    if any(file.path.resolve() == path.resolve() for file in run.raw_files):
        raise OutputExistsError(f"{path}: is a raw file of the run; the master file needs another name")
    try:
        with replacing(path, overwrite=overwrite, roots=roots) as temporary:
            summary = _write(temporary.opened, path, run, account, nexus)
            _verify(temporary.opened, run)
    except FileExistsError as error:
        raise OutputExistsError(str(error)) from error
    except OutsideRootsError:
        raise
    except (OSError, RuntimeError) as error:
        raise FileLayoutError(f"{path}: cannot be written: {_reason(error)}") from error
    return summary


def _check_new(path: Path, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:
        raise OutputExistsError(
            mismatch(str(path), "a new file", "an existing one", "allow overwriting to replace it")
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _write(
    temporary: Path, path: Path, run: RecordedRun, account: str | None, nexus: str | None
) -> MasterFile:
    with h5py.File(temporary, "w", libver=FILE_FORMAT, locking=False) as file:
        set_attributes(file, NX_class="NXroot", default="entry", creator="stddaq")
        entry = nexus_group(file, "entry", "NXentry", default="data")
        mark_with_run_ids(entry.id, [run.run_id])
        _write_entry_times(entry, run, account)
        n_image_mappings = _write_data(entry, run, path.parent)
        _write_detector(entry, run, path.parent)
        write_account(entry, run, path.parent, account)
        if nexus:
            file[APPLICATION_METADATA] = nexus
        file["interleaved_data"] = file[DATA]
        file["interleaved_metadata"] = file[IMAGE_METADATA]
    return MasterFile(
        path=path,
        detector_name=run.detector_name,
        n_images=run.order.n_images,
        image_shape=run.image_shape,
        dtype=run.dtype,
        n_mappings=n_image_mappings,
        n_gaps=run.order.n_gaps,
        n_epochs=run.order.n_epochs,
        image_division=run.order.image_division,
        raw_files=tuple(raw.path for raw in run.raw_files),
        metadata_file=run.metadata_file.path if run.metadata_file else None,
    )


def _write_entry_times(entry: h5py.Group, run: RecordedRun, account: str | None) -> None:
    said = json.loads(account) if account else {}
    run_id = said.get("run_id") or run.run_id
    entry["title"] = f"{run.detector_name} {run_id}" if run_id else run.detector_name
    if run_id:
        entry["entry_identifier"] = run_id
    for name, key in (("start_time", "started_at"), ("end_time", "finished_at")):
        if said.get(key):
            entry[name] = said[key]


def _write_data(entry: h5py.Group, run: RecordedRun, directory: Path) -> int:
    """Write images, their ids and rows. Return the number of mappings of the images."""
    data = nexus_group(entry, "data", "NXdata", signal="data", interpretation="image", image_id_indices=0)
    set_attributes(data, axes=["image_id", ".", "."])
    sources = [
        (raw, relative_name(raw.path, directory), stretches(positions))
        for raw, positions in zip(run.raw_files, run.order.positions, strict=True)
    ]
    n_images = run.order.n_images
    images_mapped = mapped_by_image(
        [MappedRows(name, f"/{raw.detector_name}/data", raw.n_stored, found) for raw, name, found in sources]
    )
    images = h5py.Dataset(
        create_virtual_dataset(
            data.id,
            "data",
            (n_images, *run.image_shape),
            run.dtype,
            images_mapped,
            fill=lost_pixel(run.dtype),
        )
    )
    set_attributes(images, interpretation="image", long_name=run.detector_name, target=DATA)
    data["image_id"] = run.order.image_ids
    # HDF5 shows status 0 (undefined) for a raw file that is lost later.
    rows_mapped = [
        MappedRows(name, f"/{raw.detector_name}/metadata", raw.n_rows, found) for raw, name, found in sources
    ]
    metadata = h5py.Dataset(
        create_virtual_dataset(data.id, "metadata", (n_images,), run.raw_files[0].row_dtype, rows_mapped)
    )
    set_attributes(metadata, target=IMAGE_METADATA)
    return sum(n_mappings(mapped) for mapped in images_mapped)


def _write_detector(entry: h5py.Group, run: RecordedRun, directory: Path) -> None:
    instrument = nexus_group(entry, "instrument", "NXinstrument")
    detector = nexus_group(instrument, "detector", "NXdetector")
    detector["local_name"] = run.detector_name
    detector["data"] = entry["data/data"]
    if run.metadata_file is None or run.metadata_rows is None:
        return
    table = run.metadata_file
    source = MappedRows(
        relative_name(table.path, directory),
        f"/{table.detector_name}/metadata",
        table.n_rows,
        stretches(run.metadata_rows),
        rows_are_values=True,
    )
    create_virtual_dataset(detector.id, "metadata", (run.order.n_images,), table.row_dtype, [source])


def _verify(temporary: Path, run: RecordedRun) -> None:
    """Read the first and last row of each raw file through the new file, which maps rows like images."""
    with h5py.File(temporary, "r", locking=False) as file:
        rows = file[IMAGE_METADATA]
        assert isinstance(rows, h5py.Dataset)
        for raw, positions in zip(run.raw_files, run.order.positions, strict=True):
            for position in (positions[0], positions[-1]) if len(positions) else ():
                found, expected = rows[position]["image_id"], run.order.image_ids[position]
                if found != expected:
                    raise FileLayoutError(
                        f"{raw.path}: cannot be read through the master file: image {expected} is shown as "
                        f"{found}; HDF5_VDS_PREFIX is {os.environ.get('HDF5_VDS_PREFIX', 'not set')}"
                    )
