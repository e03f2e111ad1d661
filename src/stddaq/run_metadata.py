"""What is known of a run beside its images: source, beam, geometry, sample.

It is a part of the configuration, of the start of a run, and of the files that `stddaq nexus` reads. Nothing
is mandatory here; what a file of an application definition requires is checked when it is made.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# keV times angstrom.
ENERGY_TIMES_WAVELENGTH = 12.398419843320026


def _not_zero(vector: list[float]) -> list[float]:
    if not any(vector):
        raise ValueError("a vector that is not zero")
    return vector


def _name_of_axis(name: str) -> str:
    # It becomes the name of a dataset beside the images, where fabio joins all names that begin with "data".
    if not name.isascii() or not name.isidentifier() or name == "image_id" or name.startswith("data"):
        raise ValueError("a name of ASCII letters, digits and _, not image_id and not beginning with data")
    return name


def _text(text: str) -> str:
    # HDF5 stores neither a zero byte nor half of a surrogate pair.
    if not text or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("a text of Unicode characters, not empty and without zero bytes")
    return text


def _ascii(text: str) -> str:
    # It becomes an attribute, which durin reads only in ASCII.
    if not text.isascii() or not text.isprintable() or not text:
        raise ValueError("a text of printable ASCII characters")
    return text


def _time(text: str) -> str:
    try:
        time = datetime.fromisoformat(text)
        is_usable = time.tzinfo is not None and 1970 < time.year < 3000
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ValueError("a time of ISO 8601 with its offset from UTC")
    return text


Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Pair = Annotated[list[Number], Field(min_length=2, max_length=2)]
PositivePair = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Vector = Annotated[list[Number], Field(min_length=3, max_length=3), AfterValidator(_not_zero)]
Corner = Annotated[int, Field(ge=0, lt=2**31)]
Rectangle = Annotated[list[Corner], Field(min_length=4, max_length=4)]
Text = Annotated[str, AfterValidator(_text)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
AsciiText = Annotated[str, AfterValidator(_ascii)]
AxisName = Annotated[str, AfterValidator(_name_of_axis)]
Time = Annotated[str, AfterValidator(_time)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Source(_Part):
    """The source of the radiation."""

    name: Text | None = None
    short_name: AsciiText | None = None
    type: Text | None = None


class Instrument(_Part):
    """The beamline."""

    name: Text | None = None
    short_name: AsciiText | None = None
    time_zone: Text | None = None


class Detector(_Part):
    """The detector, its place, and its timing. Pairs are x, y."""

    description: Text | None = None
    type: Text | None = None
    serial_number: Text | None = None
    pixel_size_m: PositivePair | None = None
    sensor_material: Text | None = None
    sensor_thickness_m: Positive | None = None
    saturation_value: Integer | None = None
    underload_value: Integer | None = None
    mask_file: Text | None = None
    gaps: list[Rectangle] | None = None
    """Pixels without a sensor, each as its inclusive corners x0, y0, x1, y1, like `module_positions`."""
    fast: Vector = [-1.0, 0.0, 0.0]
    slow: Vector = [0.0, -1.0, 0.0]
    pixel_mask_applied: bool = False
    flatfield_applied: bool = False
    countrate_correction_applied: bool = False
    distance_m: Positive | None = None
    beam_center_pixel: Pair | None = None
    count_time_s: Positive | None = None
    frame_time_s: Positive | None = None
    threshold_energy_ev: Positive | None = None
    gain_setting: Text | None = None


class Axis(_Part):
    """An axis of rotation, with its direction in the coordinates of NeXus."""

    name: AxisName
    vector: Vector


class ScanAxis(_Part):
    """The axis that usually rotates the sample during a run."""

    name: AxisName | None = None
    vector: Vector | None = None


class Sample(_Part):
    """The sample."""

    name: Text | None = None
    temperature_k: Positive | None = None


class Beam(_Part):
    """The beam at the sample."""

    energy_kev: Positive | None = None
    wavelength_angstrom: Positive | None = None
    flux_hz: Positive | None = None
    size_m: PositivePair | None = None
    transmission: Annotated[float, Field(ge=0, le=1)] | None = None

    @property
    def wavelength(self) -> float | None:
        """Return the wavelength in angstrom."""
        if self.energy_kev is not None:
            return ENERGY_TIMES_WAVELENGTH / self.energy_kev
        return self.wavelength_angstrom

    @property
    def energy(self) -> float | None:
        """Return the energy in keV."""
        return None if self.wavelength is None else ENERGY_TIMES_WAVELENGTH / self.wavelength


class Scan(_Part):
    """A rotation of the sample at constant speed: image k is exposed from `start + k * increment` on."""

    axis: AxisName | None = None
    start_deg: Number | None = None
    increment_deg: Number | None = None


class RunMetadata(_Part):
    """All values that are known; `scan` is None for still images.

    `definition` in a `start` asks for a file of this application definition at the end of the run.
    """

    definition: Literal["NXmx"] | None = None
    start_time: Time | None = None
    end_time: Time | None = None
    source: Source = Source()
    instrument: Instrument = Instrument()
    detector: Detector = Detector()
    scan_axis: ScanAxis = ScanAxis()
    sample_axes: list[Axis] = []
    """From the laboratory to the sample; the scan axis is the first of all unless it is among them."""
    sample: Sample = Sample()
    beam: Beam = Beam()
    scan: Scan | None = None
    axes: dict[AxisName, Number] = {}

    @property
    def scan_axis_name(self) -> str | None:
        """Return the name of the axis that rotates during the run."""
        return (self.scan and self.scan.axis) or self.scan_axis.name

    def goniometer(self) -> list[Axis]:
        """Return the axes from the laboratory to the sample, the scan axis among them if it is known."""
        name, vector = self.scan_axis_name, self.scan_axis.vector
        if name is None or any(axis.name == name for axis in self.sample_axes):
            return self.sample_axes
        if vector is None or self.scan_axis.name not in (None, name):
            return self.sample_axes
        return [Axis(name=name, vector=vector), *self.sample_axes]
