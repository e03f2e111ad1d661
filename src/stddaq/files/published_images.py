"""The published images file, which Bluesky documents reference: the images of published points as one array.

It is a NeXus file with virtual datasets over rows of raw files, which may still be growing. It is written
completely and then renamed into place: a reader that opens it for each read sees it complete, and one that
holds an older version keeps a valid, shorter array. Images that are not published (those of an aborted try)
are in no mapping.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5f, h5g, h5p  # pyright: ignore[reportAttributeAccessIssue]

from stddaq.errors import FileLayoutError
from stddaq.files.file_format import new_file_access
from stddaq.files.growing_run import Images
from stddaq.files.nexus import DATA, IMAGE_METADATA, PUBLISHED_IDS, lost_pixel, nexus_group, set_attributes
from stddaq.files.opening import damage_named, open_file, relative_name
from stddaq.files.raw_rows import RawDatasets
from stddaq.files.sources import mark_with_run_ids
from stddaq.files.virtual import (
    MappedRows,
    Stretch,
    create_virtual_dataset,
    mapped_by_image,
    stretches,
)
from stddaq.new_file import replacing

NAME = "Published"

# A point of more images takes so long that making the file does not matter.
MAX_PREPARED_IMAGES = 100

# A file in memory grows by this number of bytes.
MEMORY_BLOCK = 16384

# By raw file.
_Stretches = dict[Path, list[Stretch]]

# Made once: a point of a plan waits until the file is written.
_ON_DISK = new_file_access()
_IN_MEMORY = new_file_access()
_IN_MEMORY.set_fapl_core(MEMORY_BLOCK, backing_store=False)
# HDF5 1.14 returns the bytes of a file in memory with a wrong checksum, over which readers hang.
CAN_PREPARE = h5py.version.hdf5_version_tuple >= (2, 0, 0)


def published_images_name(prefix: str, number: int) -> str:
    """Return the name of published images file `number` (from 0) of the files with a prefix."""
    return f"{prefix}{NAME}{number + 1 if number else ''}.h5"


class PublishedImagesFile:
    """Writes a published images file. Not thread-safe.

    Attributes:
        path: of the file, which exists after the first `write`.
        n_images: images that the next `write` shows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_images = 0
        self._ids: list[np.ndarray] = []
        self._mapped: dict[Path, _Mapped] = {}
        self._prepared: _Prepared | None = None

    @property
    def raw_files(self) -> tuple[Path, ...]:
        """Return the raw files that it shows."""
        return tuple(self._mapped)

    def extend(self, images: Images) -> None:
        """Append images. Raises `FileLayoutError` when their files do not fit the others."""
        places = self.n_images + np.arange(len(images))
        for i, file in enumerate(images.raw_files):
            mine = np.flatnonzero(images.files == i)
            if len(mine):
                mapped = self._mapped.get(file.path) or self._add(file)
                mapped.extend(images.rows[mine], places[mine], int(images.ids[mine[-1]]))
        self._ids.append(images.ids)
        self.n_images += len(images)

    def truncate(self, n_images: int) -> None:
        """Remove the images from `n_images` on, which were not published."""
        for mapped in self._mapped.values():
            mapped.truncate(n_images)
        if n_images < self.n_images:
            self._ids = [np.concatenate(self._ids)[:n_images]]
            self.n_images = n_images

    def write(self, *, live: bool) -> None:
        """Write the file, read an image of each new raw file through it, and rename it into place.

        `live`: raw files may be growing and the file will be written again, so what only viewers need, and
        mappings with which blocks of images are read fast, are left out. Raises `FileLayoutError`.
        """
        prepared, self._prepared = self._prepared, None
        stretches = self._stretches()
        try:
            with replacing(self.path) as temporary:
                if live and prepared is not None and prepared.stretches == stretches:
                    with open(temporary.fd, "wb", closefd=False) as file:
                        file.write(prepared.content)
                else:
                    with _created(bytes(temporary.opened), _ON_DISK) as file:
                        self._fill(file, stretches, self.n_images, by_image=not live)
                        if not live:
                            self._describe(h5py.Group(h5g.open(file, b"/")))
                self._verify(temporary.opened, live)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FileLayoutError(f"{self.path}: cannot be written: {reason}") from error

    def prepare(self, n_images: int) -> None:
        """Make the content of a file with `n_images` more, which continue the pattern of those before.

        If they do, `write` has only to write it. Does not raise.
        """
        self._prepared = None
        is_possible = CAN_PREPARE and n_images <= MAX_PREPARED_IMAGES
        stretches = self._continued(n_images) if is_possible else None
        if stretches is None:
            return
        # HDF5 wants a name that no other open file of this process has, and tries to open it on the disk.
        name = f"/dev/null/{id(self)}".encode()
        with suppress(OSError, RuntimeError), _created(name, _IN_MEMORY) as file:
            self._fill(file, stretches, self.n_images + n_images)
            h5f.flush(file)
            self._prepared = _Prepared(file.get_file_image(), stretches)

    def _stretches(self) -> _Stretches:
        return {path: list(mapped.stretches) for path, mapped in self._mapped.items()}

    def _continued(self, n_images: int) -> _Stretches | None:
        """Return the stretches with `n_images` more, which come from the files by turns as before.

        None if there is no such pattern.
        """
        found = self._stretches()
        for place in range(self.n_images, self.n_images + n_images):
            for of_file in found.values():
                last = of_file[-1] if of_file else None
                if last and last.length > 1 and last.first + last.length * last.step == place:
                    of_file[-1] = last._replace(length=last.length + 1)
                    break
            else:
                return None
        return found

    def _add(self, file: RawDatasets) -> _Mapped:
        first = next(iter(self._mapped.values()), None)
        if first is not None:
            found, expected = (file.image_shape, file.dtype), (first.file.image_shape, first.file.dtype)
            if found != expected:
                raise FileLayoutError(
                    f"{file.path}: holds images of {found[0]} {found[1]}, expected {expected[0]} "
                    f"{expected[1]} as in {first.file.path}"
                )
        name = relative_name(file.path, self.path.parent)
        self._mapped[file.path] = mapped = _Mapped(file, name)
        return mapped

    def _fill(
        self, file: h5f.FileID, stretches: _Stretches, n_images: int, *, by_image: bool = False
    ) -> None:
        raw = next(iter(self._mapped.values())).file
        entry = h5g.create(file, b"entry")
        data = h5g.create(entry, b"data")
        shape = (n_images, *raw.image_shape)
        images, rows = (self._sources(name, stretches) for name in ("data", "metadata"))
        if by_image:
            images = mapped_by_image(images)
        create_virtual_dataset(data, "data", shape, raw.dtype, images, fill=lost_pixel(raw.dtype))
        # HDF5 shows status 0 (undefined) for a raw file that is lost later.
        create_virtual_dataset(data, "metadata", shape[:1], raw.row_dtype, rows)
        mark_with_run_ids(entry, [mapped.file.run_id for mapped in self._mapped.values()])

    def _describe(self, file: h5py.Group) -> None:
        """Write what NeXus viewers need to open on the images, and the names of the raw files."""
        set_attributes(file, NX_class="NXroot", default="entry", creator="stddaq_ophyd")
        entry = file["entry"]
        assert isinstance(entry, h5py.Group)
        set_attributes(entry, NX_class="NXentry", default="data")
        set_attributes(file["entry/data"], NX_class="NXdata", signal="data", interpretation="image")
        set_attributes(file[DATA], interpretation="image")
        account = nexus_group(entry, "stddaq", "NXcollection")
        # Readers compare them with those in the raw files. While these grow, the id of the run has to do.
        file[PUBLISHED_IDS] = np.concatenate(self._ids)
        account["raw_files"] = [mapped.name for mapped in self._mapped.values()]

    def _sources(self, dataset: str, stretches: _Stretches) -> list[MappedRows]:
        found = []
        for path, of_file in stretches.items():
            if of_file:
                mapped = self._mapped[path]
                n_rows = of_file[-1].start + of_file[-1].length
                found.append(MappedRows(mapped.name, f"{mapped.file.group}/{dataset}", n_rows, of_file))
        return found

    def _verify(self, temporary: Path, live: bool) -> None:
        """Check that each raw file is found: HDF5 silently shows fill values for what it does not find.

        One image is enough, because images are added after they were read in their raw file.
        """
        to_check = {
            path: mapped
            for path, mapped in self._mapped.items()
            if mapped.last_id is not None and not mapped.is_visible
        }
        if not to_check:
            return
        with (
            open_file(temporary, allow_unclosed=live, as_growing=live) as opened,
            damage_named(temporary),
        ):
            rows = opened.file[IMAGE_METADATA]
            assert isinstance(rows, h5py.Dataset)
            for path, mapped in to_check.items():
                found = rows[mapped.last_place]["image_id"]
                if found != mapped.last_id:
                    raise FileLayoutError(
                        f"{path}: cannot be read through {self.path.name}: image {mapped.last_id} is shown "
                        f"as {found}; HDF5_VDS_PREFIX is {os.environ.get('HDF5_VDS_PREFIX', 'not set')}"
                    )
                mapped.is_visible = True


@contextmanager
def _created(name: bytes, access: h5p.PropFAID) -> Iterator[h5f.FileID]:
    """Create a file, which is closed at the end."""
    file = h5f.create(name, h5f.ACC_TRUNC, fapl=access)
    try:
        yield file
    finally:
        file.close()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The content of a file that shows `stretches`, made before it is known that these images come."""

    content: bytes
    stretches: _Stretches


class _Mapped:
    """The rows of one raw file that are shown, as stretches of rows and their places.

    Attributes:
        name: of the file, relative to the published images file.
        last_id: of the newest image, if it is known.
        is_visible: whether an image has been read through the published images file.
    """

    def __init__(self, file: RawDatasets, name: str) -> None:
        self.file, self.name = file, name
        self.stretches: list[Stretch] = []
        self.last_id: int | None = None
        self.is_visible = False

    @property
    def last_place(self) -> int:
        """Return the place of the newest image."""
        last = self.stretches[-1]
        return last.first + (last.length - 1) * last.step

    def extend(self, rows: np.ndarray, places: np.ndarray, last_id: int) -> None:
        """Show increasing `rows` (n,) at `places` (n,)."""
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        start = 0
        for end in ends:
            for found in stretches(places[start:end]):
                self._append(found._replace(start=int(rows[start]) + found.start))
            start = end
        self.last_id = last_id

    def _append(self, new: Stretch) -> None:
        """Append a stretch, or extend the last one: points of a scan come one by one."""
        last = self.stretches[-1] if self.stretches else None
        if last is not None and last.start + last.length == new.start:
            gap = new.first - (last.first + (last.length - 1) * last.step)
            step = gap if last.length == 1 else last.step
            if gap == step and (new.length == 1 or new.step == step):
                self.stretches[-1] = Stretch(last.start, last.first, step, last.length + new.length)
                return
        self.stretches.append(new)

    def truncate(self, n_images: int) -> None:
        """Show nothing at places from `n_images` on."""
        if not self.stretches or self.last_place < n_images:
            return
        self.last_id = None
        while self.stretches and self.stretches[-1].first >= n_images:
            self.stretches.pop()
        if self.stretches:
            last = self.stretches[-1]
            length = min(last.length, -(-(n_images - last.first) // last.step))
            self.stretches[-1] = last._replace(length=length)
