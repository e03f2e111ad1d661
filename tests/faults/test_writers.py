"""Writers are killed or hang, in every state of a run."""

from __future__ import annotations

import signal
from contextlib import nullcontext

import pytest
from support.assertions.accounts import check_perfect, check_repair, check_run, opens_plainly
from support.assertions.faults import (
    KILL_OR_STOP,
    N_IMAGES,
    SMALL,
    STATES,
    State,
    bring_to,
    first_sentence,
    published_so_far,
    record_under_load,
    release,
    wait_for_error,
)
from support.processes.deployment import wait_until
from support.processes.recording import MakeRig, Publishing, Rig, images_of
from support.tools.fault_table import Seen

PROMISE = (
    "error within 2 s that names it; its flushed images are readable; the other file is complete; "
    "it takes part in the next run"
)


def bring_back(rig: Rig, writer: int, how: signal.Signals) -> None:
    """Restart a killed writer, or continue a stopped one."""
    if how == signal.SIGKILL:
        rig.writers[writer].wait()
        rig.restart_writer(writer)
    else:
        if writer == 0:
            release(rig)
        rig.writers[writer].send(signal.SIGCONT)


def is_settled(rig: Rig, writer: int) -> bool:
    path = rig.path(f"file{writer}.h5")
    return not path.exists() or opens_plainly(path)


@pytest.mark.fault(fault="writer: {how}", state="{state}", promise=PROMISE)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", KILL_OR_STOP)
def test_a_writer_that_dies_or_hangs_is_named_and_the_account_is_true(
    make_rig: MakeRig, how: signal.Signals, state: State, seen: Seen
):
    rig = make_rig(**SMALL)
    published = bring_to(rig, state)
    # While a run is saved, writer 0 makes the master file.
    victim = 0 if state == "saving_file" else 1
    source = Publishing(rig, first_id=N_IMAGES)
    with source if state == "recording" else nullcontext():
        rig.writers[victim].send(how)
        account, seconds = wait_for_error(rig)
        published += published_so_far(source, account) if state == "recording" else []
    seen(f"error after {seconds:.2f} s: {first_sentence(account)}")
    assert f"writer {victim}" in account["reason"]
    assert f"writer {1 - victim}" not in account["reason"]
    checked = check_run(account, published)
    assert f"file{1 - victim}.h5" not in checked.unclosed
    assert all(image_id % 2 == victim for image_id in account["failed_ids"])
    if state != "recording":
        assert account["n_good"] == len(published)
    if published:
        seen(str(checked))
    bring_back(rig, victim, how)
    if how == signal.SIGKILL:
        check_repair(account, checked)
    else:
        wait_until(lambda: is_settled(rig, victim), what="the file of the stopped writer")
    # The late responses of a continued writer change nothing.
    assert rig.account() == account
    assert check_run(account, published).n_good == checked.n_good
    record_under_load(rig)
    seen("next run perfect")


@pytest.mark.fault(
    fault="writer: {how}", state="all images received, its last one not written", promise=PROMISE
)
@pytest.mark.parametrize("how", KILL_OR_STOP)
def test_a_writer_that_fails_at_the_end_of_a_run_is_named(make_rig: MakeRig, how: signal.Signals, seen: Seen):
    rig = make_rig(**SMALL)
    images = images_of(range(100), shape=rig.config.image_shape)
    rig.begin(n_image=100)
    rig.publish(images[:90])
    rig.wait_for_count(90)
    rig.writers[1].send(signal.SIGSTOP)
    rig.publish(images[90:])
    rig.client.wait_for(lambda status: status.n_received == 100, 60, "all images")
    rig.writers[1].send(how)
    account, seconds = wait_for_error(rig)
    seen(f"error after {seconds:.2f} s: {first_sentence(account)}")
    assert "writer 1" in account["reason"]
    assert account["failed_ids"] == [91, 93, 95, 97, 99]
    seen(str(check_run(account, images)))
    bring_back(rig, 1, how)
    wait_until(lambda: how == signal.SIGKILL or is_settled(rig, 1), what="the file of the stopped writer")
    assert rig.account() == account
    record_under_load(rig)
    seen("next run perfect")


@pytest.mark.fault(
    fault="writer or metadata writer: {how}",
    state="saving_file, its own file closed",
    promise="file_saved: every file was complete; driver and writer remain usable",
)
@pytest.mark.parametrize("how", KILL_OR_STOP)
def test_a_writer_whose_file_is_closed_is_not_needed_for_saving(
    make_rig: MakeRig, how: signal.Signals, seen: Seen
):
    rig = make_rig(driver=["-m"], **SMALL)
    metadata_writer = rig.deployment.start("std_det_meta_writer_gf")
    images = bring_to(rig, "saving_file")
    for service in (rig.writers[1], metadata_writer):
        service.send(how)
    release(rig)
    checked = check_run(rig.end(), images)
    assert checked.n_good == len(images)
    seen(f"file_saved; {checked}")
    bring_back(rig, 1, how)
    if how == signal.SIGKILL:
        metadata_writer.wait()
        rig.deployment.start("std_det_meta_writer_gf")
    metadata_writer.send(signal.SIGCONT)
    record_under_load(rig)
    seen("next run perfect")


@pytest.mark.slow
@pytest.mark.fault(
    fault="all writers: SIGKILL",
    state="recording",
    promise="error within 2 s; all flushed images are readable; the driver is usable",
)
def test_the_driver_is_usable_after_all_writers_were_killed(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**SMALL)
    published = bring_to(rig, "recording")
    for writer in rig.writers:
        writer.send(signal.SIGKILL)
    account, seconds = wait_for_error(rig)
    checked = check_run(account, published)
    seen(f"error after {seconds:.2f} s; {checked}")
    assert account["n_good"] == len(published)
    for i in range(2):
        bring_back(rig, i, signal.SIGKILL)
    check_repair(account, checked)
    record_under_load(rig)
    seen("next run perfect")


@pytest.mark.fault(
    fault="writer: SIGSTOP, 200 images later SIGCONT",
    state="recording",
    promise="no image is bad, because the ring is not full yet",
)
def test_a_short_pause_of_a_writer_costs_no_image(make_rig: MakeRig, seen: Seen):
    rig = make_rig(tolerant=True, **SMALL)
    images = images_of(range(400), shape=rig.config.image_shape)
    rig.begin(n_image=len(images))
    rig.publish(images[:200])
    rig.writers[0].send(signal.SIGSTOP)
    rig.publish(images[200:])
    wait_until(lambda: rig.client.status().n_received == len(images), what="images at the driver")
    rig.writers[0].send(signal.SIGCONT)
    seen(f"file_saved; {check_perfect(rig.end(), images, due=0)}")
