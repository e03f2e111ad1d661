"""The driver is killed or hangs, in every state of a run."""

from __future__ import annotations

import signal
import time

import pytest
from support.assertions.accounts import check_files_alone, check_run, opens_plainly
from support.assertions.faults import (
    SMALL,
    STATES,
    State,
    bring_to,
    in_seconds,
    published_so_far,
    record_from,
    record_under_load,
    release,
)
from support.processes.deployment import wait_until
from support.processes.machine import assert_within
from support.processes.recording import MakeRig, Publishing, Rig, assert_master_file_holds
from support.tools.fault_table import Seen

from stddaq.client import DriverClient

# Writers wait one second for the driver to return before they close their files.
CLOSED_WITHIN_S = 3.0


def raw_files(rig: Rig) -> list:
    return [rig.path("file0.h5"), rig.path("file1.h5")]


def wait_for_closed_files(rig: Rig) -> float:
    seconds = in_seconds(
        lambda: wait_until(lambda: all(map(opens_plainly, raw_files(rig))), 30, "closed files")
    )
    assert_within(seconds, CLOSED_WITHIN_S)
    return seconds


@pytest.mark.fault(
    fault="driver: SIGKILL",
    state="{state}",
    promise="the writers write what they received, close valid files within 3 s, and serve the next driver",
)
@pytest.mark.parametrize("state", STATES)
def test_writers_close_valid_files_when_the_driver_is_killed_and_serve_the_next_one(
    make_rig: MakeRig, state: State, seen: Seen
):
    rig = make_rig(**SMALL)
    published = bring_to(rig, state)
    rig.driver.kill()
    release(rig)
    seconds = wait_for_closed_files(rig)
    assert check_files_alone(raw_files(rig), published) == len(published)
    seen(f"files closed after {seconds:.2f} s, all {len(published)} images good in them")
    if state == "saving_file":
        wait_until(rig.path("fileMaster.h5").exists, what="the master file")
        assert_master_file_holds(rig.path("fileMaster.h5"), published)
        seen("the writer finished the master file")
    rig.start_driver()
    assert rig.client.last_result() is None
    record_under_load(rig)
    seen("next run perfect")


@pytest.mark.fault(
    fault="driver: SIGKILL and a new one at once",
    state="recording, under load",
    promise="valid files; the new driver records at once",
)
def test_a_new_driver_records_at_once_while_the_source_continues(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**SMALL)
    with Publishing(rig) as source:
        rig.client.start(rig.directory)
        rig.client.wait_until_ready(60)
        with source.spared():
            rig.wait_for_count(200)
            count = rig.client.status().count or 0
            rig.driver.kill()
            rig.start_driver()
        record_from(rig, source)
        wait_for_closed_files(rig)
        n_images = check_files_alone(raw_files(rig), source.images[:])
    assert n_images >= count
    seen(f"{n_images} images good in the files, {count} of them reported; next run perfect")


@pytest.mark.fault(
    fault="driver: SIGSTOP, 2 s later SIGCONT",
    state="{state}",
    promise="clients report it; after SIGCONT the run continues or ends as error, with a true account",
)
@pytest.mark.parametrize("state", STATES)
def test_a_driver_that_hung_reports_a_true_account(make_rig: MakeRig, state: State, seen: Seen):
    rig = make_rig(**SMALL)
    published = bring_to(rig, state)
    rig.driver.send(signal.SIGSTOP)
    release(rig)
    # Longer than writers and driver wait for each other, and shorter than one turn of the ring.
    with Publishing(rig, first_id=10**5, pause_s=0.005) as source:
        time.sleep(2.0)
        rig.driver.send(signal.SIGCONT)
        source.wait_for(20)
        with DriverClient(rig.url) as client:
            client.stop()
            client.wait(["idle"], 60)
        account = rig.account()
        published += published_so_far(source, account)
    checked = check_run(account, published)
    seen(f"{account['outcome']}: {checked}" + (f" ({account['reason']})" if "reason" in account else ""))
    record_under_load(rig)
    seen("next run perfect")
