"""Socket files that are removed, and a second process on a connection that is for one."""

from __future__ import annotations

import pytest
import zmq
from support.assertions.faults import first_sentence, wait_for_error
from support.processes.deployment import wait_until
from support.processes.recording import MakeRig, Publishing, Rig, assert_saved, images_of
from support.processes.sources import refusal
from support.tools.fault_table import Seen

from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import driver_to_writer
from stddaq.writing.writer import service as writer_service


def remove_sockets(rig: Rig) -> list[str]:
    names = rig.deployment.sockets()
    for name in names:
        (rig.deployment.ipc_directory / name).unlink()
    return names


def wait_for_sockets(rig: Rig, names: list[str]) -> None:
    """Wait until the services have them again; the source lives in the test."""
    wait_until(lambda: rig.source.count_subscribers() and rig.deployment.sockets() == names, what=str(names))


def restart(rig: Rig, name: str) -> None:
    if name == "driver":
        assert rig.driver.end() == 0
        rig.start_driver()
    else:
        writer = int(name.rpartition(" ")[2])
        assert rig.writers[writer].end() == 0
        rig.restart_writer(writer)


@pytest.mark.fault(
    fault="all ipc socket files removed (`rm /tmp/*`), then {restarted} restarted",
    state="idle",
    promise="each service makes its own again within 2 s; the next run is perfect",
)
@pytest.mark.parametrize("restarted", ["driver", "writer 0"])
def test_removed_sockets_come_back_and_restarted_services_find_each_other(
    rig: Rig, restarted: str, seen: Seen
):
    rig.wait_for_subscription()
    names = remove_sockets(rig)
    wait_for_sockets(rig, names)
    restart(rig, restarted)
    images = images_of(range(100))
    assert_saved(rig.record(images), images)
    for name in ("driver-0", "driver-1"):
        if restarted != "driver":
            rig.driver.wait_for_line(rf"{name} was removed, bound again")
    seen(f"{len(names)} files again, 100 of 100 images good")


@pytest.mark.fault(
    fault="all ipc socket files removed",
    state="recording",
    promise="connections go on; the run is perfect",
)
def test_run_goes_on_without_socket_files(rig: Rig, seen: Seen):
    rig.begin(n_image=200)
    images = images_of(range(200))
    rig.publish(images[:100])
    names = remove_sockets(rig)
    wait_for_sockets(rig, names)
    rig.publish(images[100:])
    assert_saved(rig.end(), images)
    seen("file_saved, 200 of 200 images good")


@pytest.mark.fault(
    fault="a second writer 0 started after the socket file of the first was removed",
    state="idle",
    promise="refused, with the process that is writer 0",
)
def test_second_writer_of_a_number_is_refused_although_the_socket_is_removed(
    rig: Rig, capsys: pytest.CaptureFixture[str], seen: Seen
):
    path = rig.deployment.ipc_directory / f"{rig.config.detector_name}-writer-0"
    path.unlink()
    line = refusal(capsys, writer_service.main, rig.deployment.config_path, 0)
    assert f"another running service is bound there, process {rig.writers[0].pid} of user" in line
    seen("exit code 2, names the process")


@pytest.mark.fault(
    fault="a second process receives the images of writer 0",
    state="{state}",
    promise="error that names both processes; the next run is perfect",
)
@pytest.mark.parametrize("state", ["idle", "recording"])
def test_second_receiver_of_the_images_of_a_writer_is_named(make_rig: MakeRig, state: str, seen: Seen):
    rig = make_rig()
    rig.wait_for_subscription()
    with zmq.Context() as context, open_socket(context, zmq.PULL) as intruder:
        if state == "idle":
            intruder.connect(driver_to_writer(rig.config.detector_name, 0))
            rig.driver.wait_for_line("writer 0: expected one process, got 2: ")
            rig.client.start(rig.directory, n_image=10)
            account, _seconds = wait_for_error(rig, within=5.0)
        else:
            with Publishing(rig):
                rig.client.start(rig.directory)
                rig.wait_for_count(1)
                intruder.connect(driver_to_writer(rig.config.detector_name, 0))
                account, _seconds = wait_for_error(rig)
        reason = account["reason"]
        assert "writer 0: expected one process, got 2: " in reason
        assert f"process {rig.writers[0].pid} of user" in reason
        assert "stop all but one" in reason
    rig.driver.wait_for_line("writer 0 disconnected")
    images = images_of(range(10**6, 10**6 + 20))
    assert_saved(rig.record(images, file_prefix="next"), images)
    seen(first_sentence(account))
