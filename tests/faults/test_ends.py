"""Daemons are terminated and restarted during a run, while the source publishes."""

from __future__ import annotations

import signal
from typing import Any

import h5py
import pytest
from support.assertions.accounts import Checked, check_files_alone, check_run, opens_plainly
from support.assertions.faults import (
    SMALL,
    end_in_time,
    first_sentence,
    published_so_far,
    record_from,
    wait_for_error,
)
from support.processes.deployment import Service
from support.processes.recording import MakeRig, Publishing, Rig, assert_master_file_holds
from support.processes.sources import start_source
from support.tools.fault_table import Seen

SIGNALS = [signal.SIGTERM, signal.SIGINT]
STATE = "recording, under load"


def make_complete_rig(make_rig: MakeRig) -> tuple[Rig, Any]:
    rig = make_rig(driver=["-m"], **SMALL)
    return rig, rig.deployment.start("std_det_meta_writer_gf")


def start_run(rig: Rig) -> None:
    rig.client.start(rig.directory)
    rig.client.wait_until_ready(60)
    rig.wait_for_count(100)


def terminate_during_run(
    rig: Rig, source: Publishing, service: Service, how: signal.Signals, seen: Seen
) -> tuple[dict[str, Any], Checked]:
    """Terminate a service during a run. Return the account of the run and the check of its files."""
    start_run(rig)
    seconds = end_in_time(service, how)
    account, _ = wait_for_error(rig)
    checked = check_run(account, published_so_far(source, account))
    seen(f"exit code 0 after {seconds:.2f} s; error: {first_sentence(account)}; {checked}")
    return account, checked


@pytest.mark.fault(
    fault="driver: {how}, restarted",
    state=STATE,
    promise="the run is saved, exit code 0 within 2 s; the new driver records at once",
)
@pytest.mark.parametrize("how", SIGNALS)
def test_a_driver_that_is_terminated_during_a_run_saves_it(
    make_rig: MakeRig, how: signal.Signals, seen: Seen
):
    rig, _ = make_complete_rig(make_rig)
    with Publishing(rig) as source:
        rig.client.start(rig.directory)
        rig.client.wait_until_ready(60)
        with source.spared():
            rig.wait_for_count(100)
            seconds = end_in_time(rig.driver, how)
        rig.start_driver("-m")
        record_from(rig, source)
    raw_files = [rig.path("file0.h5"), rig.path("file1.h5")]
    assert all(map(opens_plainly, raw_files))
    with h5py.File(rig.path("fileMeta.h5")) as file:
        rows: Any = file[f"{rig.config.detector_name}/metadata"]
        ids = rows["image_id"].tolist()
    recorded = [image for image in source.images if ids[0] <= image.image_id <= ids[-1]]
    assert ids == [image.image_id for image in recorded]
    assert check_files_alone(raw_files, recorded) == len(recorded)
    assert_master_file_holds(rig.path("fileMaster.h5"), recorded)
    seen(f"exit code 0 after {seconds:.2f} s, all {len(recorded)} images good in the files; next run perfect")


@pytest.mark.fault(
    fault="writer: {how}, restarted",
    state=STATE,
    promise="it closes its file, exit code 0 within 2 s; error that names it; the next run is perfect",
)
@pytest.mark.parametrize("how", SIGNALS)
def test_a_writer_that_is_terminated_during_a_run_closes_its_file_and_is_named(
    make_rig: MakeRig, how: signal.Signals, seen: Seen
):
    rig = make_rig(**SMALL)
    with Publishing(rig) as source:
        account, checked = terminate_during_run(rig, source, rig.writers[1], how, seen)
        assert "writer 1" in account["reason"]
        assert checked.unclosed == ()
        rig.restart_writer(1)
        record_from(rig, source)
    seen("next run perfect")


@pytest.mark.fault(
    fault="metadata writer: {how}, restarted",
    state=STATE,
    promise="it closes its file, exit code 0 within 2 s; error that names it; the next run is perfect",
)
@pytest.mark.parametrize("how", SIGNALS)
def test_a_metadata_writer_that_is_terminated_during_a_run_closes_its_file_and_is_named(
    make_rig: MakeRig, how: signal.Signals, seen: Seen
):
    rig, metadata_writer = make_complete_rig(make_rig)
    with Publishing(rig) as source:
        account, checked = terminate_during_run(rig, source, metadata_writer, how, seen)
        assert "meta" in account["reason"]
        assert checked.n_good == account["count"]
        assert opens_plainly(rig.path("fileMeta.h5"))
        rig.deployment.start("std_det_meta_writer_gf")
        record_from(rig, source)
    seen("next run perfect")


@pytest.mark.fault(
    fault="source: {how}, restarted",
    state="recording",
    promise="exit code 0 within 2 s; the run continues, and its ids may restart",
)
@pytest.mark.parametrize("how", SIGNALS)
def test_a_run_continues_when_its_source_is_terminated_and_restarted(
    make_rig: MakeRig, how: signal.Signals, seen: Seen
):
    rig = make_rig(**SMALL)
    first = start_source(rig.deployment, "simulate", "--rate", 500)
    rig.client.start(rig.directory)
    rig.wait_for_count(50)
    seconds = end_in_time(first, how)
    count = rig.wait_for_the_last().count or 0
    start_source(rig.deployment, "simulate", "--rate", 500)
    rig.wait_for_count(count + 50)
    account = rig.end(stop=True)
    assert account["outcome"] == "file_saved"
    assert account["n_restarts"] == 1
    assert account["n_good"] == account["count"] >= count + 50
    with h5py.File(account["files"]["master"]) as file:
        ids: Any = file["entry/data/image_id"]
        found = ids[:].tolist()
    restart = next(i for i in range(1, len(found)) if found[i] <= found[i - 1])
    for part in (found[:restart], found[restart:]):
        assert part == list(range(part[0], part[0] + len(part)))
    seen(f"exit code 0 after {seconds:.2f} s; all {len(found)} images of both recorded, in order of arrival")
