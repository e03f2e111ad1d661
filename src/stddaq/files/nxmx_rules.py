"""Which values an NXmx file requires, and which its readers refuse or misread. Knows no HDF5."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from stddaq.errors import ConfigError
from stddaq.files.application_metadata import Metadata
from stddaq.text import mismatch, shown

if TYPE_CHECKING:
    import numpy as np

    from stddaq.run_metadata import RunMetadata

SENSOR_MATERIALS = ("Si", "Silicon", "CdTe", "GaAs")
# dxtbx reads files of these instruments in formats of their own.
_OTHER_FORMATS = re.compile(r"(i03|i04|i24|vmxi)\Z|dls|diamond beamline|.*ebic", re.IGNORECASE | re.DOTALL)
# Of the angle between the directions of the pixels.
_LEAST_SINE = 1e-6
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


def contradictions(values: RunMetadata) -> dict[str, str]:
    """Return the keys of values that contradict others or mean nothing, and of each what is wrong.

    A run is recorded in spite of them, so that they can be set right.
    """
    found = [*_of_detector(values)]
    scan, name = values.scan, values.scan_axis_name
    if scan is not None and scan.increment_deg == 0:
        advice = "leave scan out for a still"
        found.append(("scan.increment_deg", "another value than 0", "0", advice))
    if scan is not None and name in values.axes:
        expected = f"axes that stand still, {name} is the axis of the scan"
        found.append((f"axes.{name}", expected, shown(values.axes[name]), ""))
    return {key: mismatch(key, *texts) for key, *texts in found}


def _of_detector(values: RunMetadata) -> list[tuple[str, str, str, str]]:
    found: list[tuple[str, str, str, str]] = []
    detector = values.detector
    if not _sine(detector.fast, detector.slow) > _LEAST_SINE:
        got = f"{shown(detector.slow)} with fast {shown(detector.fast)}"
        found.append(("detector.slow", "another direction than that of detector.fast", got, ""))
    top, bottom = detector.saturation_value, detector.underload_value
    if top is not None and top <= 0:
        found.append(("detector.saturation_value", "a value greater than 0", f"{top}", ""))
    elif top is not None and bottom is not None and bottom >= top:
        expected = f"a value below detector.saturation_value ({top})"
        found.append(("detector.underload_value", expected, f"{bottom}", ""))
    return found


def _sine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the sine of the angle between two vectors; 0 if one is 0."""
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    lengths = math.hypot(*a) * math.hypot(*b)
    return math.hypot(*cross) / lengths if lengths else 0.0


def check_consistent(values: RunMetadata, dtype: np.dtype) -> None:
    """Raise `ConfigError` for values that contradict each other, or pixels of `dtype`."""
    for problem in contradictions(values).values():
        raise ConfigError(problem)
    top = values.detector.saturation_value
    largest = 2 ** (8 * dtype.itemsize) - 1
    if top is not None and dtype.kind == "u" and top > largest:
        expected = f"at most {largest}, the largest {dtype}"
        raise ConfigError(mismatch("detector.saturation_value", expected, f"{top}"))
    start, end = values.start_time, values.end_time
    if start and end and datetime.fromisoformat(end) < datetime.fromisoformat(start):
        raise ConfigError(mismatch("end_time", f"a time after start_time ({start})", end))


def check_for_nxmx(values: RunMetadata) -> None:
    """Raise `ConfigError` for values with which readers refuse or misread the file."""
    material, name = values.detector.sensor_material, values.instrument.name
    if material is not None and material not in SENSOR_MATERIALS:
        expected = f"one of {', '.join(SENSOR_MATERIALS)} in an NXmx file"
        raise ConfigError(mismatch("detector.sensor_material", expected, shown(material)))
    if name is not None and _OTHER_FORMATS.match(name):
        expected = "a name that dxtbx does not know as another format"
        raise ConfigError(mismatch("instrument.name", expected, shown(name)))
