"""The metadata of a run, merged from several origins.

They come in layers: what the driver recorded, the configuration, the start of the run, then the files and
options of `stddaq nexus`. A later layer replaces single values of an earlier one. Each value keeps where it
came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stddaq.config.model import parse_json, read_json
from stddaq.errors import ConfigError
from stddaq.text import mismatch, shown, shown_key
from stddaq.validation import explain
from stddaq.wire.run_defaults import DEFAULT_N_IMAGE

if TYPE_CHECKING:
    from stddaq.run_metadata import RunMetadata


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
        values = flat(self.values.model_dump(exclude_unset=True))
        return json.dumps({key: {"value": values[key], "from": self.origins[key]} for key in sorted(values)})

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
        found = flat(content)
        energies = found.keys() & _ENERGIES
        if len(energies) > 1:
            raise ConfigError(mismatch(f"{origin}: beam", "energy_kev or wavelength_angstrom", "both"))
        if energies:
            for key in _ENERGIES:
                values.pop(key, None)
        values |= found
        origins |= dict.fromkeys(found, origin)
    merged = _check("metadata", nested(values))
    _check_names(merged)
    return Metadata(merged, origins, expected_images)


def layer_of_file(path: Path) -> Layer:
    """Read a JSON file. A relative `mask_file` in it is beside the file. Raise `ConfigError`."""
    content = read_json(path)
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
    return Layer("--set", nested(values))


def layer_of_account(account: Mapping[str, Any]) -> Layer:
    """Return what the driver recorded: the times of the run."""
    keys = {"start_time": "started_at"}
    if account.get("outcome") == "file_saved":
        keys["end_time"] = "finished_at"
    return Layer("account of the run", {name: account[key] for name, key in keys.items() if account.get(key)})


def layers_of_run(account: Mapping[str, Any] | None, stored: Mapping[str, Any] | None) -> list[Layer]:
    """Return the layers of a run: of the driver's account, and of what its master file keeps of metadata.

    Raise `ConfigError`.
    """
    return [layer_of_account(account or {}), *layers_of_origins(stored or {})]


def expected_images(account: Mapping[str, Any]) -> int | None:
    """Return how many images the run was to have; None if it had no number."""
    n_image = account.get("n_image", DEFAULT_N_IMAGE)
    return None if n_image == DEFAULT_N_IMAGE else n_image


def layers_of_origins(stored: Mapping[str, Any]) -> list[Layer]:
    """Return the layers of what `Metadata.as_json` wrote. Raise `ConfigError`."""
    layers: dict[str, dict[str, Any]] = {}
    for key, entry in stored.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("from"), str) or "value" not in entry:
            raise ConfigError(
                mismatch(f"nexus.{shown_key(key)}", "an object of value and from", shown(entry))
            )
        layers.setdefault(entry["from"], {})[key] = entry["value"]
    return [Layer(origin, nested(values)) for origin, values in layers.items()]


_ENERGIES = {"beam.energy_kev", "beam.wavelength_angstrom"}


def _check(origin: str, content: Mapping[str, Any]) -> RunMetadata:
    # Not at the top: services do without pydantic in runs without such metadata.
    from pydantic import ValidationError

    from stddaq.run_metadata import RunMetadata

    try:
        return RunMetadata.model_validate(content)
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


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested objects by their keys, `beam.energy_kev`, without those that are None."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested objects of values by their keys. Raise `ConfigError`."""
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
