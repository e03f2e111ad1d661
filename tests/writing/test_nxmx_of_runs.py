"""The driver makes the NXmx file of a run whose metadata are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.data.nexus_metadata import SCAN
from support.data.raw_files import dataset
from support.processes.deployment import wait_until
from support.processes.recording import MakeRig, Rig, assert_saved, images_of

import stddaq
from stddaq.client import CommandRefusedError
from stddaq.files.info import describe

OF_INSTRUMENT = {key: SCAN[key] for key in ("source", "instrument", "detector", "scan_axis")}
OF_RUN = {key: SCAN[key] for key in ("sample", "beam", "scan")}


def nexus_missing(rig: Rig, nexus: dict[str, Any], **fields: Any) -> Any:
    return rig.client.check(rig.directory, nexus=nexus, **fields).raw.get("nexus_missing")


def test_run_with_all_metadata_has_an_nxmx_file(make_rig: MakeRig, tmp_path: Path):
    np.save(tmp_path / "mask.npy", np.eye(32, 48, dtype=np.uint8))
    detector = OF_INSTRUMENT["detector"] | {"mask_file": str(tmp_path / "mask.npy")}
    rig = make_rig(nexus=OF_INSTRUMENT | {"detector": detector})
    images = images_of([i for i in range(20) if i != 7])
    run_metadata = OF_RUN | {"definition": "NXmx"}
    assert nexus_missing(rig, run_metadata) == []
    assert_saved(rig.record(images, nexus=run_metadata), images)
    path = rig.path("file_master.h5")
    assert describe(path).kind == "NXmx"
    with h5py.File(path) as file:
        shown = dataset(file, "entry/data/data")
        assert shown.shape == (20, 32, 48)
        for image in images:
            np.testing.assert_array_equal(shown[image.image_id], image.pixels)
        assert (shown[7] == 65535).all()
        assert dataset(file, "entry/instrument/detector/pixel_mask")[()].sum() == 32
    found = stddaq.open_run(rig.path("fileMaster.h5")).nexus
    assert found is not None
    assert found["sample.name"] == {"value": "lysozyme", "from": "start"}
    assert found["source.name"] == {"value": "Swiss Light Source", "from": "configuration"}


def test_run_that_lacks_metadata_says_so_and_can_be_completed(make_rig: MakeRig):
    rig = make_rig(nexus=OF_INSTRUMENT)
    images = images_of(range(10))
    nexus = {"definition": "NXmx", "sample": {"name": "lysozyme"}, "scan": {"start_deg": 5}}
    assert nexus_missing(rig, nexus) == ["beam.energy_kev", "scan.increment_deg"]
    assert nexus_missing(rig, {"sample": {"name": "lysozyme"}}) is None
    assert_saved(rig.record(images, nexus=nexus), images)
    assert not rig.path("file_master.h5").exists()
    made = rig.deployment.run(
        *(rig.deployment.stddaq, "nexus", rig.directory, "--definition", "NXmx"),
        *("--set", "beam.energy_kev=12.4", "--set", "scan.increment_deg=0.5"),
    )
    assert made.wait() == 0, made.stderr
    with h5py.File(rig.path("file_master.h5")) as file:
        omega = dataset(file, "entry/sample/transformations/omega")
        np.testing.assert_allclose(omega[()], 5 + 0.5 * np.arange(10))
        origins = json.loads(str(dataset(file, "entry/stddaq/nexus").asstr()[()]))
        assert [origins[key]["from"] for key in ("scan.start_deg", "beam.energy_kev")] == ["start", "--set"]


def test_run_whose_metadata_contradict_each_other_is_recorded_without_the_file(make_rig: MakeRig):
    rig = make_rig(nexus=OF_INSTRUMENT)
    images = images_of(range(4))
    nexus = OF_RUN | {"definition": "NXmx", "scan": {"start_deg": 5, "increment_deg": 0}}
    assert nexus_missing(rig, nexus) == ["scan.increment_deg"]
    assert_saved(rig.record(images, nexus=nexus), images)
    assert not rig.path("file_master.h5").exists()


def test_gaps_between_modules_are_masked(make_rig: MakeRig):
    """Two Eiger modules with a gap of 2 columns between them, and one between the chips of each."""
    rig = make_rig(
        detector_type="eiger",
        n_modules=2,
        image_pixel_height=260,
        image_pixel_width=1030,
        module_positions={"0": [0, 255, 513, 0], "1": [516, 0, 1029, 255]},
        nexus=OF_INSTRUMENT,
    )
    images = images_of(range(4), shape=(260, 1030))
    assert_saved(rig.record(images, nexus=OF_RUN | {"definition": "NXmx"}), images)
    expected = np.zeros((260, 1030), "u4")
    for first in (256, 514, 772):
        expected[:, first : first + 2] = 1
    expected[256:] = 1
    with h5py.File(rig.path("file_master.h5")) as file:
        for name in ("pixel_mask", "detectorSpecific/pixel_mask"):
            np.testing.assert_array_equal(dataset(file, f"entry/instrument/detector/{name}")[()], expected)
    # The master file keeps the gaps for a later `stddaq nexus`.
    assert "detector.gaps" in (stddaq.open_run(rig.path("fileMaster.h5")).nexus or {})


def test_nxmx_file_that_fails_costs_no_image(make_rig: MakeRig):
    detector = OF_INSTRUMENT["detector"] | {"mask_file": "/none.npy"}
    rig = make_rig(nexus=OF_INSTRUMENT | {"detector": detector})
    images = images_of(range(10))
    assert_saved(rig.record(images, nexus=OF_RUN | {"definition": "NXmx"}), images)
    assert not rig.path("file_master.h5").exists()

    def warnings() -> list[str]:
        lines = [line for writer in rig.writers for line in (*writer.stdout, *writer.stderr)]
        return [line for line in lines if "the NXmx file was not created" in line]

    (warning,) = wait_until(warnings, what="the warning")
    assert "/none.npy: cannot be read" in warning


@pytest.mark.parametrize(
    ("nexus", "reason"),
    [
        ({"detector": {"sensor_material": "LuAG"}}, "nexus: detector.sensor_material: expected one of Si"),
        ({"instrument": {"name": "i03"}}, "nexus: instrument.name: expected a name that dxtbx"),
        ({"axes": {"kappa": 5}}, "nexus: axes: expected axes of sample_axes"),
        ({"detector": {"mask_file": "/etc/passwd"}}, "nexus: expected no detector.mask_file"),
    ],
)
def test_metadata_that_contradict_the_definition_are_refused(rig: Rig, nexus: dict[str, Any], reason: str):
    with pytest.raises(CommandRefusedError, match=reason):
        rig.client.start(rig.directory, nexus=nexus | {"definition": "NXmx"})


@pytest.mark.parametrize("name", ["file_master.h5", "file_tomo.h5"])
def test_application_file_of_an_old_run_is_refused_or_removed(rig: Rig, name: str):
    rig.path(name).write_text("old")
    with pytest.raises(CommandRefusedError, match=name):
        rig.client.start(rig.directory, n_image=1)
    images = images_of(range(4))
    assert_saved(rig.record(images, overwrite=True), images)
    assert not rig.path(name).exists()
