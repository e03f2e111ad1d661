"""Gains and pedestals of Jungfrau modules, from HDF5 files.

Two kinds of files are accepted. The file of std_daq has the factors in `/gains`, by which pixels are
multiplied, and in spite of its name the pedestals in `/gainsRMS`; both (3, rows, columns), for G0, G1, G2.
The files of PSI are two: gains in ADU per keV, which divide, and pedestals. Both may have tables for high
gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stddaq.config import DetectorConfig
from stddaq.config.modules import JUNGFRAU_SIZE, ModulePlace, expected_modules, module_places
from stddaq.errors import ConfigError
from stddaq.text import mismatch

GAINS, PEDESTALS, MASK = "gains", "gainsRMS", "pixel_mask"
N_GAINS = 3
# Tables of a PSI gain file: G0, G1, G2 and, of high gain, either G0 alone or all three.
PSI_GAINS = (4, 6)
PSI_PEDESTALS = (3, 4)
# Position of G0, G1 and G2 by the gain bits of a pixel; 2 does not occur.
_BY_BITS = (0, 1, None, 2)


@dataclass(frozen=True, slots=True)
class GainTables:
    """float32 (4, rows, columns) by the gain bits of a pixel. The factor of a bad pixel is NaN."""

    pedestals: np.ndarray
    factors: np.ndarray

    @classmethod
    def of(cls, pedestals: np.ndarray, factors: np.ndarray, mask: np.ndarray | None) -> GainTables:
        """Make the tables from those of G0, G1 and G2. Pixels where `mask` is not 0 are bad."""
        shape = (len(_BY_BITS), *JUNGFRAU_SIZE)
        by_bits = cls(np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32))
        for bits, gain in enumerate(_BY_BITS):
            if gain is not None:
                by_bits.pedestals[bits], by_bits.factors[bits] = pedestals[gain], factors[gain]
        if mask is not None:
            by_bits.factors[:, mask != 0] = np.nan
        return by_bits


@dataclass(frozen=True, slots=True)
class GainParameters:
    """The tables of one module. `high` are those of high gain, or again `low` if the files have none."""

    low: GainTables
    high: GainTables

    @property
    def has_high_gain(self) -> bool:
        """Whether high gain has tables of its own."""
        return self.high is not self.low


def read_std_daq_file(path: str, config: DetectorConfig, module: int) -> GainParameters:
    """Read the file of `--gains_and_pedestals`. Raise `ConfigError`."""
    cut = _Cut(config, module)
    with _File(path) as file:
        factors = file.read(GAINS, cut, (N_GAINS,))
        pedestals = file.read(PEDESTALS, cut, (N_GAINS,))
        mask = file.read(MASK, cut, None) if MASK in file else None
    tables = GainTables.of(pedestals, factors, mask)
    return GainParameters(tables, tables)


def read_psi_files(gain_path: str, pedestal_path: str, config: DetectorConfig, module: int) -> GainParameters:
    """Read the files of `--gain_file` and `--pedestal_file`. Raise `ConfigError`."""
    cut = _Cut(config, module)
    with _File(gain_path) as file:
        gains = file.read(GAINS, cut, PSI_GAINS)
    with _File(pedestal_path) as file:
        pedestals = file.read(GAINS, cut, PSI_PEDESTALS)
        mask = file.read(MASK, cut, None) if MASK in file else None
    with np.errstate(divide="ignore"):
        factors = 1 / gains
    factors[~np.isfinite(factors)] = np.nan
    low = GainTables.of(pedestals, factors, mask)
    # Tables that the files do not have are those of low gain.
    high_factors, high_pedestals = factors[:N_GAINS].copy(), pedestals[:N_GAINS].copy()
    high_factors[: len(factors) - N_GAINS] = factors[N_GAINS:]
    high_pedestals[: len(pedestals) - N_GAINS] = pedestals[N_GAINS:]
    return GainParameters(low, GainTables.of(high_pedestals, high_factors, mask))


class _Cut:
    """The part of a data set that belongs to one module, in each of the accepted shapes (rows, columns)."""

    def __init__(self, config: DetectorConfig, module: int) -> None:
        self._height, self._width = config.image_shape
        self._module = module
        self._n_modules = max(config.n_modules, *expected_modules(config))
        places = module_places(config)
        self._place: ModulePlace | None = places.get(module)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """What is accepted: the image, all modules by index, one module."""
        rows, columns = JUNGFRAU_SIZE
        return [(self._height, self._width), (self._n_modules * rows, columns), (rows, columns)]

    def slices(self, shape: tuple[int, ...]) -> tuple[slice, slice] | None:
        """Return the module's part of a data set of this shape; None if the shape does not fit."""
        image, stacked, single = self.shapes
        rows = JUNGFRAU_SIZE[0]
        if shape == image and self._place is not None:
            area = self._place.area
            return slice(area.top, area.bottom), slice(area.left, area.right)
        if shape == stacked:
            return slice(self._module * rows, (self._module + 1) * rows), slice(None)
        return (slice(None), slice(None)) if shape == single else None


class _File:
    """An HDF5 file whose data sets are checked before they are read."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._file = h5py.File(path, "r", locking=False)
        except OSError as error:
            reason = "no such file" if not Path(path).exists() else "not a readable HDF5 file"
            if isinstance(error, PermissionError):
                reason = "permission denied"
            raise ConfigError(f"{path}: cannot be read: {reason}") from error

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def read(self, name: str, cut: _Cut, n_tables: tuple[int, ...] | None) -> np.ndarray:
        """Return the part of a module of a data set: (tables, rows, columns), or (rows, columns) for None."""
        data = self._file.get(name)
        where = f"{self._path}: /{name}"
        counts = [()] if n_tables is None else [(n,) for n in n_tables]
        allowed = " or ".join(str((*count, *shape)) for count in counts for shape in cut.shapes)
        if not isinstance(data, h5py.Dataset):
            raise ConfigError(mismatch(where, f"a data set of shape {allowed}", "none"))
        is_number = data.dtype.kind in "iufb" and data.external is None and not data.is_virtual
        slices = cut.slices(data.shape[len(counts[0]) :])
        if not is_number or slices is None or data.shape[: len(counts[0])] not in counts:
            raise ConfigError(mismatch(where, f"numbers of shape {allowed}", f"{data.dtype} of {data.shape}"))
        return np.asarray(data[(..., *slices)], np.float64)
