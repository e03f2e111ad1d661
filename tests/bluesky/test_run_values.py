"""Devices keep with a run what signals, and the start document of the plan, say."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import h5py
import pytest
from bluesky import RunEngine
from bluesky.plans import count
from bluesky.utils import FailedStatus
from ophyd import Signal, SoftPositioner
from ophyd_async.core import soft_signal_rw
from support.assertions.plans import PointCamera
from support.data.nexus_metadata import STILLS
from support.data.raw_files import dataset

import stddaq
from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.async_detector import AsyncStdDaqDetector
from stddaq_ophyd.core.errors import SettingError
from stddaq_ophyd.core.units import converted
from stddaq_ophyd.plans import tomography

MakeDetector = Callable[..., tuple[StdDaqDetector, PointCamera]]
MakeAsyncDetector = Callable[..., tuple[AsyncStdDaqDetector, PointCamera]]

OF_DETECTOR = {
    key: value for key, value in STILLS["detector"].items() if key not in ("distance_m", "count_time_s")
}
CONFIG = {"source": STILLS["source"], "instrument": STILLS["instrument"], "detector": OF_DETECTOR}


class BrokenSignal(Signal):
    """A channel that is not connected."""

    def read(self) -> Any:
        raise TimeoutError("not connected")


def run_of(camera: PointCamera) -> stddaq.Run:
    (master,) = camera.rig.directory.glob("*Master.h5")
    return stddaq.open_run(master)


def test_signals_and_the_start_document_complete_an_nxmx_file(engine: RunEngine, make_detector: MakeDetector):
    distance = SoftPositioner(name="det_z", egu="mm", init_pos=250.0)
    energy = Signal(name="energy", value=12400.0, metadata={"units": "eV"})
    det, camera = make_detector(
        rig={"nexus": CONFIG},
        exposure_time=0.01,
        engine=engine,
        nexus={
            "definition": "NXmx",
            "beam.energy_kev": energy,
            "detector.distance_m": distance,
            "sample": {"name": "sample_name"},
        },
    )
    (uid,) = engine(count([det], 3), sample_name="lysozyme")  # pyright: ignore[reportGeneralTypeIssues, reportAssignmentType]
    run = run_of(camera)
    assert run.metadata == {"uid": uid, "scan_id": 1, "plan_name": "count"}
    assert run.nexus is not None
    assert run.nexus["detector.distance_m"] == {"value": 0.25, "from": "start"}
    assert run.nexus["sample.name"] == {"value": "lysozyme", "from": "annotate 1"}
    (path,) = camera.rig.directory.glob("*_master.h5")
    with h5py.File(path) as file:
        assert dataset(file, "entry/definition")[()] == b"NXmx"
        assert dataset(file, "entry/instrument/beam/incident_energy")[()] == pytest.approx(12400)
        assert dataset(file, "entry/instrument/detector/count_time")[()] == 0.01


def test_a_second_run_keeps_its_own_start_document(engine: RunEngine, make_detector: MakeDetector):
    det, camera = make_detector(engine=engine)
    uids = [engine(count([det], 1))[0] for _ in range(2)]  # pyright: ignore[reportIndexIssue]
    masters = sorted(camera.rig.directory.glob("*Master.h5"))
    kept = [stddaq.open_run(master).metadata or {} for master in masters]
    assert [metadata["uid"] for metadata in kept] == uids


def test_signals_of_ophyd_async_are_read(engine: RunEngine, make_async_detector: MakeAsyncDetector):
    distance = soft_signal_rw(float, 250.0, units="mm", name="det_z")
    det, camera = make_async_detector(
        engine=engine, nexus={"detector.distance_m": distance, "sample.name": "sample_name"}
    )
    (uid,) = engine(count([det], 2), sample_name="bone")  # pyright: ignore[reportGeneralTypeIssues, reportAssignmentType]
    run = run_of(camera)
    assert run.nexus is not None
    assert (run.nexus["detector.distance_m"]["value"], run.nexus["sample.name"]["value"]) == (0.25, "bone")
    assert run.metadata is not None
    assert run.metadata["uid"] == uid


def test_values_of_the_device_are_in_the_file_of_a_tomography(engine: RunEngine, make_detector: MakeDetector):
    det, camera = make_detector(engine=engine, nexus={"sample.name": "sample_name", "beam.energy_kev": 20})
    motors: dict[str, Any] = {
        name: SoftPositioner(name=name, init_pos=0) for name in ("rotation", "shutter", "sample")
    }
    positions: dict[str, Any] = {"start": 0, "stop": 180, "num": 2, "sample_in": 0, "sample_out": 1}
    engine(tomography([det], **motors, **positions, n_darks=1, n_flats=1), sample_name="bone")
    (path,) = camera.rig.directory.glob("*_tomo.h5")
    with h5py.File(path) as file:
        assert dataset(file, "entry0000/definition")[()] == b"NXtomo"
        assert dataset(file, "entry0000/sample/name").asstr()[()] == "bone"


def test_values_that_cannot_be_had_cost_no_image(
    engine: RunEngine, make_detector: MakeDetector, caplog: pytest.LogCaptureFixture
):
    det, camera = make_detector(
        engine=engine,
        nexus={
            "beam.energy_kev": BrokenSignal(name="energy"),
            "detector.distance_m": SoftPositioner(name="det_z", egu="mm", init_pos=-1.0),
            "sample.temperature_k": Signal(name="temperature", value=20.0, metadata={"units": "degC"}),
            "sample.name": "no_such_key",
        },
    )
    with caplog.at_level(logging.WARNING):
        engine(count([det], 2))
    run = run_of(camera)
    assert len(run) == 2
    assert run.nexus is not None
    assert run.nexus.keys() == {"sample.temperature_k", "start_time", "end_time"}
    assert run.nexus["sample.temperature_k"]["value"] == pytest.approx(293.15)
    messages = [record.getMessage() for record in caplog.records]
    assert any("beam.energy_kev cannot be read: not connected" in message for message in messages)
    assert any("detector.distance_m: expected a value greater than 0" in message for message in messages)


def test_a_signal_in_a_unit_of_another_kind_is_refused(engine: RunEngine, make_detector: MakeDetector):
    distance = SoftPositioner(name="det_z", egu="deg", init_pos=1.0)
    det, _ = make_detector(nexus={"detector.distance_m": distance})
    with pytest.raises(FailedStatus) as failure:
        engine(count([det], 1))
    assert "nexus: detector.distance_m: expected a signal in one of m, cm" in str(failure.value.__cause__)


@pytest.mark.parametrize(
    ("nexus", "reason"),
    [
        ({"beam.energy": 5}, r'nexus: expected keys such as beam\.energy_kev, got "beam\.energy"'),
        ({"sample.name": "sample"}, "nexus: expected engine=RE for keys of the start document"),
    ],
)
def test_values_that_no_run_can_have_are_refused(nexus: dict[str, Any], reason: str):
    with pytest.raises(SettingError, match=reason):
        StdDaqDetector("ws://127.0.0.1:1", name="det", paths="/tmp", nexus=nexus)


@pytest.mark.parametrize(
    ("key", "value", "unit", "expected"),
    [
        ("beam.energy_kev", 8000, "eV", 8),
        ("detector.threshold_energy_ev", 6.2, "keV", 6200),
        ("detector.pixel_size_m", [75, 50], "um", [7.5e-5, 5e-5]),
        ("beam.wavelength_angstrom", 0.1, "nm", 1),
        ("scan.start_deg", 3.141592653589793, "rad", 180),
        ("axes.kappa", 3.141592653589793, "rad", 180),
        ("detector.count_time_s", 5, "ms", 0.005),
        ("sample.name", "x", "eV", "x"),
        ("beam.energy_kev", 8, "", 8),
    ],
)
def test_units_are_converted(key: str, value: Any, unit: str, expected: Any):
    assert converted(key, value, unit) == (expected if isinstance(expected, str) else pytest.approx(expected))
