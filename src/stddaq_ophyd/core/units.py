"""Convert the values of signals into the units that the keys of metadata name: `energy_kev`, `distance_m`."""

from __future__ import annotations

from typing import Any

from stddaq.text import mismatch, shown
from stddaq_ophyd.core.errors import SettingError

_LENGTHS = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "μm": 1e-6, "micron": 1e-6, "nm": 1e-9}
_ENERGIES = {"eV": 1.0, "keV": 1e3, "MeV": 1e6}
_ANGLES = {"deg": 1.0, "degree": 1.0, "degrees": 1.0, "°": 1.0, "rad": 57.29577951308232}
# By the end of a key: the factor of each unit.
_FACTORS = {
    "m": _LENGTHS,
    "angstrom": {"angstrom": 1.0, "Angstrom": 1.0, "Å": 1.0, "nm": 10.0},
    "ev": _ENERGIES,
    "kev": {unit: factor / 1e3 for unit, factor in _ENERGIES.items()},
    "s": {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0},
    "deg": _ANGLES | {"mrad": _ANGLES["rad"] / 1e3},
    "hz": {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "1/s": 1.0, "ph/s": 1.0},
    "k": {"K": 1.0, "degC": 1.0, "°C": 1.0, "C": 1.0},
    "pixel": {"pixel": 1.0, "pixels": 1.0, "px": 1.0, "pix": 1.0},
}
_CELSIUS = {"degC", "°C", "C"}
_ZERO_CELSIUS_K = 273.15


def converted(key: str, value: Any, unit: str) -> Any:
    """Return a value of `unit` in the unit that `key` names. Without a unit it is in that of the key.

    Raise `SettingError` for a unit of another kind.
    """
    kind = "deg" if key.startswith("axes.") else key.rpartition("_")[2]
    factors = _FACTORS.get(kind) if "_" in key or key.startswith("axes.") else None
    if factors is None or not unit:
        return value
    if unit not in factors:
        raise SettingError(mismatch(f"nexus: {key}", f"a signal in one of {', '.join(factors)}", shown(unit)))
    if isinstance(value, list):
        return [converted(key, one, unit) for one in value]
    if unit in _CELSIUS:
        return value + _ZERO_CELSIUS_K
    return value if factors[unit] == 1.0 else value * factors[unit]
