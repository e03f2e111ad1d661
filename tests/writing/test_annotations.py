"""What clients keep with a run: at its start, and during it."""

from __future__ import annotations

import json
from typing import Any

import h5py
import pytest
from support.data.nexus_metadata import SCAN
from support.data.raw_files import dataset
from support.processes.recording import MakeRig, Rig, assert_saved, images_of

import stddaq
from stddaq.client import CommandRefusedError

OF_INSTRUMENT = {key: SCAN[key] for key in ("source", "instrument", "detector", "scan_axis")}
OF_RUN = {key: SCAN[key] for key in ("sample", "beam", "scan")}


def test_metadata_are_kept_with_the_run(rig: Rig):
    metadata = {"proposal": "p1", "list": [1, {"deep": None}], "ä": 0.5}
    images = images_of(range(6))
    result = rig.record(images, metadata=metadata)
    assert_saved(result, images)
    assert result["metadata"] == metadata
    run = stddaq.open_run(rig.path("fileMaster.h5"))
    assert run.metadata == metadata
    assert run.account is not None
    assert run.account["metadata"] == metadata
    with h5py.File(rig.path("fileMaster.h5")) as file:
        assert json.loads(str(dataset(file, "entry/stddaq/metadata").asstr()[()])) == metadata


def test_a_run_without_metadata_has_none(rig: Rig):
    images = images_of(range(2))
    assert "metadata" not in rig.record(images)
    assert stddaq.open_run(rig.path("fileMaster.h5")).metadata is None
    with h5py.File(rig.path("fileMaster.h5")) as file:
        assert "entry/stddaq/metadata" not in file


def test_metadata_can_be_added_during_a_run(make_rig: MakeRig):
    rig = make_rig(nexus=OF_INSTRUMENT)
    images = images_of(range(10))
    rig.wait_for_subscription()
    start = rig.client.start(
        rig.directory,
        metadata={"uid": "old", "kept": 1},
        nexus={"definition": "NXmx", "beam": OF_RUN["beam"], "scan": OF_RUN["scan"]},
    )
    assert start.raw["nexus_missing"] == ["sample.name"]
    rig.client.wait_until_ready(60)
    rig.publish(images)
    first = rig.client.annotate(metadata={"uid": "new"}, nexus={"sample": {"name": "lysozyme"}})
    assert first.raw["nexus_missing"] == []
    rig.client.annotate(nexus={"beam": {"energy_kev": 10.0}})
    rig.wait_for_count(len(images))
    result = rig.end(stop=True)
    assert_saved(result, images)
    assert result["metadata"] == {"uid": "new", "kept": 1}
    assert "nexus_missing" not in result
    with h5py.File(rig.path("file_master.h5")) as file:
        assert dataset(file, "entry/sample/name").asstr()[()] == "lysozyme"
        assert dataset(file, "entry/instrument/beam/incident_energy")[()] == pytest.approx(10000)


def test_a_run_says_why_it_has_no_nxmx_file(make_rig: MakeRig):
    rig = make_rig(nexus=OF_INSTRUMENT)
    result = rig.record(images_of(range(3)), nexus={"definition": "NXmx", "beam": {"energy_kev": 12.4}})
    assert result["nexus_missing"] == ["sample.name"]
    assert not rig.path("file_master.h5").exists()


def test_nothing_can_be_added_without_a_run(rig: Rig):
    with pytest.raises(
        CommandRefusedError, match="annotate: expected a run that is being recorded"
    ) as refusal:
        rig.client.annotate(metadata={"uid": "a"})
    assert refusal.value.error_type == "no_run"


def test_what_contradicts_the_run_is_refused_and_changes_nothing(rig: Rig):
    rig.begin(metadata={"uid": "a"}, n_image=2)
    for fields, reason in (
        ({"nexus": {"axes": {"kappa": 5}}}, "axes: expected axes of sample_axes"),
        ({"nexus": {"detector": {"mask_file": "/etc/passwd"}}}, r"expected no detector\.mask_file"),
        ({"metadata": {"long": "x" * 40000}}, None),
        ({"metadata": {"longer": "x" * 40000}}, "65536 bytes of metadata at most"),
    ):
        fields: dict[str, Any]
        if reason is None:
            rig.client.annotate(**fields)
            continue
        with pytest.raises(CommandRefusedError, match=reason):
            rig.client.annotate(**fields)
    rig.publish(images_of(range(2)))
    assert rig.end()["metadata"].keys() == {"uid", "long"}


@pytest.mark.parametrize("metadata", [{"a": float("nan")}, {"a": "\ud800"}, {"a": float("inf")}, [], "text"])
def test_metadata_that_no_file_can_hold_are_refused(rig: Rig, metadata: Any):
    with pytest.raises(CommandRefusedError, match="metadata"):
        rig.client.start(rig.directory, metadata=metadata)


def test_metadata_that_are_nested_too_deeply_are_refused(rig: Rig):
    deep: Any = {}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(CommandRefusedError, match="nested at most 32 levels deep"):
        rig.client.start(rig.directory, metadata=deep)
