"""The NXmx file `<prefix>_master.h5`: a run with its metadata, for programs of crystallography.

It is a small file beside the raw files; its images are a virtual dataset with relative names. During a scan
frame k is the image whose id is k above the first one, because readers compute the angle of a frame from its
number; still images are those that exist. The tree satisfies the NXDL and the readers that tests/files names;
`/entry/definition` is written only if all values are known that the NXDL or dxtbx require.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from stddaq.errors import ConfigError
from stddaq.files.application_file import write_application_file
from stddaq.files.application_metadata import Metadata
from stddaq.files.frames import Frames, frames_of
from stddaq.files.nexus import (
    APPLICATION_METADATA,
    DATA,
    hard_link,
    nexus_group,
    put_name,
    put_value,
    set_attributes,
    utc_text,
)
from stddaq.files.nexus_account import write_account
from stddaq.files.nxmx_rules import check_consistent, check_for_nxmx, missing_for_nxmx
from stddaq.files.pixel_mask import write_pixel_mask
from stddaq.files.run import RecordedRun
from stddaq.files.sources import mark_with_run_ids
from stddaq.text import mismatch

if TYPE_CHECKING:
    from stddaq.run_metadata import Detector

BEAM = "/entry/instrument/beam"
PIXEL_MASK = "/entry/instrument/detector/pixel_mask"
DETECTOR_AXIS = "/entry/instrument/detector/transformations/det_z"
MODULE_OFFSET = "/entry/instrument/detector/module/module_offset"
GONIOMETER = "/entry/sample/transformations"


@dataclass(frozen=True, slots=True)
class NXmxFile:
    """The content of an NXmx file.

    Attributes:
        missing: keys of values that NXmx requires; the file has a `definition` if there are none.
        n_mapped: frames that show an image.
    """

    path: Path
    missing: tuple[str, ...]
    n_frames: int
    n_mapped: int
    image_shape: tuple[int, int]
    dtype: np.dtype


def create_nxmx_file(
    path: Path,
    run: RecordedRun,
    metadata: Metadata,
    *,
    account: str | None = None,
    incomplete: bool = False,
    overwrite: bool = False,
    roots: Sequence[Path] = (),
) -> NXmxFile:
    """Create the NXmx file `path` of a run. It appears complete or not at all, below one of `roots` if any.

    With `incomplete` missing values are left out, and the file does not claim to be NXmx. Raise `ConfigError`
    that names all missing keys, or values that are not NXmx or contradict each other; `FileLayoutError`,
    `OutputExistsError`, `OutsideRootsError`.
    """
    missing = missing_for_nxmx(metadata)
    if missing and not incomplete:
        got, advice = f"none for {', '.join(missing)}", "give them by --from or --set"
        raise ConfigError(mismatch(str(path), "values that NXmx requires", got, advice), missing)
    check_for_nxmx(metadata.values)
    frames = frames_of(run, by_id=metadata.values.scan is not None)
    check_consistent(metadata.values, frames.dtype)
    tree = _Tree(path, run, frames, metadata)
    write_application_file(
        path, frames, DATA, lambda file: tree.write(file, account, complete=not missing), overwrite, roots
    )
    return NXmxFile(
        path, tuple(missing), len(frames.image_ids), frames.n_mapped, frames.image_shape, frames.dtype
    )


class _Tree:
    """The file while it is written."""

    def __init__(self, path: Path, run: RecordedRun, frames: Frames, metadata: Metadata) -> None:
        self._path, self._run, self._frames = path, run, frames
        self._metadata, self._values = metadata, metadata.values

    def write(self, file: h5py.File, account: str | None, *, complete: bool) -> None:
        name = self._path.name.encode("ascii", "backslashreplace").decode()
        set_attributes(
            file,
            NX_class="NXroot",
            default="entry",
            file_name=name,
            file_time=utc_text(datetime.now(UTC)),
            creator="stddaq",
            HDF5_Version=h5py.version.hdf5_version,
        )
        entry = nexus_group(file, "entry", "NXentry", default="data")
        mark_with_run_ids(entry.id, [self._run.run_id])
        if complete:
            put_value(entry, "definition", np.bytes_("NXmx"))
            set_attributes(entry, version=np.bytes_("1.0"))
        self._write_entry(entry)
        instrument = nexus_group(entry, "instrument", "NXinstrument")
        self._write_instrument(instrument)
        self._write_beam(instrument)
        self._write_detector(instrument)
        self._write_sample(entry)
        self._write_data(entry)
        write_account(entry, self._run, self._path.parent, account)
        put_value(file, APPLICATION_METADATA, self._metadata.as_json())

    def _write_entry(self, entry: h5py.Group) -> None:
        run, values = self._run, self._values
        title = f"{run.detector_name} {run.run_id}" if run.run_id else run.detector_name
        put_value(entry, "title", title)
        put_value(entry, "entry_identifier", run.run_id)
        for name, time in (("start_time", values.start_time), ("end_time", values.end_time)):
            put_value(entry, name, None if time is None else utc_text(datetime.fromisoformat(time)))
        estimated = self._metadata.end_time_estimated()
        put_value(entry, "end_time_estimated", None if estimated is None else utc_text(estimated))
        source = nexus_group(entry, "source", "NXsource")
        put_name(source, values.source.name, values.source.short_name)
        put_value(source, "type", values.source.type)
        put_value(source, "probe", "x-ray")

    def _write_instrument(self, instrument: h5py.Group) -> None:
        values = self._values
        put_name(instrument, values.instrument.name, values.instrument.short_name)
        put_value(instrument, "time_zone", values.instrument.time_zone)
        if values.beam.transmission is not None:
            attenuator = nexus_group(instrument, "attenuator", "NXattenuator")
            put_value(attenuator, "attenuator_transmission", values.beam.transmission)

    def _write_beam(self, instrument: h5py.Group) -> None:
        values = self._values.beam
        beam = nexus_group(instrument, "beam", "NXbeam", target=BEAM)
        if values.energy is not None:
            put_value(beam, "incident_wavelength", values.wavelength, "angstrom")
            put_value(beam, "incident_energy", values.energy * 1000, "eV")
        put_value(beam, "total_flux", values.flux_hz, "Hz")
        put_value(beam, "incident_beam_size", values.size_m, "m")

    def _write_detector(self, instrument: h5py.Group) -> None:
        values, dtype = self._values.detector, self._frames.dtype
        detector = nexus_group(instrument, "detector", "NXdetector")
        detector["data"] = h5py.SoftLink(DATA)
        put_value(detector, "description", values.description)
        put_value(detector, "type", values.type)
        put_value(detector, "local_name", self._run.detector_name)
        put_value(detector, "serial_number", values.serial_number)
        put_value(detector, "distance", values.distance_m, "m")
        for i, axis in enumerate("xy"):
            if values.beam_center_pixel is not None:
                put_value(detector, f"beam_center_{axis}", values.beam_center_pixel[i], "pixel")
            if values.pixel_size_m is not None:
                put_value(detector, f"{axis}_pixel_size", values.pixel_size_m[i], "m")
        put_value(detector, "count_time", values.count_time_s, "s")
        put_value(detector, "frame_time", values.frame_time_s, "s")
        put_value(detector, "sensor_material", values.sensor_material)
        put_value(detector, "sensor_thickness", values.sensor_thickness_m, "m")
        put_value(detector, "threshold_energy", values.threshold_energy_ev, "eV")
        put_value(detector, "gain_setting", values.gain_setting)
        put_value(detector, "saturation_value", values.saturation_value)
        put_value(detector, "underload_value", values.underload_value)
        if dtype.kind in "iu":
            # Of the stored pixel: with those of the converter dxtbx masks real counts.
            for name in ("bit_depth_image", "bit_depth_readout"):
                put_value(detector, name, np.int32(8 * dtype.itemsize))
        put_value(detector, "pixel_mask_applied", values.pixel_mask_applied)
        put_value(detector, "flatfield_applied", values.flatfield_applied)
        put_value(detector, "countrate_correction_applied", values.countrate_correction_applied)
        self._write_detector_specific(detector)
        if None not in (values.distance_m, values.pixel_size_m, values.beam_center_pixel):
            _write_geometry(detector, values, self._frames.image_shape)

    def _write_detector_specific(self, detector: h5py.Group) -> None:
        """Write what plug-ins of XDS read."""
        height, width = self._frames.image_shape
        specific = nexus_group(detector, "detectorSpecific", "NXcollection")
        for name, number in (
            ("nimages", len(self._frames.image_ids)),
            ("ntrigger", 1),
            ("x_pixels_in_detector", width),
            ("y_pixels_in_detector", height),
        ):
            put_value(specific, name, np.uint32(number))
        mask = write_pixel_mask(detector, "pixel_mask", self._values.detector, (height, width))
        if mask is not None:
            set_attributes(mask, target=PIXEL_MASK)
            hard_link(specific, "pixel_mask", PIXEL_MASK)

    def _write_sample(self, entry: h5py.Group) -> None:
        values = self._values
        sample = nexus_group(entry, "sample", "NXsample")
        put_value(sample, "name", values.sample.name)
        put_value(sample, "temperature", values.sample.temperature_k, "K")
        hard_link(sample, "beam", BEAM)
        axes = values.goniometer() if values.scan is not None else []
        known = [axis for axis in axes if axis.name in (values.scan_axis_name, *values.axes)]
        transformations = nexus_group(sample, "transformations", "NXtransformations") if known else None
        depends_on = "."
        for axis in known:
            assert transformations is not None
            is_scanned = axis.name == values.scan_axis_name
            angles = self._angles if is_scanned else values.axes[axis.name]
            if angles is None:
                continue
            target = {"target": f"{GONIOMETER}/{axis.name}"} if is_scanned else {}
            _axis(transformations, axis.name, angles, "deg", "rotation", axis.vector, depends_on, **target)
            depends_on = f"{GONIOMETER}/{axis.name}"
        if transformations is not None:
            self._write_scan(transformations)
        put_value(sample, "depends_on", depends_on)

    @cached_property
    def _angles(self) -> np.ndarray | None:
        """Return the angle at the start of each frame."""
        scan = self._values.scan
        if scan is None or scan.start_deg is None or scan.increment_deg is None:
            return None
        return scan.start_deg + scan.increment_deg * np.arange(len(self._frames.image_ids))

    def _write_scan(self, transformations: h5py.Group) -> None:
        name, angles, scan = self._values.scan_axis_name, self._angles, self._values.scan
        if angles is None or scan is None or scan.increment_deg is None or name not in transformations:
            return
        for suffix, value in (("end", angles + scan.increment_deg), ("increment_set", scan.increment_deg)):
            put_value(transformations, f"{name}_{suffix}", value, "deg", transformation_type="rotation")

    def _write_data(self, entry: h5py.Group) -> None:
        data = nexus_group(entry, "data", "NXdata", signal="data", interpretation="image", image_id_indices=0)
        set_attributes(data, axes=["image_id", ".", "."])
        images = self._frames.create_dataset(data, "data", self._path.parent)
        set_attributes(images, interpretation="image", long_name=self._run.detector_name, target=DATA)
        put_value(data, "image_id", self._frames.image_ids)
        scanned = f"{GONIOMETER}/{self._values.scan_axis_name}"
        if self._angles is not None and scanned in data.file:
            hard_link(data, scanned.rpartition("/")[2], scanned)
            set_attributes(data, **{f"{self._values.scan_axis_name}_indices": 0})


def _write_geometry(detector: h5py.Group, values: Detector, image_shape: tuple[int, int]) -> None:
    """Write the place of the detector and of its one module, which is the whole image."""
    assert values.pixel_size_m is not None
    assert values.beam_center_pixel is not None
    put_value(detector, "depends_on", DETECTOR_AXIS)
    transformations = nexus_group(detector, "transformations", "NXtransformations")
    _axis(transformations, "det_z", values.distance_m, "m", "translation", [0, 0, 1], ".")
    module = nexus_group(detector, "module", "NXdetector_module")
    for name, pair in (("data_origin", (0, 0)), ("data_size", image_shape), ("data_stride", (1, 1))):
        put_value(module, name, np.array(pair, np.int32))
    # From the beam to the corner of pixel (0, 0).
    fast, slow = (_unit(vector) for vector in (values.fast, values.slow))
    (x, y), (x_size, y_size) = values.beam_center_pixel, values.pixel_size_m
    origin = -(x * x_size * fast + y * y_size * slow)
    _axis(module, "module_offset", 0.0, "m", "translation", [1, 0, 0], DETECTOR_AXIS, origin)
    for name, size, vector in (("fast", x_size, fast), ("slow", y_size, slow)):
        _axis(module, f"{name}_pixel_direction", size, "m", "translation", vector, MODULE_OFFSET)


def _unit(vector: Sequence[float]) -> np.ndarray:
    # Adding 0 turns -0.0 into 0.0.
    return np.array(vector, float) / math.hypot(*vector) + 0.0


def _axis(
    group: h5py.Group,
    name: str,
    values: object,
    units: str,
    kind: str,
    vector: object,
    depends_on: str,
    offset: object = (0, 0, 0),
    **attributes: object,
) -> None:
    put_value(
        group,
        name,
        np.atleast_1d(np.asarray(values, np.float64)),
        units,
        transformation_type=kind,
        vector=np.asarray(vector, np.float64),
        offset=np.asarray(offset, np.float64) + 0.0,
        offset_units="m",
        depends_on=depends_on,
        **attributes,
    )
