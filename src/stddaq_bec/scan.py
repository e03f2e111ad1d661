"""What a scan of BEC means for a detector: where its files go, and how many images it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py

from stddaq.files.names import master_file_name
from stddaq.files.nexus import ENTRY
from stddaq.text import mismatch
from stddaq_ophyd.core.errors import AcquisitionError

# Names that BEC has used for scans in which the hardware triggers.
_HARDWARE_TRIGGERED = ("hardware_triggered", "fly")


class ScanMessage(Protocol):
    """What is read of BEC's `ScanStatusMessage`."""

    scan_parameters: dict[str, Any]
    num_points: int | None
    num_monitored_readouts: int | None

    @property
    def scan_type(self) -> str | None:
        """Return who triggers."""
        ...


@dataclass(frozen=True, slots=True)
class ScanImages:
    """The images of a scan.

    Attributes:
        per_trigger: images of one software trigger.
        seconds: exposure and readout of one image.
        expected: images of the whole scan, as far as BEC knows.
        is_hardware_triggered: the images come without `trigger`.
    """

    per_trigger: int
    seconds: float
    expected: int
    is_hardware_triggered: bool

    @classmethod
    def of(cls, message: ScanMessage) -> ScanImages:
        """Return what the status message of a scan says."""
        parameters = message.scan_parameters
        per_trigger = int(parameters.get("frames_per_trigger") or 1)
        # A burst at each point has one point and a readout for each trigger.
        n_points = max(message.num_points or 1, message.num_monitored_readouts or 0)
        return cls(
            per_trigger,
            _seconds(parameters, "exp_time") + _seconds(parameters, "readout_time"),
            n_points * per_trigger,
            message.scan_type in _HARDWARE_TRIGGERED,
        )


def _seconds(parameters: Mapping[str, Any], name: str) -> float:
    return max(0.0, float(parameters.get(name) or 0.0))


@dataclass(frozen=True, slots=True)
class ScanFiles:
    """Where the files of a scan go.

    Attributes:
        directory: as the driver and its writers see it.
        prefix: the names of all files begin with it.
        master: the master file as BEC sees it.
        link: the file whose name BEC gives to the device.
    """

    directory: Path
    prefix: str
    master: Path
    link: Path

    @classmethod
    def beside(cls, path: Path, read_root: Path | None, write_root: Path | None, device: str) -> ScanFiles:
        """Return files whose names extend that of `path`, which BEC gives to the device.

        The driver sees the directory `read_root` of BEC's host as `write_root`. Raise `AcquisitionError` when
        the file is elsewhere.
        """
        directory = path.parent
        if read_root is not None and write_root is not None:
            if not directory.is_relative_to(read_root):
                raise AcquisitionError(
                    mismatch(
                        f"{device}: read_root",
                        f"a directory that contains BEC's file {path}",
                        str(read_root),
                        "see file_writer.base_path in the configuration of BEC's services",
                    )
                )
            directory = write_root / directory.relative_to(read_root)
        prefix = f"{path.stem}_"
        return cls(directory, prefix, path.with_name(master_file_name(prefix)), path)

    def write_link(self) -> None:
        """Write a file that leads to the master file. Raise `OSError`.

        BEC drops references to files that do not exist when a scan ends, which after an abort is before the
        master file is made.
        """
        with h5py.File(self.link, "w", locking=False) as file:
            file[ENTRY] = h5py.ExternalLink(self.master.name, ENTRY)
