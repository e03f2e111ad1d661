"""The metadata file `<prefix>Meta.h5` of a run: the detector's own fields of every image, in arrival order.

Layout (std_daq): `/<detector_name>/metadata`, one compound row per image; its fields are those
of the detector.
Readable by SWMR while it grows, like the raw files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stddaq.files.hdf5_calls import hdf5_calls
from stddaq.files.swmr import GrowingRows, close_swmr_file, open_swmr_file
from stddaq.new_file import NewFile
from stddaq.wire.std_daq import image_metadata_pb2 as pb


@dataclass(frozen=True, slots=True)
class MetadataLayout:
    """The rows of one detector type."""

    dtype: np.dtype
    row_of: Callable[[pb.ImageMetadata], tuple[int, ...]]


def _gigafrost(metadata: pb.ImageMetadata) -> tuple[int, ...]:
    gf = metadata.gf
    return (
        metadata.image_id,
        gf.scan_id,
        gf.scan_time,
        gf.sync_time,
        gf.frame_timestamp,
        gf.exposure_time,
    )


def _jungfrau(metadata: pb.ImageMetadata) -> tuple[int, ...]:
    return metadata.image_id, metadata.jf.daq_rec


def _eiger(metadata: pb.ImageMetadata) -> tuple[int, ...]:
    return metadata.image_id, metadata.eg.exptime


def _pco(metadata: pb.ImageMetadata) -> tuple[int, ...]:
    return metadata.image_id, metadata.pco.global_timestamp_sec, metadata.pco.global_timestamp_ns


GIGAFROST = MetadataLayout(
    np.dtype(
        [
            ("image_id", "<u8"),
            ("scan_id", "<u8"),
            ("scan_time", "<u4"),
            ("sync_time", "<u4"),
            ("frame_timestamp", "<u8"),
            ("exposure_time", "<u8"),
        ]
    ),
    _gigafrost,
)
JUNGFRAU = MetadataLayout(np.dtype([("image_id", "<u8"), ("daq_rec", "<u8")]), _jungfrau)
EIGER = MetadataLayout(np.dtype([("image_id", "<u8"), ("exptime", "<u8")]), _eiger)
PCO = MetadataLayout(
    np.dtype([("image_id", "<u8"), ("global_timestamp_sec", "<u8"), ("global_timestamp_ns", "<u8")]), _pco
)


class MetadataFile:
    """A metadata file being written. Not thread-safe; one process per file."""

    def __init__(
        self, new: NewFile, detector_name: str, layout: MetadataLayout, attributes: Mapping[str, object]
    ) -> None:
        """Write into the empty file `new`, and begin SWMR. Raises `OSError`."""
        self.path, self._new = new.path, new
        self._row_of = layout.row_of
        self._rows: list[tuple[int, ...]] = []
        self._is_closed = False
        self._file = open_swmr_file(new)
        try:
            with hdf5_calls:
                group = self._file.create_group(detector_name)
                for name, value in attributes.items():
                    group.attrs[name] = value
                self._metadata = GrowingRows(group, "metadata", layout.dtype)
                self._file.swmr_mode = True
        except BaseException:
            with contextlib.suppress(OSError, RuntimeError):
                self._file.close()
            raise

    @classmethod
    def create(
        cls,
        path: Path,
        detector_name: str,
        layout: MetadataLayout,
        attributes: Mapping[str, object],
        *,
        overwrite: bool = False,
        roots: Sequence[Path] = (),
    ) -> MetadataFile:
        """Create a file, below `roots` if there are any, and begin SWMR.

        Raises `FileExistsError`, unless `overwrite`, `OutsideRootsError` and `OSError`.
        """
        with NewFile.create(path, overwrite=overwrite, roots=roots).removed_on_error() as new:
            return cls(new, detector_name, layout, attributes)

    @property
    def n_images(self) -> int:
        """Return the number of rows, visible or not."""
        return self._metadata.n_rows + len(self._rows)

    @property
    def n_visible(self) -> int:
        """Return the number of rows that other processes can read."""
        return self._metadata.n_rows

    def add(self, metadata: pb.ImageMetadata) -> None:
        """Add the row of one image."""
        self._rows.append(self._row_of(metadata))

    def flush(self) -> None:
        """Make all rows visible to other processes."""
        if self._rows:
            self._metadata.append(self._rows)
            self._rows.clear()

    def show_alive(self) -> None:
        """Check that the file is at its path, and touch it: `stddaq repair` sees that it is being written.

        Raise `FileLostError`.
        """
        self._new.check_in_place()
        os.utime(self._new.fd)

    def close(self, *, discard_if_empty: bool = False) -> None:
        """Flush and close; with `discard_if_empty` remove a file without rows.

        Raises `OSError`; rows that were visible stay readable with SWMR.
        """
        try:
            try:
                self.flush()
            finally:
                self._close_file()
            self._new.check_in_place()
            if discard_if_empty and not self.n_visible:
                self._new.remove()
        finally:
            self._new.close()

    def abandon(self) -> None:
        """Close after an error without raising; visible rows stay."""
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            self._close_file()

    def _close_file(self) -> None:
        if self._is_closed:
            return  # A failed close cannot be repeated: https://github.com/h5py/h5py/issues/2160
        self._is_closed = True
        self._metadata.close()
        close_swmr_file(self._file, self.path)
