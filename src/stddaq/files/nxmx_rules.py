"""Which values an NXmx file requires, and which its readers refuse or misread. Knows no HDF5."""

from __future__ import annotations

import re

from stddaq.errors import ConfigError
from stddaq.files.application_metadata import Metadata
from stddaq.run_metadata import RunMetadata
from stddaq.text import mismatch, shown

SENSOR_MATERIALS = ("Si", "Silicon", "CdTe", "GaAs")
# dxtbx reads files of these instruments in formats of their own.
_OTHER_FORMATS = re.compile(r"(i03|i04|i24|vmxi)\Z|dls|diamond beamline|.*ebic", re.IGNORECASE | re.DOTALL)
_ALWAYS_REQUIRED = (
    "start_time",
    "source.name",
    "instrument.name",
    "sample.name",
    "detector.pixel_size_m",
    "detector.sensor_material",
    "detector.sensor_thickness_m",
    "detector.saturation_value",
    "detector.underload_value",
    "detector.distance_m",
    "detector.beam_center_pixel",
    "detector.count_time_s",
    "detector.frame_time_s",
)


def missing_for_nxmx(metadata: Metadata) -> list[str]:
    """Return the keys of all values that are required and not known."""
    values = metadata.values
    missing = [key for key in _ALWAYS_REQUIRED if _value(values, key) is None]
    if values.beam.wavelength is None:
        missing.append("beam.energy_kev")
    if values.end_time is None and metadata.expected_images is None:
        missing.append("end_time")
    if values.scan is not None:
        missing += _missing_for_scan(values)
    return missing


def _missing_for_scan(values: RunMetadata) -> list[str]:
    assert values.scan is not None
    missing = [
        f"scan.{name}" for name in ("start_deg", "increment_deg") if getattr(values.scan, name) is None
    ]
    name, axes = values.scan_axis_name, [axis.name for axis in values.goniometer()]
    if name is None:
        missing.append("scan_axis.name")
    if name not in axes and (name is not None or values.scan_axis.vector is None):
        missing.append("scan_axis.vector")
    return missing + [f"axes.{axis}" for axis in axes if axis != name and axis not in values.axes]


def _value(values: RunMetadata, key: str) -> object:
    found: object = values
    for name in key.split("."):
        found = getattr(found, name)
    return found


def check_for_nxmx(values: RunMetadata) -> None:
    """Raise `ConfigError` for values with which readers refuse or misread the file."""
    material, name = values.detector.sensor_material, values.instrument.name
    if material is not None and material not in SENSOR_MATERIALS:
        expected = f"one of {', '.join(SENSOR_MATERIALS)} in an NXmx file"
        raise ConfigError(mismatch("detector.sensor_material", expected, shown(material)))
    if name is not None and _OTHER_FORMATS.match(name):
        expected = "a name that dxtbx does not know as another format"
        raise ConfigError(mismatch("instrument.name", expected, shown(name)))
