"""The NXtomo file `<prefix>_tomo.h5`: projections, flats and darks of one run or several, for tomography.

It is a small file beside the raw files; its images are a virtual dataset with relative names, in the order of
the runs. Readers contradict each other: nxtomo, tomoscan and nabu take the entry with the detector at the
root, mantidimaging and Savu `tomo_entry` in the second one, dxchange `/exchange`. The file has all three over
the same data, and at its root nothing but groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from pathlib import Path

import h5py
import numpy as np

import stddaq
from stddaq.errors import ConfigError, FileLayoutError
from stddaq.files.application_file import write_application_file
from stddaq.files.application_metadata import Metadata
from stddaq.files.frames import Frames, FramesOfFile, frames_of
from stddaq.files.nexus import (
    TOMOGRAM,
    TOMOGRAM_IMAGES,
    nexus_group,
    put_name,
    put_value,
    set_attributes,
    utc_text,
)
from stddaq.files.opening import relative_name
from stddaq.files.run import RecordedRun
from stddaq.files.sources import mark_with_run_ids
from stddaq.files.virtual import MappedRows, create_virtual_dataset, stretches
from stddaq.text import mismatch
from stddaq.wire.std_daq import image_metadata_pb2 as pb

IMAGES = TOMOGRAM_IMAGES


class ImageKey(IntEnum):
    """The kind of an image, as NXtomo numbers them."""

    projection = 0
    flat = 1
    dark = 2
    invalid = 3


@dataclass(frozen=True, slots=True)
class TomographyRun:
    """A run, and of each of its images in order the `ImageKey` (n,) and the angle (n,) in degrees."""

    run: RecordedRun
    keys: np.ndarray
    angles: np.ndarray


@dataclass(frozen=True, slots=True)
class NXtomoFile:
    """The content of an NXtomo file.

    Attributes:
        n_images: by the name of their kind.
        doubts: what programs will take wrongly, a line each.
    """

    path: Path
    missing: tuple[str, ...]
    n_images: dict[str, int]
    image_shape: tuple[int, int]
    dtype: np.dtype
    doubts: tuple[str, ...]


def create_nxtomo_file(
    path: Path,
    runs: Sequence[TomographyRun],
    metadata: Metadata,
    *,
    incomplete: bool = False,
    overwrite: bool = False,
    roots: Sequence[Path] = (),
) -> NXtomoFile:
    """Create the NXtomo file `path`. It appears complete or not at all, below one of `roots` if any.

    Images that are not good are marked as invalid, and those without pixels are not shown. Raise
    `ConfigError` that names all missing keys, unless `incomplete`, or if no image is a good projection;
    `FileLayoutError`, `OutputExistsError`.
    """
    missing = () if metadata.values.sample.name is not None else ("sample.name",)
    if missing and not incomplete:
        got, advice = f"none for {', '.join(missing)}", "give them by --from or --set"
        raise ConfigError(mismatch(str(path), "values that NXtomo requires", got, advice), missing)
    frames = _joined([frames_of(part.run, by_id=False) for part in runs])
    keys = np.concatenate([_keys_of_good(part) for part in runs])
    angles = np.concatenate([part.angles for part in runs])
    if ImageKey.projection not in keys:
        raise ConfigError(mismatch(str(path), "a good projection among the images", "none"))
    tree = _Tree(path, runs, frames, keys, angles, metadata)
    write_application_file(
        path, frames, IMAGES, lambda file: tree.write(file, complete=not missing), overwrite, roots
    )
    counts = {key.name: int(np.count_nonzero(keys == key)) for key in ImageKey}
    return NXtomoFile(path, missing, counts, frames.image_shape, frames.dtype, _doubts(path, keys, angles))


def _doubts(path: Path, keys: np.ndarray, angles: np.ndarray) -> tuple[str, ...]:
    doubts = []
    places = np.flatnonzero(keys == ImageKey.projection)
    if len(places) > 1 and (angles[places] == angles[places[0]]).all():
        got = f"all {len(places)} at {angles[places[0]]:g} degrees"
        doubts.append(mismatch(str(path), "projections at several angles", got))
    between = keys[places[0] : places[-1]]
    n_others = int(np.isin(between, (ImageKey.flat, ImageKey.dark)).sum())
    if n_others:
        got, advice = f"{n_others} flats or darks among them", "httomo takes them for projections"
        doubts.append(mismatch(str(path), "projections that follow each other", got, advice))
    return tuple(doubts)


def _keys_of_good(part: TomographyRun) -> np.ndarray:
    status = part.run.in_order([raw.status for raw in part.run.raw_files])
    return np.where(status == pb.good_image, part.keys, ImageKey.invalid).astype(np.int32)


def _joined(parts: Sequence[Frames]) -> Frames:
    """Return the frames of several runs, one run after the other. Raise `FileLayoutError`."""
    first, offset = parts[0], 0
    files: list[FramesOfFile] = []
    for part in parts:
        if (part.image_shape, part.dtype) != (first.image_shape, first.dtype):
            where = str(part.files[0].raw.path)
            expected = f"images {first.image_shape} {first.dtype} as in the first run"
            raise FileLayoutError(mismatch(where, expected, f"{part.image_shape} {part.dtype}"))
        files += [FramesOfFile(file.raw, file.places + offset, file.kept) for file in part.files]
        offset += len(part.image_ids)
    ids = np.concatenate([part.image_ids for part in parts])
    return Frames(ids, first.image_shape, first.dtype, tuple(files))


class _Tree:
    """The file while it is written."""

    def __init__(
        self,
        path: Path,
        runs: Sequence[TomographyRun],
        frames: Frames,
        keys: np.ndarray,
        angles: np.ndarray,
        metadata: Metadata,
    ) -> None:
        self._path, self._runs, self._frames = path, runs, frames
        self._keys, self._angles = keys, angles
        self._metadata, self._values = metadata, metadata.values

    def write(self, file: h5py.File, *, complete: bool) -> None:
        set_attributes(file, NX_class="NXroot", default=TOMOGRAM[1:], creator="stddaq")
        entry = nexus_group(file, TOMOGRAM[1:], "NXentry", default="data")
        mark_with_run_ids(entry.id, [part.run.run_id for part in self._runs])
        if complete:
            # Of fixed length: mantidimaging decodes bytes.
            entry["definition"] = np.bytes_("NXtomo")
            # Of variable length: nabu compares the attribute with a text, which bytes are never equal to.
            set_attributes(entry, definition="NXtomo")
            entry.attrs["version"] = 2.1
        self._write_entry(entry)
        self._write_instrument(nexus_group(entry, "instrument", "NXinstrument"))
        sample = nexus_group(entry, "sample", "NXsample")
        put_value(sample, "name", self._values.sample.name)
        put_value(sample, "rotation_angle", self._angles, "degree")
        self._write_data(entry)
        self._write_origin(entry)
        second = nexus_group(file, "entry1", "NXentry")
        tomogram = nexus_group(second, "tomo_entry", "NXsubentry")
        for name in entry:
            tomogram[name] = entry[name]
        self._write_exchange(file)

    def _write_entry(self, entry: h5py.Group) -> None:
        run, values = self._runs[-1].run, self._values
        entry["title"] = f"{run.detector_name} {run.run_id}" if run.run_id else run.detector_name
        for name, time in (("start_time", values.start_time), ("end_time", values.end_time)):
            put_value(entry, name, None if time is None else utc_text(datetime.fromisoformat(time)))

    def _write_instrument(self, instrument: h5py.Group) -> None:
        values = self._values
        put_name(instrument, values.instrument.name, values.instrument.short_name)
        source = nexus_group(instrument, "source", "NXsource")
        put_name(source, values.source.name, values.source.short_name)
        put_value(source, "type", values.source.type)
        put_value(source, "probe", "x-ray")
        beam = nexus_group(instrument, "beam", "NXbeam")
        put_value(beam, "incident_energy", values.beam.energy, "keV")
        self._write_detector(nexus_group(instrument, "detector", "NXdetector"))

    def _write_detector(self, detector: h5py.Group) -> None:
        known, n = self._values.detector, len(self._keys)
        images = self._frames.create_dataset(detector, "data", self._path.parent, by_image=True)
        set_attributes(images, interpretation="image", target=IMAGES)
        put_value(detector, "local_name", self._runs[-1].run.detector_name)
        for name in ("image_key", "image_key_control"):
            detector[name] = self._keys
        if known.pixel_size_m is not None:
            for axis, size in zip("xy", known.pixel_size_m, strict=True):
                put_value(detector, f"{axis}_pixel_size", size, "m")
        put_value(detector, "distance", known.distance_m, "m")
        if known.count_time_s is not None:
            put_value(detector, "count_time", np.full(n, known.count_time_s), "s")
        detector["image_id"] = self._frames.image_ids
        detector["sequence_number"] = np.arange(n, dtype=np.uint32)

    def _write_data(self, entry: h5py.Group) -> None:
        data = nexus_group(entry, "data", "NXdata", signal="data", interpretation="image")
        set_attributes(data, axes=["rotation_angle", ".", "."], rotation_angle_indices=0)
        data["data"], data["image_key"] = (
            entry["instrument/detector/data"],
            entry["instrument/detector/image_key"],
        )
        data["rotation_angle"] = entry["sample/rotation_angle"]

    def _write_origin(self, entry: h5py.Group) -> None:
        group = nexus_group(entry, "stddaq", "NXcollection")
        group["version"] = stddaq.__version__
        files = [raw.path for part in self._runs for raw in part.run.raw_files]
        group["raw_files"] = [relative_name(path, self._path.parent) for path in files]
        group["nexus"] = self._metadata.as_json()

    def _write_exchange(self, file: h5py.File) -> None:
        exchange = nexus_group(file, "exchange", "NXcollection")
        names = {ImageKey.projection: "data", ImageKey.flat: "data_white", ImageKey.dark: "data_dark"}
        for key, name in names.items():
            rows = np.flatnonzero(self._keys == key)
            if len(rows):
                shape = (len(rows), *self._frames.image_shape)
                source = MappedRows(".", IMAGES, len(self._keys), stretches(rows), rows_are_values=True)
                create_virtual_dataset(exchange.id, name, shape, self._frames.dtype, [source])
        put_value(exchange, "theta", self._angles[self._keys == ImageKey.projection], "deg")
