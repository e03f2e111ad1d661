"""The commands that messages propose, carried out as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import StartServices
from support.peers.basic_driver import BasicDriver
from support.processes.deployment import Deployment, Service, free_port, wait_until
from support.processes.recording import MakeRig, Rig, images_of, read_raw_file

from stddaq.cli.run_end import RunNotEndedError, stop_run
from stddaq.client import DriverBusyError, DriverClient, DriverUnreachableError, RunFailedError
from stddaq.files.opening import UnclosedFileError, open_file
from stddaq_ophyd.core.driver_run import _words


def proposed(message: str) -> list[str]:
    """Return the arguments of the command `stddaq` in a message, as a shell splits them."""
    found = re.search("`(.*)`", message)
    assert found, message
    program, *arguments = shlex.split(found[1])
    assert program == "stddaq"
    return arguments


def carry_out(deployment: Deployment, message: str) -> Service:
    """Run the command that a message proposes, and return it after its success."""
    command = deployment.run(deployment.stddaq, *proposed(message))
    assert command.wait() == 0, command.output
    return command


def reason_of_the_run(rig: Rig, path: Path) -> str:
    del path
    with pytest.raises(RunFailedError) as failed:
        rig.client.wait_until_saved(1)
    return failed.value.reason


def error_of_a_reader(rig: Rig, path: Path) -> str:
    del rig
    with pytest.raises(UnclosedFileError) as refused, open_file(path):
        pass
    return str(refused.value)


def output_of_info(rig: Rig, path: Path) -> str:
    def advice() -> str:
        info = rig.deployment.run(rig.deployment.stddaq, "info", path)
        info.wait()
        return next((line for line in info.stdout if "stddaq repair" in line), "")

    # At first the file is so new that a writer which cannot be seen from here may still write it.
    return wait_until(advice, 60.0, "advice to repair")


@pytest.mark.slow
@pytest.mark.parametrize("message", [reason_of_the_run, error_of_a_reader, output_of_info])
def test_the_file_of_a_killed_writer_is_readable_after_the_repair(
    make_rig: MakeRig, message: Callable[[Rig, Path], str]
) -> None:
    rig = make_rig(number_of_writers=1)
    rig.directory = rig.directory / "it's $HOME"
    rig.directory.mkdir()
    rig.begin(n_image=20)
    rig.publish(images_of(range(10)))
    rig.client.wait_for(lambda status: status.count == 10, 60, "10 images")
    rig.writers[0].kill()
    with pytest.raises(RunFailedError):
        rig.client.wait_until_saved(60)
    path = rig.path("file0.h5")
    carry_out(rig.deployment, message(rig, path))
    assert read_raw_file(path)[0]["image_id"].tolist() == list(range(10))


def test_up_starts_the_services_of_a_device_that_finds_no_driver(deployment: Deployment) -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    with pytest.raises(DriverUnreachableError) as unreachable:
        DriverClient(url).connect()
    arguments = proposed(_words(unreachable.value, url))
    assert arguments[:2] == ["up", "CONFIG"]
    arguments[1] = str(deployment.config_path)
    up = deployment.run(deployment.stddaq, *arguments, ready="all services ready")
    with DriverClient(url) as driver:
        assert driver.latest.status == "idle"
    assert up.end() == 0


def test_stop_ends_the_run_that_keeps_a_device_waiting(services: StartServices, tmp_path: Path) -> None:
    running = services("--rate", 100)
    record = running.record(tmp_path)
    record.wait_for_line("recording: .*images")
    busy = DriverBusyError("busy", "driver is busy!")
    stop = carry_out(running.deployment, _words(busy, running.url))
    assert stop.stdout[-1].startswith("file_saved")
    assert record.wait() == 0


def test_status_shows_a_run_that_does_not_end(deployment: Deployment, tmp_path: Path) -> None:
    with BasicDriver(preparation_s=0.0) as peer, DriverClient(peer.url) as driver:
        driver.start(tmp_path)
        driver.wait(["recording"], timeout=60)
        with pytest.raises(RunNotEndedError) as not_ended:
            list(stop_run(driver, 1e-6))
        assert carry_out(deployment, str(not_ended.value)).stdout
