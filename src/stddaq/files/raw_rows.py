"""The rows of a raw or metadata file: image ids, status, epochs and origin, but no pixels.

The master file, `stddaq info`, `stddaq repair` and the readers of runs start here. Files of the C++ services
have the same datasets, but no attributes that name the run and the writer.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5g, h5o  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.errors import FileLayoutError
from stddaq.files.opening import Opened, examine
from stddaq.files.row_tables import dataset_of, integer_attribute, read_rows, read_table, text_attribute
from stddaq.text import mismatch


@dataclass(frozen=True, slots=True)
class Origin:
    """The run and the writer of a file, from the attributes of its group; None where a C++ file has none."""

    writer: int | None = None
    number_of_writers: int | None = None
    image_division: str | None = None
    run_id: str | None = None
    source: str | None = None

    @classmethod
    def of(cls, group: h5py.HLObject) -> Origin:
        """Read the attributes of the group of a file."""
        return cls(
            writer=integer_attribute(group, "writer"),
            number_of_writers=integer_attribute(group, "number_of_writers"),
            image_division=text_attribute(group, "image_division"),
            run_id=text_attribute(group, "run_id") or None,
            source=text_attribute(group, "source"),
        )


@dataclass(frozen=True, slots=True)
class RawDatasets:
    """The datasets `data` and `metadata` of a raw file.

    Attributes:
        group: absolute name of their group.
        image_shape: (height, width) in pixels.
        dtype: type of a pixel.
        row_dtype: type of a row of `metadata`.
        run_id: None in a C++ file.
    """

    path: Path
    group: str
    image_shape: tuple[int, int]
    dtype: np.dtype
    row_dtype: np.dtype
    run_id: str | None


@dataclass(frozen=True, slots=True)
class ImageRows:
    """The rows of one file, in the order in which its writer received the images.

    Attributes:
        image_ids: (n,) uint64.
        epochs: (n,) uint64: how often an id of the run was not above the one that arrived before it, be it
            a restart or a late id; (epoch, id) orders a run.
        epochs_known: False when `epochs` was derived from ids that do not increase.
        id_step: from each id to the next one, if all steps are known to be the same and positive; else 0.
    """

    path: Path
    detector_name: str
    origin: Origin
    image_ids: np.ndarray
    epochs: np.ndarray
    epochs_known: bool
    row_dtype: np.dtype
    unclosed: bool
    id_step: int

    @property
    def n_rows(self) -> int:
        """Return the number of images of this file."""
        return len(self.image_ids)

    @property
    def has_epochs(self) -> bool:
        """Return whether any epoch is not 0."""
        # Most runs have one epoch, which is one value in memory.
        return bool(np.any(self.epochs if self.epochs.strides != (0,) else self.epochs[:1]))

    @property
    def n_steps_back(self) -> int:
        """Return how often the epoch changes from one row to the next."""
        return int(np.count_nonzero(self.epochs[1:] != self.epochs[:-1]))


@dataclass(frozen=True, slots=True)
class RawRows(ImageRows):
    """One raw file.

    Attributes:
        status: (n,) uint64 as in `ImageMetadata`, 1 is good.
        image_shape: (height, width) in pixels.
        dtype: type of a pixel.
        n_stored: images in `data`; more than `n_rows` when the writer was killed between the two.
        group_name: absolute name of the group of the datasets, if it is not that of the detector.
    """

    status: np.ndarray
    image_shape: tuple[int, int]
    dtype: np.dtype
    n_stored: int
    group_name: str = ""

    @property
    def group(self) -> str:
        """Return the absolute name of the group of `data` and `metadata`."""
        return self.group_name or f"/{self.detector_name}"

    @property
    def datasets(self) -> RawDatasets:
        """Return the datasets that these rows belong to."""
        return RawDatasets(
            self.path, self.group, self.image_shape, self.dtype, self.row_dtype, self.origin.run_id
        )


def read_raw_file(path: Path, allow_unclosed: bool = False, space: np.ndarray | None = None) -> RawRows:
    """Read everything but the pixels of the raw file at `path`, the ids to `space` (m,) uint64 if they fit.

    Raises `FileLayoutError` when it is missing, damaged, not a raw file, or holds fewer images than rows.
    """
    with examine(path, allow_unclosed) as opened:
        return raw_file_of(path, opened, space)


def read_metadata_file(path: Path, allow_unclosed: bool = False) -> ImageRows:
    """Read the rows of the detector's metadata file at `path`. Raises `FileLayoutError`."""
    with examine(path, allow_unclosed) as opened:
        return metadata_file_of(path, opened)


def raw_group(file: h5py.File) -> h5py.Group | None:
    """Return the group of a raw file, with datasets `data` and `metadata`; None for any other file."""
    found = _raw_members(file)
    return None if found is None else found[0]


def _raw_members(file: h5py.File) -> tuple[h5py.Group, h5py.Dataset, h5py.Dataset] | None:
    """Return the group of a raw file with its datasets `metadata` and `data`."""
    found: list[tuple[h5py.Group, h5py.Dataset, h5py.Dataset]] = []
    for group in _groups(file):
        # metadata first, as in `raw_file_of`: HDF5 keeps the length that a dataset had when first opened.
        metadata = dataset_of(group, "metadata")
        data = None if metadata is None else dataset_of(group, "data")
        if metadata is not None and data is not None:
            found.append((group, metadata, data))
    return found[0] if len(found) == 1 else None


def metadata_group(file: h5py.File) -> h5py.Group | None:
    """Return the group of a metadata file, with the dataset `metadata` only; None for any other file."""
    groups = [group for group in _groups(file) if _has(group, "metadata") and "data" not in group]
    return groups[0] if len(groups) == 1 else None


def raw_file_of(path: Path, opened: Opened, space: np.ndarray | None = None) -> RawRows:
    """Do the same as `read_raw_file` with an open file."""
    found = _raw_members(opened.file)
    if found is None:
        raise FileLayoutError(
            mismatch(
                str(path),
                "a raw file (one group /<detector_name> with datasets data and metadata)",
                _content(opened.file),
            )
        )
    group, metadata, data = found
    # metadata first: in a growing file `data` is always ahead of it. Its shape is that of its opening.
    rows = read_rows(path, metadata, space)
    if opened.unclosed:
        data.refresh()
    if data.ndim != 3:
        raise FileLayoutError(f"{path}: {data.name}: found shape {data.shape}, expected (n, height, width)")
    origin = Origin.of(group)
    if origin == Origin():
        rows = rows.without_unused(data.shape[0])
    if data.shape[0] < len(rows.image_ids):
        raise FileLayoutError(
            f"{path}: is short: {data.name} holds {data.shape[0]} images, "
            f"its metadata {len(rows.image_ids)} rows"
        )
    epochs, known = _epochs(path, group, rows.image_ids, rows.id_step)
    return RawRows(
        path=path,
        detector_name=(group.name or "").lstrip("/"),
        origin=origin,
        image_ids=rows.image_ids,
        epochs=epochs,
        epochs_known=known,
        row_dtype=rows.dtype,
        unclosed=opened.unclosed,
        id_step=rows.id_step,
        status=rows.status,
        image_shape=(data.shape[1], data.shape[2]),
        dtype=data.dtype,
        n_stored=data.shape[0],
    )


def metadata_file_of(path: Path, opened: Opened) -> ImageRows:
    """Do the same as `read_metadata_file` with an open file."""
    group = metadata_group(opened.file)
    if group is None:
        raise FileLayoutError(
            mismatch(
                str(path),
                "a metadata file (one group /<detector_name> with a dataset metadata)",
                _content(opened.file),
            )
        )
    metadata = group["metadata"]
    assert isinstance(metadata, h5py.Dataset)
    image_ids = read_table(path, metadata, ("image_id",))["image_id"].astype(np.uint64)
    epochs, known = _epochs(path, group, image_ids)
    return ImageRows(
        path=path,
        detector_name=(group.name or "").lstrip("/"),
        origin=Origin.of(group),
        image_ids=image_ids,
        epochs=epochs,
        epochs_known=known,
        row_dtype=metadata.dtype,
        unclosed=opened.unclosed,
        id_step=0,
    )


def _epochs(
    path: Path, group: h5py.Group, image_ids: np.ndarray, id_step: int = 0
) -> tuple[np.ndarray, bool]:
    """Return the epoch of each row, from the dataset `epochs`, else from ids that do not increase."""
    dataset = dataset_of(group, "epochs")
    if dataset is None or dataset.shape == (0,):
        drops = image_ids[:0] if id_step else image_ids[1:] <= image_ids[:-1]
        if not drops.any():
            return np.broadcast_to(np.uint64(0), image_ids.shape), False
        epochs = np.zeros(len(image_ids), np.uint64)
        epochs[1:] = np.cumsum(drops)
        return epochs, False
    stored = read_table(path, dataset, ("first_row", "epoch"))
    table = np.zeros((len(stored) + 1, 2), np.uint64)
    table[1:, 0], table[1:, 1] = stored["first_row"], stored["epoch"]
    entry = np.searchsorted(table[:, 0], np.arange(len(image_ids), dtype=np.uint64), side="right") - 1
    epochs = table[entry, 1]
    forward = (epochs[1:] > epochs[:-1]) | ((epochs[1:] == epochs[:-1]) & (image_ids[1:] > image_ids[:-1]))
    if np.any(table[1:, 0] < table[:-1, 0]) or not forward.all():
        raise FileLayoutError(f"{path}: {dataset.name}: does not fit the image ids: {stored[:5].tolist()}")
    return epochs, True


def _groups(file: h5py.File) -> list[h5py.Group]:
    names, root = list[bytes](), h5g.open(file.id, b"/")
    root.links.iterate(names.append)
    found: list[h5py.Group] = []
    for name in names:
        with suppress(KeyError):  # A link that leads nowhere.
            member = h5o.open(root, name)
            if isinstance(member, h5g.GroupID):
                found.append(h5py.Group(member))
    return found


def _has(group: h5py.Group, name: str) -> bool:
    return dataset_of(group, name) is not None


def _content(file: h5py.File) -> str:
    names = [f"/{name}" for name in file]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
