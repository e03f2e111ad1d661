"""What a scan of BEC means for the detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import pytest

from stddaq_bec.scan import ScanFiles, ScanImages
from stddaq_ophyd.core.errors import AcquisitionError


@dataclass
class Message:
    num_points: int | None = 1
    num_monitored_readouts: int | None = 0
    scan_type: str | None = "software_triggered"
    scan_parameters: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Message(num_points=5, scan_parameters={"frames_per_trigger": 3}), 15),
        # A burst at each point.
        (Message(num_points=1, num_monitored_readouts=4, scan_parameters={"frames_per_trigger": 2}), 8),
        # BEC does not know the number of points.
        (Message(num_points=None, num_monitored_readouts=None), 1),
        (Message(num_points=7, scan_parameters={"frames_per_trigger": None}), 7),
    ],
)
def test_the_number_of_images_is_that_of_points_and_frames(message: Message, expected: int):
    assert ScanImages.of(message).expected == expected


def test_exposure_and_readout_add_up():
    parameters = {"exp_time": 0.5, "readout_time": 0.25}
    assert ScanImages.of(Message(scan_parameters=parameters)).seconds == 0.75
    assert ScanImages.of(Message(scan_parameters={"exp_time": None})).seconds == 0


@pytest.mark.parametrize(
    ("scan_type", "expected"),
    [
        ("step", False),
        ("software_triggered", False),
        (None, False),
        ("fly", True),
        ("hardware_triggered", True),
    ],
)
def test_the_hardware_triggers_by_both_names(scan_type: str | None, expected: bool):
    assert ScanImages.of(Message(scan_type=scan_type)).is_hardware_triggered is expected


def test_files_extend_the_name_that_bec_gives():
    files = ScanFiles.beside(Path("/data/S1/S00001_gf.h5"), None, None, "gf")
    assert (files.directory, files.prefix) == (Path("/data/S1"), "S00001_gf_")
    assert files.master == Path("/data/S1/S00001_gf_Master.h5")
    assert files.link == Path("/data/S1/S00001_gf.h5")


def test_the_link_leads_to_a_master_file_that_is_made_later(tmp_path: Path):
    files = ScanFiles.beside(tmp_path / "S00001_gf.h5", None, None, "gf")
    files.write_link()
    with h5py.File(files.master, "w") as file:
        file["entry/data/data"] = [1, 2, 3]
    with h5py.File(files.link) as file:
        data: Any = file["entry/data/data"]
        assert data[:].tolist() == [1, 2, 3]


def test_the_driver_sees_a_root_under_another_name():
    files = ScanFiles.beside(Path("/data/p1/S1/S00001_gf.h5"), Path("/data"), Path("/gpfs/x"), "gf")
    assert files.directory == Path("/gpfs/x/p1/S1")
    assert files.master == Path("/data/p1/S1/S00001_gf_Master.h5")


def test_a_file_outside_the_root_is_refused():
    with pytest.raises(
        AcquisitionError, match=r"gf: read_root: expected .*/elsewhere/S00001_gf.h5, got /data"
    ):
        ScanFiles.beside(Path("/elsewhere/S00001_gf.h5"), Path("/data"), Path("/gpfs"), "gf")
