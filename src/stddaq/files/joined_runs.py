"""The master file over the parts of a run that several drivers recorded, and how it is read.

NeXus: `/entry/part1` (NXdata) and so on hold the virtual datasets `data` (n, H, W) and `metadata` (n,) of a
part over its raw files, which are not copied. Row i of each is the image with id i of `image_id`: the images
that every part has recorded, in the order of their ids. What some parts lack is in the master files of the
others, and `/entry/stddaq/account` lists it.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import stddaq
from stddaq.errors import FileLayoutError, OutputExistsError, StdDaqError
from stddaq.files.file_format import FILE_FORMAT
from stddaq.files.id_ranges import id_ranges
from stddaq.files.names import master_file_name, raw_file_name
from stddaq.files.nexus import ACCOUNT, ENTRY, JOINED_IDS, lost_pixel, nexus_group, set_attributes
from stddaq.files.opening import examine, relative_name
from stddaq.files.raw_rows import RawRows, read_raw_file
from stddaq.files.run import RecordedRun, read_run
from stddaq.files.sources import OtherRunError, check_run_id, mark_with_run_ids, run_ids_of
from stddaq.files.virtual import MappedRows, Stretch, create_virtual_dataset, mapped_by_image, stretches_of
from stddaq.joined_account import IdSet, Part, joined_account
from stddaq.new_file import replacing
from stddaq.text import mismatch
from stddaq.wire.run_defaults import DEFAULT_FILE_PREFIX
from stddaq.wire.std_daq import image_metadata_pb2 as pb

_ABOUT = "/entry/stddaq"
# Of each part, in a group below.
_RAW_FILES = "raw_files"


def finish_joined_run(
    account: Mapping[str, Any], directory: Path, prefix: str, *, overwrite: bool = False
) -> dict[str, Any]:
    """Create `<prefix>Master.h5` over the parts of a run, and return the account with it.

    `account` is that of `stddaq.client.DriverGroup`; `directory` has the files of all parts, as this process
    sees it. Ids that the driver of a part could not report come from its files. The outcome is an error when
    the master file could not be created.
    """
    said = [Part.of_json(part) for part in account["parts"]]
    files = [[directory / Path(name).name for name in part.raw_files] for part in said]
    parts = [
        part if part.is_exact else _with_ids_of(part, raw) for part, raw in zip(said, files, strict=True)
    ]
    times = [datetime.fromisoformat(account[key]) for key in ("started_at", "finished_at")]
    result = joined_account(account["run_id"], parts, account, times[0], times[1])
    path = directory / master_file_name(prefix)
    try:
        runs = [_run_of(part, raw) for part, raw in zip(parts, files, strict=True)]
        result["files"]["master"] = str(path)
        create_joined_master(path, runs, account=json.dumps(result), overwrite=overwrite)
    except (OSError, StdDaqError) as error:
        result["files"]["master"] = None
        reason = f"the master file over the parts was not created: {error}"
        result["outcome"] = "error"
        result["reason"] = f"{result['reason']}; {reason}" if "reason" in result else reason
    return result


def _with_ids_of(part: Part, raw_files: Sequence[Path]) -> Part:
    """Return the part with the images that its raw files hold, as far as they can be read here."""
    rows: list[RawRows] = []
    is_exact = bool(raw_files)
    for path in raw_files:
        try:
            found = read_raw_file(path, allow_unclosed=True)
        except FileLayoutError:
            is_exact = False
            continue
        if found.origin.run_id == part.run_id:
            rows.append(found)
        else:
            is_exact = False
    if not rows:
        return part
    ids = np.concatenate([found.image_ids for found in rows])
    status = np.concatenate([found.status for found in rows])
    if part.account is not None and len(np.unique(ids)) <= len(part.recorded):
        return part  # The account knows more: of images that failed, a file has nothing.
    bad = {
        "damaged": _id_set(ids[status == pb.missing_packets]),
        "overwritten": _id_set(ids[(status != pb.good_image) & (status != pb.missing_packets)]),
    }
    if part.account is not None:
        bad["failed"] = part.bad["failed"]
    n_unlisted = part.account["n_failed"] - len(part.bad["failed"]) if part.account is not None else 0
    recorded = _id_set(ids)
    is_exact = is_exact and len(recorded) == len(ids)
    return replace(part, recorded=recorded, bad=bad, n_unlisted=n_unlisted, is_exact=is_exact)


def _id_set(ids: np.ndarray) -> IdSet:
    return IdSet.of(id_ranges(ids).ranges)


def _run_of(part: Part, raw_files: Sequence[Path]) -> RecordedRun:
    if not raw_files:
        raise FileLayoutError(f"part {part.number} ({part.url}): its raw files are not known")
    run = read_run(raw_files)
    if run.run_id != part.run_id:
        raise OtherRunError(mismatch(f"{raw_files[0]}: run_id", str(part.run_id), str(run.run_id)))
    return run


def create_joined_master(
    path: Path, parts: Sequence[RecordedRun], *, account: str | None = None, overwrite: bool = False
) -> int:
    """Create the master file `path` over the `parts` of a run. Return the number of its images.

    `account` is a JSON object. The file appears complete or not at all. Raises `FileLayoutError` when an id
    occurs twice in a part, so that images cannot be matched, `OutputExistsError`.
    """
    for part in parts:
        if len(np.unique(part.order.image_ids)) < part.order.n_images:
            raise FileLayoutError(
                mismatch(f"{part.raw_files[0].path}: image ids of the part", "each once", "some twice")
            )
    ids = parts[0].order.image_ids
    for part in parts[1:]:
        ids = np.intersect1d(ids, part.order.image_ids)
    ids = np.sort(ids)
    try:
        with replacing(path, overwrite=overwrite) as temporary:
            _write(temporary.opened, path.parent, parts, ids, account)
            verify_joined_master(temporary.opened, parts, ids)
    except FileExistsError as error:
        raise OutputExistsError(str(error)) from error
    return len(ids)


def _write(
    temporary: Path, directory: Path, parts: Sequence[RecordedRun], ids: np.ndarray, account: str | None
) -> None:
    with h5py.File(temporary, "w", libver=FILE_FORMAT, locking=False) as file:
        set_attributes(file, NX_class="NXroot", default="entry", creator="stddaq")
        entry = nexus_group(file, "entry", "NXentry", default="part1")
        mark_with_run_ids(entry.id, [part.run_id for part in parts])
        _write_title(entry, parts, account)
        entry["image_id"] = ids
        about = nexus_group(entry, "stddaq", "NXcollection")
        about["version"] = stddaq.__version__
        for number, part in enumerate(parts, 1):
            _write_part(entry, f"part{number}", part, ids, directory)
            names = [relative_name(raw.path, directory) for raw in part.raw_files]
            nexus_group(about, f"part{number}", "NXcollection")[_RAW_FILES] = names
        if account:
            file[ACCOUNT] = account


def _write_title(entry: h5py.Group, parts: Sequence[RecordedRun], account: str | None) -> None:
    said = json.loads(account) if account else {}
    entry["title"] = ", ".join(dict.fromkeys(part.detector_name for part in parts))
    for name, key in (
        ("entry_identifier", "run_id"),
        ("start_time", "started_at"),
        ("end_time", "finished_at"),
    ):
        if said.get(key):
            entry[name] = said[key]


def _write_part(entry: h5py.Group, name: str, part: RecordedRun, ids: np.ndarray, directory: Path) -> None:
    """Write the images `ids` of a part, and their rows."""
    data = nexus_group(entry, name, "NXdata", signal="data", interpretation="image", image_id_indices=0)
    set_attributes(data, axes=["image_id", ".", "."])
    data["image_id"] = entry["image_id"]
    images, rows = [], []
    for raw in part.raw_files:
        source, (found, is_ascending) = relative_name(raw.path, directory), _stretches(raw.image_ids, ids)
        for mapped, dataset, n in ((images, "data", raw.n_stored), (rows, "metadata", raw.n_rows)):
            name_of = f"/{raw.detector_name}/{dataset}"
            mapped.append(MappedRows(source, name_of, n, found, by_image=not is_ascending))
    dataset = h5py.Dataset(
        create_virtual_dataset(
            data.id,
            "data",
            (len(ids), *part.image_shape),
            part.dtype,
            mapped_by_image(images),
            fill=lost_pixel(part.dtype),
        )
    )
    set_attributes(dataset, interpretation="image", long_name=part.detector_name)
    create_virtual_dataset(data.id, "metadata", (len(ids),), part.raw_files[0].row_dtype, rows)


def _stretches(found: np.ndarray, ids: np.ndarray) -> tuple[list[Stretch], bool]:
    """Return which rows of a file with ids `found` (m,) are shown at which places among the `ids` (n,).

    Second, whether the places ascend. Where they do not, because images were late, a stretch ends: HDF5
    would pair the rows of a mapping with sorted places, so each stretch needs a mapping of its own then.
    """
    kept, places = np.isin(found, ids), np.searchsorted(ids, found)
    shown = np.flatnonzero(kept)
    falls = shown[np.flatnonzero(np.diff(places[shown]) < 0) + 1]
    edges = [0, *falls.tolist(), len(found)]
    cut = [
        stretch._replace(start=begin + stretch.start)
        for begin, end in itertools.pairwise(edges)
        for stretch in stretches_of(kept[begin:end], places[begin:end])
    ]
    return cut, not len(falls)


def verify_joined_master(path: Path, parts: Sequence[RecordedRun], ids: np.ndarray) -> None:
    """Read the ids of all images of all parts through the file. Raise `FileLayoutError` for others."""
    with h5py.File(path, "r", locking=False) as file:
        for number, part in enumerate(parts, 1):
            rows = file[f"{ENTRY}/part{number}/metadata"]
            assert isinstance(rows, h5py.Dataset)
            if len(ids) and not np.array_equal(rows.fields("image_id")[()], ids):
                raise FileLayoutError(
                    f"{part.raw_files[0].path}: cannot be read through the master file; HDF5_VDS_PREFIX is "
                    f"{os.environ.get('HDF5_VDS_PREFIX', 'not set')}"
                )


@dataclass(frozen=True, slots=True)
class JoinedPart:
    """One part of a master file over parts.

    Attributes:
        raw_files: of the part, by writer.
        image_ids: (n,) uint64, those of all parts.
        run_ids: of the runs of all parts.
    """

    path: Path
    raw_files: list[Path]
    image_ids: np.ndarray
    run_ids: frozenset[str]

    def rows_of(self, raw: RawRows, found: np.ndarray) -> np.ndarray:
        """Return the positions (n,) of the images among the ids `found` (m,) of the part's run.

        Raises `FileLayoutError` when the file `raw` is of another run, or images are not there.
        """
        check_run_id(raw.path, raw.origin.run_id, self.run_ids, self.path)
        order = np.argsort(found, kind="stable")
        positions = np.searchsorted(found, self.image_ids, sorter=order)
        rows = order[np.minimum(positions, len(order) - 1)] if len(order) else order
        if len(rows) < len(self.image_ids) or not np.array_equal(found[rows], self.image_ids):
            raise FileLayoutError(f"{self.path}: does not show the images that are in the raw files now")
        return rows


def joined_master(path: Path, prefix: str | None = None) -> Path | None:
    """Return the master file over parts at `path`, or of `prefix` (default "file") in a directory, if any.

    Other files of a run, also of a part, are those of one driver.
    """
    if path.is_dir() or prefix is not None:
        directory = path if path.is_dir() else path.parent
        prefix = DEFAULT_FILE_PREFIX if prefix is None else prefix
        if (directory / raw_file_name(prefix, 0)).exists():
            return None
        path = directory / master_file_name(prefix)
    return path if n_parts_of(path) else None


def n_parts_of(path: Path) -> int:
    """Return of how many parts the file `path` shows a joined run; 0 if it is no master file over parts."""
    try:
        with examine(path, allow_unclosed=True) as opened:
            about = opened.file.get(_ABOUT)
            if not isinstance(about, h5py.Group) or JOINED_IDS not in opened.file:
                return 0
            return sum(str(name).startswith("part") for name in about)
    except FileLayoutError:
        return 0


def part_of_master(path: Path, part: int) -> JoinedPart:
    """Return a part (1, 2, ...) of a master file over parts. Raises `FileLayoutError`."""
    n_parts = n_parts_of(path)
    if not 1 <= part <= n_parts:
        expected = f"a part from 1 to {n_parts}" if n_parts else "the master file of several drivers"
        raise FileLayoutError(mismatch(str(path), expected, f"part {part}" if n_parts else "none"))
    with examine(path) as opened:
        names, ids = opened.file[f"{_ABOUT}/part{part}/{_RAW_FILES}"], opened.file[JOINED_IDS]
        assert isinstance(names, h5py.Dataset)
        assert isinstance(ids, h5py.Dataset)
        raw_files = [path.parent / str(name) for name in np.ravel(names.asstr()[()])]
        return JoinedPart(path, raw_files, ids[()], run_ids_of(opened.file))
