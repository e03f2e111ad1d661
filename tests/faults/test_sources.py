"""The source is killed, hangs, or never publishes."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import Any

import pytest
from support.assertions.accounts import check_perfect, check_run
from support.assertions.faults import KILL_OR_STOP, SMALL, first_sentence, record_under_load, wait_for_error
from support.processes.deployment import SHM_DIRECTORY
from support.processes.recording import Image, MakeRig, Rig, assert_saved
from support.processes.sources import start_source
from support.tools.fault_table import Seen

from stddaq.client.simulator import SimulatorClient
from stddaq.sources.simulated.scenes import Scene


def simulated(rig: Rig, account: dict[str, Any]) -> list[Image]:
    """Return what `stddaq simulate` published up to the last image of a run: ids from 0 without gaps."""
    scene = Scene.of(rig.config, "rings")
    return [Image(image_id, scene.image(image_id)) for image_id in range((account["last_id"] or 0) + 1)]


def check_successor(rig: Rig) -> None:
    """Check that a new simulator on the same stream is recorded from its first image."""
    rig.client.start(rig.directory, n_image=50, file_prefix="next")
    rig.client.wait_until_ready(30)
    start_source(rig.deployment, "simulate", "--rate", 500, "--wait-for-subscribers", 1, "--wait-timeout", 5)
    rig.client.wait_until_saved(30)
    account = rig.account()
    assert account["count"] == 50
    check_perfect(account, simulated(rig, account), due=0)


@pytest.mark.fault(
    fault="source: {how}",
    state="waiting_for_first_image",
    promise="the run keeps waiting; stop ends it; a new source is recorded from its first image",
)
@pytest.mark.parametrize("how", KILL_OR_STOP)
def test_a_source_that_fails_before_its_first_image_leaves_a_run_that_can_be_stopped(
    make_rig: MakeRig, how: signal.Signals, seen: Seen
):
    rig = make_rig(**SMALL)
    source = start_source(rig.deployment, "simulate", "--trigger")
    rig.client.start(rig.directory)
    rig.client.wait_until_ready(30)
    source.send(how)
    assert rig.client.status().status == "waiting_for_first_image"
    account = rig.end(stop=True)
    assert (account["outcome"], account["count"]) == ("file_saved", 0)
    seen("still waiting; file_saved without images after stop")
    source.kill()
    check_successor(rig)
    seen("next source and run perfect")


@pytest.mark.fault(
    fault="source: {how}",
    state="recording",
    promise="everything that it announced is recorded; stop works; a new source is recorded",
)
@pytest.mark.parametrize("how", KILL_OR_STOP)
def test_a_source_that_fails_during_a_run_leaves_a_run_that_can_be_stopped(
    make_rig: MakeRig, how: signal.Signals, seen: Seen
):
    rig = make_rig(**SMALL)
    source = start_source(rig.deployment, "simulate", "--rate", 500)
    rig.client.start(rig.directory)
    rig.wait_for_count(100)
    source.send(how)
    rig.wait_for_the_last()
    assert rig.client.status().status == "recording"
    account = rig.end(stop=True)
    checked = check_perfect(account, simulated(rig, account))
    assert checked.n_good >= 100
    seen(f"still recording; file_saved after stop: {checked}")
    source.kill()
    check_successor(rig)
    seen("next source and run perfect")


@pytest.mark.fault(
    fault="source: SIGSTOP, later SIGCONT",
    state="recording",
    promise="the run continues where it stopped",
)
def test_recording_continues_when_a_stalled_source_continues(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**SMALL)
    source = start_source(rig.deployment, "simulate", "--rate", 500)
    rig.client.start(rig.directory, n_image=300)
    rig.wait_for_count(100)
    source.send(signal.SIGSTOP)
    stalled_at = rig.wait_for_the_last()
    source.send(signal.SIGCONT)
    account = rig.end()
    assert account["count"] == 300
    seen(f"stalled at {stalled_at.count}; file_saved: {check_perfect(account, simulated(rig, account))}")


@pytest.mark.fault(
    fault="source: SIGKILL, restarted; end_on_restart={ends}",
    state="recording",
    promise="the run continues, or ends as error with the two ids; no image announced before is missing",
)
@pytest.mark.parametrize("ends", [False, True])
def test_a_killed_and_restarted_source_is_recorded_or_ends_the_run_as_end_on_restart_demands(
    make_rig: MakeRig, ends: bool, seen: Seen
):
    rig = make_rig(**SMALL)
    source = start_source(rig.deployment, "simulate", "--rate", 500, "--wait-for-subscribers", 1)
    rig.client.start(rig.directory, end_on_restart=ends)
    rig.wait_for_count(100)
    source.kill()
    before = rig.wait_for_the_last().count or 0
    start_source(rig.deployment, "simulate", "--rate", 500, "--wait-for-subscribers", 1)
    if ends:
        account, _ = wait_for_error(rig, within=10)
        last_id = account["last_id"]
        assert account["reason"].startswith(f"the image ids restarted: 0 came after {last_id}, ")
        assert (account["count"], account["n_restarts"]) == (before, 0)
        # Images that the first source wrote but could not announce show up when the second announces.
        assert account["n_dropped"] < 20
        checked = check_run(account | {"n_dropped": 0}, simulated(rig, account))
        seen(f"error: {first_sentence(account)}; {checked}")
        return
    rig.wait_for_count(before + 100)
    account = rig.end(stop=True)
    assert (account["n_good"], account["n_restarts"]) == (account["count"], 1)
    first_pass = simulated(rig, {"last_id": account["first_id"] + before - 1})[account["first_id"] :]
    assert_saved(account, [*first_pass, *simulated(rig, account)])
    seen(f"file_saved; {before} images before and {account['count'] - before} after, in order of arrival")


@pytest.mark.fault(
    fault="source: {how}",
    state="saving_file",
    promise="file_saved: the source is not needed any more",
)
@pytest.mark.parametrize("how", KILL_OR_STOP)
def test_a_source_that_fails_while_files_are_saved_changes_nothing(
    make_rig: MakeRig, how: signal.Signals, seen: Seen
):
    rig = make_rig(tolerant=True, **SMALL)
    source = start_source(rig.deployment, "simulate", "--trigger", "--rate", 1000)
    rig.client.start(rig.directory, n_image=150)
    rig.client.wait_until_ready(30)
    with SimulatorClient(rig.deployment.detector_name) as camera:
        camera.trigger(50)
        rig.wait_for_count(50)
        rig.writers[0].send(signal.SIGSTOP)
        camera.trigger(150)
    rig.client.wait_for(lambda status: status.n_received == 150, 20, "all images")
    source.send(how)
    rig.writers[0].send(signal.SIGCONT)
    account = rig.end()
    seen(f"file_saved; {check_perfect(account, simulated(rig, account))}")
    source.kill()
    record_under_load(rig)
    seen("next run perfect")


@pytest.mark.fault(
    fault="{what} of a source: removed",
    state="between runs",
    promise="no wrong image is good; the source reports it and continues with a new one within a second",
)
@pytest.mark.parametrize("what", ["ring buffer", "cursor segment"])
def test_a_source_whose_ring_was_removed_continues_in_a_new_one(make_rig: MakeRig, what: str, seen: Seen):
    rig = make_rig(**SMALL)
    source = start_source(rig.deployment, "simulate", "--rate", 500)
    suffix = {"ring buffer": "", "cursor segment": "-cursor"}[what]
    (SHM_DIRECTORY / f"{rig.deployment.detector_name}-image{suffix}").unlink()

    def record(n_images: int, prefix: str) -> dict[str, Any]:
        rig.client.start(rig.directory, n_image=n_images, file_prefix=prefix)
        rig.client.wait_until_saved(30)
        account = rig.account()
        check_run(account, simulated(rig, account), due=None)
        return account

    account = record(100, "removed")
    assert account["n_good"] + account["n_overwritten"] == 100
    source.wait_for_line("was removed, attaching to a new one")
    assert record(100, "next")["n_good"] == 100
    seen("no wrong image, said within a second, next run perfect")


@pytest.mark.fault(
    fault="source: SIGKILL; its ring buffer and cursor segment removed; source restarted",
    state="recording",
    promise="no wrong image is good; the numbers of the new ring do not count as dropped images",
)
def test_a_source_restarted_after_its_ring_was_removed_drops_nothing(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**SMALL)
    source = start_source(rig.deployment, "simulate", "--rate", 500)
    rig.client.start(rig.directory)
    # Numbers start at the clock: those of a ring made within a second could be dropped images.
    rig.wait_for_count(600)
    source.kill()
    for segment in rig.deployment.segments():
        (SHM_DIRECTORY / segment).unlink()
    n_before = rig.wait_for_the_last().n_received or 0
    start_source(rig.deployment, "simulate", "--rate", 500)
    rig.client.wait_for(lambda status: (status.n_received or 0) > n_before + 100, 20)
    account = rig.end(stop=True)
    assert account["n_restarts"] == 1
    # Those that were on their way when the source was killed, or announced while the driver reconnected.
    assert account["n_dropped"] < 100
    seen(f"1 restart, {account['n_dropped']} dropped")


@pytest.mark.fault(
    fault="second source with the same detector name and another ipc directory",
    state="recording",
    promise="it is refused, and the process of the first is named; the run is perfect",
)
def test_a_second_source_on_a_ring_is_refused_and_disturbs_no_run(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, seen: Seen
):
    rig = make_rig(**SMALL)
    source = start_source(rig.deployment, "simulate", "--rate", 500)
    rig.client.start(rig.directory, n_image=200)
    with tempfile.TemporaryDirectory(prefix="sd-", dir="/tmp") as other_directory:
        monkeypatch.setitem(rig.deployment.env, "STDDAQ_IPC_DIR", other_directory)
        refused = start_source(rig.deployment, "simulate", ready=None)
        assert refused.wait() == 2
    (line,) = refused.stderr
    assert f"expected no other source, got process {source.pid} of user {os.geteuid()} (stddaq)" in line
    rig.client.wait_until_saved(30)
    account = rig.account()
    check_run(account, simulated(rig, account), due=None)
    assert account["n_good"] == 200
    seen("refused in one line, run perfect")
