"""`stddaq up` starts, supervises and ends real services."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import Up
from support.processes.children import child_of, children
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.machine import assert_within

from stddaq.cli.supervisor.spec import ServiceSpec
from stddaq.cli.supervisor.supervisor import Supervisor
from stddaq.daemon.arguments import ArgumentParser
from stddaq.writing.driver.options import add_driver_options

# A writer may stand still for as long as the ring buffer lasts, 1000 images.
SIMULATE = ("--source", "simulate", "--rate", "100")


def is_running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_pending(pid: int, signal_number: int) -> bool:
    """Return whether a signal has been sent to a process and not received yet."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.findall(r"ShdPnd:\s+(\w+)", status)[0], 16) & 1 << signal_number - 1)


def child_named(up: Up, *words: str) -> int:
    """Return the child of `stddaq up` that runs a script, with arguments."""
    return wait_until(lambda: child_of(up.process.pid, *words), what=words[0])


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_all_services_start_and_end_cleanly(up: Callable[..., Up], signal_number: int):
    running = up("-m", *SIMULATE)
    pids = children(running.process.pid)
    assert len(pids) == 5
    begin = time.monotonic()
    assert running.process.end(signal_number) == 0
    assert_within(time.monotonic() - begin, 8)
    assert not any(is_running(pid) for pid in pids)
    assert "all services have ended" in running.process.stdout[-1]
    assert not any("killing it" in line for line in running.process.stdout)
    assert running.deployment.sockets() == []
    assert running.deployment.segments() == []


def test_options_of_the_driver_reach_it(up: Callable[..., Up], tmp_path: Path):
    roots = [tmp_path / "first", tmp_path / "second"]
    for root in roots:
        root.mkdir()
    given = ["--allowed-root", str(roots[0]), "--allowed-root", str(roots[1]), "--overwrite"]
    given += ["--writer-timeout", "3.5", "-s", "filter"]
    running = up("-m", *given)
    driver = arguments_of(child_named(running, "std_det_driver"))
    assert parsed_options(driver) == parsed_options(["-m", *given, "--port", str(running.port)])
    writer = arguments_of(child_named(running, "std_det_writer", "0"))
    roots_given = [word for root in roots for word in ("--allowed-root", str(root))]
    assert writer == ["0", "-s", "filter", *roots_given]


def arguments_of(pid: int) -> list[str]:
    """Return the arguments of a service after its configuration file."""
    command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    return command[next(i for i, word in enumerate(command) if word.endswith(".json")) + 1 :]


def parsed_options(words: list[str]) -> argparse.Namespace:
    parser = ArgumentParser("std_det_driver")
    add_driver_options(parser)
    return parser.parse_args(words)


def test_lines_start_with_the_name_of_their_service(up: Callable[..., Up]):
    running = up("-m", *SIMULATE)
    for name in ("driver", "writer 0", "writer 1", "meta writer", "simulate"):
        running.process.wait_for_line(rf"^{name} +\| .*ready")


def test_a_killed_writer_is_restarted_and_takes_part_in_the_next_run(up: Callable[..., Up], tmp_path: Path):
    running = up(*SIMULATE)
    n_lines = len(running.process.stdout)
    os.kill(child_named(running, "std_det_writer", "1"), signal.SIGKILL)
    running.process.wait_for_line(r"writer 1 was killed by SIGKILL; starting it again in 0\.5 s")
    running.process.wait_for_line(r"^writer 1 .*ready", start=n_lines)
    running.record(tmp_path, "-n", 10).succeed()


def test_a_service_that_keeps_crashing_ends_everything(capsys: pytest.CaptureFixture[str]):
    good = ServiceSpec("good", ("sleep", "100"), "ipc:///absent")
    bad = ServiceSpec("bad", ("false",), "ipc:///absent")
    supervisor = Supervisor([good, bad], restart_delays=(0.05, 0.1))
    assert asyncio.run(supervisor.run(lambda: "ready")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "stddaq | bad ended with exit code 1; starting it again in 0.05 s",
        "stddaq | bad ended with exit code 1; starting it again in 0.1 s",
        "stddaq | bad ended with exit code 1, 3 times within 60 s; ending",
        "stddaq | all services have ended",
    ]


def test_children_do_not_outlive_a_killed_supervisor(up: Callable[..., Up]):
    running = up("-m", *SIMULATE)
    pids = children(running.process.pid)
    running.process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids), what="the end of all services")
    # They receive SIGTERM, so that they remove sockets and segments. The supervisor leaves its own socket.
    (left,) = running.deployment.sockets()
    assert left == f"{running.deployment.detector_name}-events"
    (running.deployment.ipc_directory / left).unlink()
    assert running.deployment.segments() == []


@pytest.mark.slow
def test_a_hung_service_is_killed_at_the_end_and_named(deployment: Deployment):
    running = Up(deployment, patient=False)
    os.kill(child_named(running, "std_det_writer", "1"), signal.SIGSTOP)
    assert running.process.end() == 0
    assert any("writer 1 does not end within" in line for line in running.process.stdout)
    assert running.deployment.segments() == []
    assert running.deployment.sockets() == []


def test_a_second_signal_kills_a_hung_service_at_once(up: Callable[..., Up]):
    running = up(*SIMULATE)
    os.kill(child_named(running, "simulate"), signal.SIGSTOP)
    running.process.send(signal.SIGINT)
    # The kernel would merge two signals that are sent at once.
    wait_until(lambda: not is_pending(running.process.pid, signal.SIGINT), what="the first signal's arrival")
    begin = time.monotonic()
    assert running.process.end(signal.SIGINT) == 0
    assert_within(time.monotonic() - begin, 3)
    running.process.wait_for_line("asked again")
    assert running.deployment.segments() == []
    assert running.deployment.sockets() == []


def test_a_service_that_refuses_is_not_restarted(deployment: Deployment):
    process = deployment.run(
        *(deployment.stddaq, "up", deployment.config_path, "--port", free_port()),
        *("--source", "simulate", "--rate", "fast"),
    )
    assert process.wait() == 2
    refusals = [line for line in process.stdout if "error: argument --rate" in line]
    assert len(refusals) == 1
    assert any("simulate refuses to start" in line for line in process.stdout)


@pytest.mark.fault(
    fault="ring buffer larger than the free memory in /dev/shm",
    state="start",
    promise="refused with both sizes; nothing is restarted, `stddaq up` ends with 2",
)
def test_a_ring_that_does_not_fit_is_refused_with_both_sizes(make_deployment: Callable[..., Deployment]):
    deployment = make_deployment(ram_buffer_gb=2**14)
    process = deployment.run(deployment.stddaq, "up", deployment.config_path, "--port", free_port())
    assert process.wait() == 2
    refused = r"-image: expected room for 17.6 TB .*, got [0-9.]+ [kMGT]?B free in /dev/shm"
    assert re.search(refused, "\n".join(process.stdout))
    assert not any("starting it again" in line for line in process.stdout)
    assert deployment.segments() == []


def test_a_port_that_another_program_has_is_refused_and_the_option_that_changes_it_named(
    deployment: Deployment,
):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = deployment.run(deployment.stddaq, "up", deployment.config_path, "--port", port)
        assert process.wait() == 2
    (line,) = process.stderr
    assert f"tcp://127.0.0.1:{port}: another service listens there already, so driver cannot start" in line
    assert "give another --port" in line


def test_a_second_deployment_of_the_same_detector_is_refused(up: Callable[..., Up]):
    running = up()
    second = running.deployment.run(
        running.deployment.stddaq, "up", running.deployment.config_path, "--port", free_port()
    )
    assert second.wait() == 2
    assert second.stdout == []
    assert re.search("another service listens there already", "".join(second.stderr))
    assert len(second.stderr) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--port", "0"), "--port: expected an integer from 1 to 65535, got '0'"),
        (("--port", "many"), "argument -p/--port"),
        (("--source", "camera"), "--source: expected one of none, simulate, replay, udp, got 'camera'"),
    ],
)
def test_a_bad_argument_is_one_line(deployment: Deployment, args: tuple[str, ...], message: str):
    process = deployment.run(deployment.stddaq, "up", deployment.config_path, *args)
    assert process.wait() == 2
    assert len(process.stderr) == 1
    assert message in process.stderr[0]


def test_a_configuration_without_writers_is_refused(make_deployment: Callable[..., Deployment]):
    deployment = make_deployment(number_of_writers=0)
    process = deployment.run(deployment.stddaq, "up", deployment.config_path)
    assert process.wait() == 2
    assert "number_of_writers: expected 1 or more for stddaq up, got 0" in process.stderr[0]


def test_an_allowed_root_among_the_options_of_the_source_is_refused(deployment: Deployment, tmp_path: Path):
    arguments = ("--source", "simulate", "--allowed-root", tmp_path)
    process = deployment.run(deployment.stddaq, "up", deployment.config_path, *arguments)
    assert process.wait() == 2
    (line,) = process.stderr
    assert "--allowed-root: expected its place before --source" in line


def test_a_finished_replay_is_not_a_crash(deployment: Deployment, tmp_path: Path):
    import numpy as np

    images = tmp_path / "images.npy"
    np.save(images, np.zeros((5, 32, 48), np.uint16))
    process = deployment.run(
        *(deployment.stddaq, "up", deployment.config_path, "--port", free_port()),
        *("--source", "replay", images, "--rate", "100"),
        ready="replay has finished",
    )
    process.wait_for_line("all services ready")
    assert process.end() == 0


def test_readiness_does_not_depend_on_the_log_level(make_deployment: Callable[..., Deployment]):
    running = Up(make_deployment(log_level="error"), *SIMULATE)
    assert running.process.end() == 0


def test_the_documented_filter_extracts_line_protocol(
    make_deployment: Callable[..., Deployment],
) -> None:
    page = (Path(__file__).parents[2] / "docs/reference/log-lines.md").read_text()
    found = re.search(r"stddaq up config.json --plain \| (grep .*)", page)
    assert found
    deployment = make_deployment(statistics_format="influxdb")
    running = Up(deployment, "--plain", "--source", "simulate", "--rate", "100")
    for service in ("std_det_writer", "std_det_driver"):
        running.process.wait_for_line(rf"^{service},detector=")
    output = "\n".join(running.process.stdout)
    filtered = subprocess.run(
        shlex.split(found[1]), input=output, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    # The simulator's measurement is `stddaq simulate`.
    assert len(filtered) == len(re.findall(rf"(?m)^std_\w+,detector={deployment.detector_name}", output)) > 1
    for line in filtered:
        assert re.fullmatch(r"std_\w+,detector=\S+ \S+ \d+", line), line
