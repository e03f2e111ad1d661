"""`stddaq up` runs the services of the configuration, and a change never disturbs a run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cli.conftest import Up
from support.processes.children import child_of
from support.processes.deployment import Deployment, free_port, wait_until
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from stddaq.cli.supervisor.spec import ServiceSpec
from stddaq.cli.supervisor.supervisor import Supervisor
from stddaq.client import CommandRefusedError, ConfigClient, DriverClient

# A writer may stand still for as long as the ring buffer lasts, 1000 images.
SIMULATE = ("--source", "simulate", "--rate", "100")
CHANGED = "all services ready, with the changed configuration"

MakeDeployment = Callable[..., Deployment]


def rest_line(port: int) -> str:
    return f"stddaq-rest --allow-control --port {port}"


def pid_of(up: Up, *words: str) -> int | None:
    """Return the child of `stddaq up` with all `words` in its command, or None."""
    return child_of(up.process.pid, *words)


def width_of(path: str) -> int:
    with h5py.File(path) as file:
        data = next(iter(file.values()))["data"]  # pyright: ignore[reportIndexIssue]
        assert isinstance(data, h5py.Dataset)
        return data.shape[2]


@pytest.mark.slow
def test_a_change_during_a_run_waits_for_its_end_and_the_next_run_is_recorded_with_it(
    make_deployment: MakeDeployment, tmp_path: Path
) -> None:
    port = free_port()
    running = Up(make_deployment(number_of_writers=1, services=[rest_line(port)]), "-m", *SIMULATE)
    service = ConfigClient(f"http://127.0.0.1:{port}", user="me")
    with DriverClient(running.url) as driver:
        driver.start(tmp_path, file_prefix="before", n_image=1_000_000)
        driver.wait_for(lambda status: (status.count or 0) > 10, timeout=60)
        change = service.set(service.get() | {"number_of_writers": 2, "image_pixel_width": 64})
        assert "std_det_writer" in change.restarted
        running.process.wait_for_line("waiting for the end of the run")
        seen = driver.status().count or 0
        driver.wait_for(lambda status: (status.count or 0) > seen + 100, timeout=60)
        driver.stop()
        driver.wait_until_saved(timeout=60)
        before = driver.last_result()
    assert before is not None
    assert before["outcome"] == "file_saved"
    assert before["count"] == before["n_good"] > seen + 100
    assert (before["n_skipped"], before["n_dropped"], before["number_of_writers"]) == (0, 0, 1)
    assert [width_of(path) for path in before["files"]["raw"]] == [48]

    running.process.wait_for_line(CHANGED)
    with DriverClient(running.url) as driver:
        driver.start(tmp_path, file_prefix="after", n_image=50)
        driver.wait_until_saved(timeout=60)
        after = driver.last_result()
    assert after is not None
    assert (after["outcome"], after["n_good"], after["number_of_writers"]) == ("file_saved", 50, 2)
    assert [width_of(path) for path in after["files"]["raw"]] == [64, 64]


def command_of_a_plain_client(url: str, command: dict[str, object]) -> dict[str, Any]:
    """Connect, send, and return the first message but greetings, as a client of the C++ driver does.

    A client that sends later than 0.1 s after it has connected is greeted first.
    """

    def answer() -> dict[str, Any] | None:
        try:
            with connect(url, open_timeout=60) as connection:
                connection.send(json.dumps(command))
                messages = (json.loads(connection.recv(timeout=60)) for _ in range(100))
                return next(message for message in messages if message["status"] != "idle")
        except (OSError, InvalidHandshake, ConnectionClosed):
            return None

    return wait_until(answer, 60, "an answer of the driver")


def replies_until_accepted(url: str, command: dict[str, object]) -> list[dict[str, Any]]:
    """Send a command until the driver does not reject it. Return all replies."""
    replies: list[dict[str, Any]] = []

    def is_accepted() -> bool:
        replies.append(command_of_a_plain_client(url, command))
        return replies[-1]["status"] != "rejected"

    wait_until(is_accepted, 60, "a driver that is not busy")
    return replies


@pytest.mark.slow
def test_no_run_is_recorded_with_a_configuration_that_was_replaced(
    make_deployment: MakeDeployment, tmp_path: Path
) -> None:
    port = free_port()
    running = Up(make_deployment(number_of_writers=1, services=[rest_line(port)]), *SIMULATE)
    service = ConfigClient(f"http://127.0.0.1:{port}", user="me")
    for width in (256, 64):
        # It takes the change when the driver has rejected a run.
        running.process.send(signal.SIGSTOP)
        service.set(service.get() | {"image_pixel_width": width})
        start = {"command": "start", "path": str(tmp_path), "n_image": 20, "file_prefix": f"w{width}_"}
        replies = [command_of_a_plain_client(running.url, start)]
        running.process.send(signal.SIGCONT)
        replies += replies_until_accepted(running.url, start)
        assert {reply["reason"] for reply in replies[:-1]} == {"driver is busy!"}
        assert replies[-1]["status"] == "started", replies[-1]
        with DriverClient(running.url) as driver:
            driver.wait_for(lambda status: not status.is_busy, timeout=60)
            result = driver.last_result()
        assert result is not None
        assert (result["outcome"], result["n_good"]) == ("file_saved", 20)
        assert [width_of(path) for path in result["files"]["raw"]] == [width]
        running.process.wait_for_line(CHANGED)


@pytest.mark.slow
def test_services_that_a_change_does_not_concern_keep_running(
    make_deployment: MakeDeployment, tmp_path: Path
) -> None:
    running = Up(make_deployment(), *SIMULATE)
    source, writer = pid_of(running, "simulate"), pid_of(running, "std_det_writer", "0")
    running.deployment.write_config(number_of_writers=3)
    running.process.wait_for_line(CHANGED)
    assert pid_of(running, "simulate") == source
    assert pid_of(running, "std_det_writer", "0") != writer
    assert pid_of(running, "std_det_writer", "2")
    running.record(tmp_path, "-n", 10).succeed()
    n_lines = len(running.process.stdout)
    running.deployment.write_config(number_of_writers=1)
    running.process.wait_for_line(CHANGED, start=n_lines)
    assert not pid_of(running, "std_det_writer", "1")
    running.record(tmp_path, "-n", 10, "--overwrite").succeed()


@pytest.mark.slow
def test_live_streams_start_and_end_during_a_run(make_deployment: MakeDeployment, tmp_path: Path) -> None:
    first, second = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    forward, batch = {"type": "forward", "config": []}, {"type": "batch", "config": [1, 10]}
    running = Up(make_deployment(live_stream_configs={first: forward}), *SIMULATE)
    driver_pid, stream_pid = pid_of(running, "std_det_driver"), pid_of(running, first)
    assert stream_pid
    with DriverClient(running.url) as driver:
        driver.start(tmp_path, n_image=1_000_000)
        driver.wait_for(lambda status: (status.count or 0) > 10, timeout=60)
        running.deployment.write_config(live_stream_configs={first: batch, second: forward})
        running.process.wait_for_line(CHANGED)
        running.process.wait_for_line(r"^live_stream .*setting changed to batch 1 10")
        assert pid_of(running, first) == stream_pid
        assert pid_of(running, second)
        n_lines = len(running.process.stdout)
        running.deployment.write_config(live_stream_configs={first: batch})
        running.process.wait_for_line(CHANGED, start=n_lines)
        assert not pid_of(running, second)
        assert pid_of(running, "std_det_driver") == driver_pid
        assert driver.status().status == "recording"
        driver.stop()
        driver.wait_until_saved(timeout=60)
        result = driver.last_result()
    assert result is not None
    assert result["n_dropped"] == result["n_skipped"] == 0


def test_services_of_the_configuration_are_started_and_record(
    make_deployment: MakeDeployment, tmp_path: Path
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    deployment = make_deployment(
        services=["std_data_compress_blosc2 -t 1", f"std_live_stream {address} -s blosc2 -t bsread"],
        live_stream_configs={address: {"type": "forward", "config": []}},
    )
    running = Up(deployment, "-s", "blosc2", *SIMULATE)
    assert pid_of(running, "std_data_compress_blosc2", "-t", "1")
    assert pid_of(running, "std_live_stream", address, "blosc2")
    running.record(tmp_path, "-n", 10).succeed()
    import hdf5plugin  # noqa: F401  (registers the filter)

    with h5py.File(tmp_path / "fileMaster.h5") as file:
        images = np.asarray(file["entry/data/data"])
    assert images.shape == (10, 32, 48)
    assert images.any()
    assert running.process.end() == 0


def test_a_camera_on_the_network_is_recorded(make_deployment: MakeDeployment, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    deployment = make_deployment(detector_type="pco", services=[f"std_bsread_recv {address}"])
    running = Up(deployment, "-m")
    deployment.run(
        deployment.stddaq, "simulate-pco", deployment.config_path, address, "--rate", 100, ready="ready"
    )
    running.record(tmp_path, "-n", 20).succeed()
    with h5py.File(tmp_path / "fileMaster.h5") as file:
        assert file["entry/data/data"].shape == (20, 32, 48)  # pyright: ignore


@pytest.mark.parametrize(
    ("services", "mistake"),
    [
        (["rm -rf /"], "services.0: expected one of std"),
        (["stddaq-rest", "std_gf_filter 'x"], "services.1: expected"),
        (["std_live_stream tcp://127.0.0.1:1"], "expected an address of live_stream_configs (it has none)"),
        (["stddaq-rest", "stddaq-rest"], "services: expected each line once"),
        ("stddaq-rest", "services: expected"),
    ],
)
def test_an_unknown_service_is_refused_in_one_line(
    make_deployment: MakeDeployment, services: object, mistake: str
) -> None:
    deployment = make_deployment(services=services)
    process = deployment.run(deployment.stddaq, "up", deployment.config_path)
    assert process.wait() == 2
    assert len(process.stderr) == 1
    assert mistake in process.stderr[0]


@pytest.mark.slow
def test_a_bad_configuration_is_reported_once_and_all_services_keep_running(up: Callable[..., Up]) -> None:
    running = up(*SIMULATE)
    driver = pid_of(running, "std_det_driver")
    config = running.deployment.config
    running.deployment.config_path.write_text("{")
    running.process.wait_for_line(r"change ignored, services keep the previous configuration: .*is not JSON")
    running.deployment.config_path.write_text(json.dumps(config | {"number_of_writers": 0}))
    running.process.wait_for_line(r"ignored, .*number_of_writers: expected 1 or more for stddaq up, got 0")
    running.deployment.write_config(stats_collection_period=2)
    running.process.wait_for_line(CHANGED)
    assert pid_of(running, "std_det_driver") != driver
    assert sum("ignored" in line for line in running.process.stdout) == 2


@pytest.mark.slow
def test_it_ends_cleanly_while_a_change_waits_for_a_run(up: Callable[..., Up], tmp_path: Path) -> None:
    running = up(*SIMULATE)
    with DriverClient(running.url) as driver:
        driver.start(tmp_path, n_image=1_000_000)
        driver.wait_for(lambda status: (status.count or 0) > 10, timeout=60)
        running.deployment.write_config(number_of_writers=1)
        running.process.wait_for_line("waiting for the end of the run")
        assert running.process.end(signal.SIGINT) == 0
    with h5py.File(tmp_path / "fileMaster.h5") as file:
        assert file["entry/data/data"].shape[0] > 10  # pyright: ignore


@pytest.mark.slow
def test_a_driver_that_retires_finishes_its_run_and_refuses_another(
    deployment: Deployment, tmp_path: Path
) -> None:
    process, url = deployment.start_driver()
    deployment.start_writers()
    deployment.run(deployment.stddaq, "simulate", deployment.config_path, "--rate", 200, ready="ready")
    with DriverClient(url) as driver:
        driver.start(tmp_path, n_image=1_000_000)
        driver.wait_for(lambda status: (status.count or 0) > 10, timeout=60)
        process.send(signal.SIGUSR1)
        process.wait_for_line("no further run is admitted")
        seen = driver.status().count or 0
        driver.wait_for(lambda status: (status.count or 0) > seen, timeout=60)
        driver.stop()
        driver.wait_until_saved(timeout=60)
        with pytest.raises(CommandRefusedError, match="about to restart"):
            driver.start(tmp_path, file_prefix="other")
        result = driver.last_result()
    assert result is not None
    assert result["outcome"] == "file_saved"
    assert result["count"] == result["n_good"] > seen
    assert (result["n_skipped"], result["n_dropped"]) == (0, 0)
    assert process.wait() == 0


def test_an_idle_driver_that_retires_ends_at_once(deployment: Deployment) -> None:
    process, _ = deployment.start_driver()
    process.send(signal.SIGUSR1)
    assert process.wait() == 0


def test_a_service_that_refuses_a_changed_configuration_stays_down_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = ServiceSpec("good", ("sleep", "100"), "")
    bad = ServiceSpec("bad", ("sh", "-c", "exit 2"), "")
    better = ServiceSpec("bad", ("sleep", "100"), "")

    async def follow(supervisor: Supervisor) -> None:
        await supervisor.change_to([good, bad])
        while "stays down" not in capsys_text():
            await asyncio.sleep(0.01)
        await supervisor.change_to([good, better])
        os.kill(os.getpid(), signal.SIGTERM)

    said = ""

    def capsys_text() -> str:
        nonlocal said
        said += capsys.readouterr().out
        return said

    supervisor = Supervisor([good], restart_delays=(0.05, 0.05))
    assert asyncio.run(asyncio.wait_for(supervisor.run(lambda: "ready", follow), 30)) == 0
    text = capsys_text()
    assert "bad refuses to start; it stays down until the configuration changes" in text
    assert "good was killed" not in text


def test_the_wait_for_a_listener_recognises_one_on_all_interfaces(
    make_deployment: MakeDeployment,
) -> None:
    port = free_port()
    address = f"tcp://0.0.0.0:{port}"
    deployment = make_deployment(live_stream_configs={address: {"type": "forward", "config": []}})
    running = Up(deployment, *SIMULATE)
    wait_until(lambda: pid_of(running, address), what="the live stream")
    assert running.process.end() == 0
