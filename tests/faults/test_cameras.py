"""The camera server, or the receiver behind it, is killed and restarted during a run."""

from __future__ import annotations

from typing import Any

import pytest
from support.assertions.faults import SMALL, count_of, first_sentence, wait_for_error
from support.peers.cameras import Camera, start_camera, start_receiver, wait_for_totals
from support.processes.deployment import Service, free_port
from support.processes.recording import Image, MakeRig, Rig, assert_raw_files_hold, assert_saved, pixels_of
from support.tools.fault_table import Seen

from stddaq.sources.simulated.scenes import Scene

CAMERA = {"detector_type": "pco", **SMALL}
# A ring lasts for 5 s, in which a writer of a busy machine may stand still.
RATE = 200


def record_until_the_camera_is_killed(rig: Rig, **start: Any) -> tuple[Service, int]:
    """Start a run and kill the camera during it. Return the receiver and the port that both use."""
    port = free_port()
    receiver = start_receiver(rig.deployment, f"tcp://127.0.0.1:{port}")
    wait_for_totals(receiver, n_subscribers=1)
    rig.client.start(rig.directory, **start)
    rig.client.wait_until_ready(60)
    camera, _ = start_camera(rig.deployment, "--rate", RATE, "--wait-for-subscribers", 4, port=port)
    rig.wait_for_count(100)
    camera.kill()
    receiver.wait_for_line("disconnected from the camera server")
    return receiver, port


def images_in_order(rig: Rig, account: dict[str, Any], n_before: int) -> list[Image]:
    """Return the camera's images with the ids of a run, `n_before` of them from before its restart.

    Only the account knows `n_before`: the receiver may still hold back images when it reports that the
    camera disconnected.
    """
    scene = Scene.of(rig.config, "rings")
    skipped = {i for first, last in account["skipped"] for i in range(first, last + 1)}
    first_epoch = [i for i in range(n_before + len(skipped)) if i not in skipped]
    assert len(first_epoch) == n_before
    ids = [*first_epoch, *range(account["count"] - n_before)]
    return [Image(i, scene.image(i)) for i in ids]


@pytest.mark.fault(
    fault="camera server (bsread): SIGKILL, restarted",
    state="recording",
    promise="the run continues; its account shows the restart of the ids",
)
def test_a_run_continues_when_the_camera_server_is_killed_and_restarted(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**CAMERA)
    receiver, port = record_until_the_camera_is_killed(rig)
    start_camera(rig.deployment, "--rate", RATE, "--wait-for-subscribers", 4, port=port)
    wait_for_totals(receiver, n_restarts=1)
    rig.wait_for_count(count_of(rig) + 100)
    account = rig.end(stop=True)
    assert account["n_restarts"] == 1
    n_before = account["count"] - (account["last_id"] + 1)
    assert n_before >= 100
    assert_saved(account, images_in_order(rig, account, n_before))
    seen(f"file_saved; {n_before} images before and {account['count'] - n_before} after, in order of arrival")


@pytest.mark.fault(
    fault="camera server (bsread): SIGKILL, restarted; run with end_on_restart",
    state="recording",
    promise="error that names both ids; the files hold all earlier images; the next run is perfect",
)
def test_a_run_with_end_on_restart_names_the_ids_at_which_the_camera_restarted(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**CAMERA)
    _, port = record_until_the_camera_is_killed(rig, end_on_restart=True)
    start_camera(rig.deployment, "--rate", RATE, "--wait-for-subscribers", 4, port=port)
    account, _ = wait_for_error(rig, within=10)
    n_before = account["count"]
    assert n_before >= 100
    assert (account["n_good"], account["n_restarts"]) == (n_before, 0)
    assert account["reason"] == (
        f"the image ids restarted: 0 came after {account['last_id']}, "
        "and the run was started with end_on_restart"
    )
    assert_raw_files_hold(account["files"]["raw"], images_in_order(rig, account, n_before))
    seen(f"error: {first_sentence(account)}; all {n_before} images before the restart good in the files")
    rig.client.start(rig.directory, n_image=50, file_prefix="next", end_on_restart=True)
    following = rig.end()
    scene = Scene.of(rig.config, "rings")
    ids = range(following["first_id"], following["first_id"] + 50)
    assert_saved(following, [Image(i, scene.image(i)) for i in ids])
    seen("next run perfect")


@pytest.mark.fault(
    fault="camera receiver: SIGKILL, restarted",
    state="recording",
    promise="the run continues; the ids that were not received are listed as skipped",
)
def test_a_run_continues_when_the_camera_receiver_is_killed_and_restarted(make_rig: MakeRig, seen: Seen):
    rig = make_rig(**CAMERA)
    with Camera(rig.config.image_shape) as camera:
        receiver = start_receiver(rig.deployment, camera.address)
        wait_for_totals(receiver, n_subscribers=1, n_connections=4)
        rig.client.start(rig.directory, n_image=100)
        rig.client.wait_until_ready(60)
        camera.send_images(range(40))
        rig.wait_for_count(40)
        receiver.kill()
        receiver = start_receiver(rig.deployment, camera.address)
        wait_for_totals(receiver, n_subscribers=1, n_connections=4)
        camera.send_images(range(60, 120))
        account = rig.end()
    ids = [*range(40), *range(60, 120)]
    assert_saved(account, [Image(i, pixels_of(i, rig.config.image_shape)) for i in ids])
    assert (account["skipped"], account["n_restarts"]) == ([[40, 59]], 0)
    seen(
        f"{account['outcome']}; {account['n_good']} of {account['count']} images good in the files, "
        f"{account['n_skipped']} skipped"
    )
