"""The images of a run as the frames of an application file, which shows those that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers the filters of compressed images)
import numpy as np

from stddaq.errors import FileLayoutError
from stddaq.files.nexus import lost_pixel
from stddaq.files.opening import examine, relative_name
from stddaq.files.raw_rows import RawRows
from stddaq.files.run import RecordedRun
from stddaq.files.virtual import MappedRows, create_virtual_dataset, mapped_by_image, stretches_of
from stddaq.text import mismatch
from stddaq.wire.std_daq import image_metadata_pb2 as pb


@dataclass(frozen=True, slots=True)
class FramesOfFile:
    """The rows of a raw file.

    Attributes:
        places: (rows,) int64, the frame of each row, increasing.
        kept: (rows,) bool; the others have no pixels of their own and are not mapped.
    """

    raw: RawRows
    places: np.ndarray
    kept: np.ndarray


@dataclass(frozen=True, slots=True)
class Frames:
    """All frames of an application file.

    Attributes:
        image_ids: (n,) uint64, also of frames without an image.
    """

    image_ids: np.ndarray
    image_shape: tuple[int, int]
    dtype: np.dtype
    files: tuple[FramesOfFile, ...]

    @property
    def n_mapped(self) -> int:
        """Return the number of frames that show an image."""
        return sum(int(np.count_nonzero(file.kept)) for file in self.files)

    def create_dataset(
        self, group: h5py.Group, name: str, directory: Path, *, by_image: bool = False
    ) -> h5py.Dataset:
        """Create the virtual dataset of the images. Frames without an image read as "not measured".

        `by_image`: for readers that take blocks of images.
        """
        mapped = [
            MappedRows(
                relative_name(file.raw.path, directory),
                f"/{file.raw.detector_name}/data",
                file.raw.n_stored,
                stretches_of(file.kept, file.places),
            )
            for file in self.files
        ]
        if by_image:
            mapped = mapped_by_image(mapped)
        shape = (len(self.image_ids), *self.image_shape)
        return h5py.Dataset(
            create_virtual_dataset(group.id, name, shape, self.dtype, mapped, fill=lost_pixel(self.dtype))
        )

    def verify(self, shown: h5py.Dataset) -> None:
        """Compare a line of the first and the last image of each raw file with what `shown` has there.

        HDF5 shows fill values for what it does not find. Raise `FileLayoutError`.
        """
        for file in self.files:
            rows, raw = np.flatnonzero(file.kept), file.raw
            if not len(rows):
                continue
            # Without locks, as HDF5 opens the file again for `shown`: so the two share what they have read.
            with examine(raw.path, locking=False) as opened:
                stored = opened.file[f"{raw.detector_name}/data"]
                assert isinstance(stored, h5py.Dataset)
                for row in (int(rows[0]), int(rows[-1])):
                    self._compare(raw.path, stored[row, self._line], shown, int(file.places[row]))

    @property
    def _line(self) -> int:
        return self.image_shape[0] // 2

    def _compare(self, path: Path, expected: np.ndarray, shown: h5py.Dataset, place: int) -> None:
        found = shown[place, self._line]
        if not np.array_equal(found, expected, equal_nan=self.dtype.kind == "f"):
            raise FileLayoutError(
                f"{path}: cannot be read through the new file: "
                f"image {self.image_ids[place]} is shown with other pixels"
            )


def frames_of(run: RecordedRun, *, by_id: bool) -> Frames:
    """Return the frames of a run: its images in order, or `by_id` one for each id from the first to the last.

    Raise `FileLayoutError` if there are no images, or `by_id` for ids that step back or are mostly missing.
    """
    ids, where = run.order.image_ids, str(run.raw_files[0].path.parent)
    if not len(ids):
        raise FileLayoutError(mismatch(where, "a run with images", "none"))
    places: Sequence[np.ndarray] = run.order.positions
    if by_id:
        ids, places = _by_id(where, run)
    # Their pixels were measured, although packets may be missing.
    kept = [(raw.status == pb.good_image) | (raw.status == pb.missing_packets) for raw in run.raw_files]
    files = zip(run.raw_files, places, kept, strict=True)
    return Frames(ids, run.image_shape, run.dtype, tuple(FramesOfFile(*file) for file in files))


def _by_id(where: str, run: RecordedRun) -> tuple[np.ndarray, list[np.ndarray]]:
    ids = run.order.image_ids
    if run.order.n_epochs > 1:
        got = "ids that step back: the frame number gives the angle"
        raise FileLayoutError(mismatch(where, "increasing image ids in a scan", got))
    n_frames = int(ids[-1] - ids[0]) + 1
    if 2 * len(ids) < n_frames:
        got = f"{len(ids)} images of {n_frames}"
        raise FileLayoutError(mismatch(where, "at least half of the ids of a scan", got))
    places = [(raw.image_ids - ids[0]).astype(np.int64) for raw in run.raw_files]
    return ids[0] + np.arange(n_frames, dtype=np.uint64), places
