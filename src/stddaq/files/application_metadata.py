"""What an application file says about a run beside its images: source, beam, geometry, sample.

The values come in layers: what the driver recorded, then the files and options of `stddaq nexus`. A later
layer replaces single values of an earlier one. Each value keeps where it came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from stddaq.config.model import parse_json
from stddaq.errors import ConfigError
from stddaq.text import mismatch, shown, shown_key
from stddaq.validation import explain

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
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
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
    saturation_value: int | None = None
    underload_value: int | None = None
    mask_file: Text | None = None
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


class Scan(_Part):
    """A rotation of the sample at constant speed: image k is exposed from `start + k * increment` on."""

    axis: AxisName | None = None
    start_deg: Number | None = None
    increment_deg: Number | None = None


class RunMetadata(_Part):
    """All values that are known. `scan` is None for still images."""

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


class Layer(NamedTuple):
    """Values of one origin: a JSON object of the keys of `RunMetadata`."""

    origin: str
    content: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Metadata:
    """Merged layers.

    Attributes:
        origins: of each value, by its key: `beam.energy_kev`.
        expected_images: the images that the run was to have; None if it had no number.
    """

    values: RunMetadata
    origins: Mapping[str, str]
    expected_images: int | None = None

    def as_json(self) -> str:
        """Return each value with where it came from, as a JSON object."""
        flat = _flat(self.values.model_dump(exclude_unset=True))
        return json.dumps({key: {"value": flat[key], "from": self.origins[key]} for key in sorted(flat)})

    def end_time_estimated(self) -> datetime | None:
        """Return when the last image was or should have been taken."""
        frame_time, start = self.values.detector.frame_time_s, self.values.start_time
        if start is not None and frame_time is not None and self.expected_images is not None:
            # Of any number that a client may ask for.
            seconds = min(frame_time * self.expected_images, 1e9)
            return datetime.fromtimestamp(datetime.fromisoformat(start).timestamp() + seconds, UTC)
        return None if self.values.end_time is None else datetime.fromisoformat(self.values.end_time)


def merge(layers: Sequence[Layer], expected_images: int | None = None) -> Metadata:
    """Merge layers, of which a later one wins. Raise `ConfigError`, which names the origin of a mistake."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, content in layers:
        _check(origin, content)
        found = _flat(content)
        energies = found.keys() & _ENERGIES
        if len(energies) > 1:
            raise ConfigError(mismatch(f"{origin}: beam", "energy_kev or wavelength_angstrom", "both"))
        if energies:
            for key in _ENERGIES:
                values.pop(key, None)
        values |= found
        origins |= dict.fromkeys(found, origin)
    merged = _check("metadata", _nested(values))
    _check_names(merged)
    return Metadata(merged, origins, expected_images)


def layer_of_file(path: Path) -> Layer:
    """Read a JSON file. A relative `mask_file` in it is beside the file. Raise `ConfigError`."""
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", error.mistakes) from error
    if not isinstance(content, dict):
        raise ConfigError(mismatch(str(path), "a JSON object", shown(content)))
    _check(str(path), content)
    detector = content.get("detector", {})
    if "mask_file" in detector:
        detector["mask_file"] = str(path.parent / detector["mask_file"])
    return Layer(str(path), content)


def layer_of_options(options: Sequence[str]) -> Layer:
    """Return the values of options KEY=VALUE: JSON, or else text. Raise `ConfigError`."""
    values: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise ConfigError(mismatch("--set", "KEY=VALUE such as detector.distance_m=0.2", shown(option)))
        try:
            values[key] = parse_json(text.encode())
        except ConfigError:
            values[key] = text
    return Layer("--set", _nested(values))


def layer_of_account(account: Mapping[str, Any]) -> Layer:
    """Return what the driver recorded: the times of the run."""
    keys = {"start_time": "started_at"}
    if account.get("outcome") == "file_saved":
        keys["end_time"] = "finished_at"
    return Layer("account of the run", {name: account[key] for name, key in keys.items() if account.get(key)})


_ENERGIES = {"beam.energy_kev", "beam.wavelength_angstrom"}


def _check(origin: str, content: Mapping[str, Any]) -> RunMetadata:
    try:
        return RunMetadata.model_validate(dict(content))
    except ValidationError as error:
        mistakes = [explain(mistake, "metadata") for mistake in error.errors(include_url=False)]
        raise ConfigError(f"{origin}: {'; '.join(mistakes)}", mistakes) from error


def _check_names(values: RunMetadata) -> None:
    names = [axis.name for axis in values.goniometer()]
    if len(set(names)) < len(names):
        raise ConfigError(mismatch("sample_axes", "names of their own", shown(names)))
    derived = {f"{name}_{suffix}" for name in names for suffix in ("end", "increment_set")}
    if derived & set(names):
        raise ConfigError(mismatch("sample_axes", "no name that another axis needs", shown(names)))
    unknown = sorted(values.axes.keys() - set(names))
    if unknown:
        raise ConfigError(mismatch("axes", f"axes of sample_axes ({', '.join(names)})", shown(unknown[0])))


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value
    return found


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        part = content
        for group in groups:
            part = part.setdefault(group, {})
            if not isinstance(part, dict):
                raise ConfigError(mismatch(shown_key(key), f"values of {shown_key(group)} only", shown(part)))
        part[name] = value
    return content
