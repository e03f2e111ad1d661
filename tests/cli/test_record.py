"""`stddaq record`, `status` and `stop`."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from cli.conftest import StartServices
from support.peers.basic_driver import BasicDriver
from support.processes.deployment import Deployment, free_port

from stddaq.cli import record
from stddaq.cli.stop_signals import stop_signals
from stddaq.client import DriverClient, DriverStatus
from stddaq.client.simulator import SimulatorClient

# A writer may stand still for as long as the ring buffer lasts, 1000 images.
SIMULATE = ("--rate", "100")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir()
    return path


@pytest.mark.slow
def test_a_run_ends_with_its_account(services: StartServices, directory: Path):
    running = services(*SIMULATE)
    record = running.record(directory, "-n", 120, "--prefix", "scan")
    assert record.wait() == 0
    assert "outcome     saved" in record.stdout
    assert re.search(r"images +120, all good, ids \d+ to \d+, none dropped", record.output)
    assert re.search(r"duration .* images/s, .* GB/s", record.output)
    for name in ("scan0.h5", "scan1.h5", "scanMeta.h5", "scanMaster.h5"):
        assert re.search(rf"{name} \(.* kB\)", record.output)
    with h5py.File(directory / "scanMaster.h5") as file:
        data = file["/entry/data/data"]
        assert isinstance(data, h5py.Dataset)
        assert data.shape == (120, 32, 48)


@pytest.mark.slow
def test_skipped_ids_are_shown_with_their_ranges(services: StartServices, directory: Path):
    running = services(*SIMULATE, "--skip-every", "10")
    record = running.record(directory, "-n", 100)
    assert record.wait() == 0
    assert re.search(r"100 of 100 images, \d+ skipped", record.output)
    assert re.search(r"skipped +\d+: image ids \d+, .*, \.\.\.", record.output)


@pytest.mark.slow
def test_run_with_end_on_restart_names_the_ids_of_the_restart(services: StartServices, directory: Path):
    running = services("--trigger", "--rate", "0")
    record = running.record(directory, "-n", 100, "--end-on-restart")
    record.wait_for_line("waiting_for_first_image")
    with SimulatorClient(running.deployment.detector_name) as client:
        client.trigger(20)
        # Image 0 must be copied before its slot is used again, or the account would count it as overwritten.
        record.wait_for_line("recording: 20 of 100")
        client.rearm(0)
        client.trigger(1)
    assert record.wait() == 1
    assert record.stderr[0].startswith(
        "stddaq record: run failed: the image ids restarted: 0 came after 19, "
    )
    assert re.search(r"images +20, all good, ids 0 to 19", record.output)


@pytest.mark.slow
def test_on_a_terminal_there_is_a_progress_bar(services: StartServices, directory: Path):
    running = services(*SIMULATE)
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [running.deployment.stddaq, "record", directory, "-n", "200", "--url", running.url],
        env={**running.deployment.env, "TERM": "xterm", "COLUMNS": "120"},
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 65536)
        except OSError:  # The other end of the terminal is closed.
            break
        if not part:
            break
        shown += part
    os.close(controller)
    assert process.wait(60) == 0
    assert b"recording" in shown
    assert "━".encode() in shown
    assert re.search(rb"images/s, .*GB/s", shown)


class Statuses(DriverClient):
    """Watches a run that has these statuses."""

    def __init__(self, *statuses: DriverStatus) -> None:
        super().__init__()
        self._statuses = statuses

    def watch_run(self, timeout: float | None = None) -> Iterator[DriverStatus]:
        del timeout
        yield from self._statuses


def test_off_a_terminal_a_line_comes_only_when_it_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "LINE_PERIOD_S", 0.0)
    waiting, recording = DriverStatus("waiting_for_first_image"), DriverStatus("recording", 0)
    statuses = waiting, waiting, recording, recording, DriverStatus("recording", 1), waiting
    with stop_signals(()) as asked:
        record.follow(Statuses(*statuses), None, asked)
    shown = [
        "waiting_for_first_image",
        "recording: 0 images",
        "recording: 1 images",
        "waiting_for_first_image",
    ]
    assert capsys.readouterr().out.splitlines() == shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_run_and_saves_it(
    services: StartServices, directory: Path, number: signal.Signals
):
    running = services(*SIMULATE)
    record = running.record(directory)
    record.wait_for_line("recording: .*images")
    assert record.end(number) == 0
    assert any("stopping" in line for line in record.stdout)
    assert "outcome     saved" in record.stdout
    assert not any(line.startswith("stopped") for line in record.stdout)
    assert (directory / "fileMaster.h5").exists()


def test_a_run_that_was_stopped_says_how_many_images_were_asked_for(services: StartServices, directory: Path):
    running = services(*SIMULATE)
    record = running.record(directory, "-n", 100_000)
    record.wait_for_line("recording: .*images")
    assert record.end(signal.SIGINT) == 0
    assert "stopped     before all of the 100000 images that it was to record" in record.stdout


def test_numbered_runs_continue_after_those_of_the_directory(services: StartServices, directory: Path):
    running = services(*SIMULATE)
    for _ in range(2):
        running.record(directory, "-n", 3, "--prefix", "scan", "--auto").succeed()
    masters = sorted(path.name for path in directory.glob("*Master.h5"))
    assert masters == ["scan_0001_Master.h5", "scan_0002_Master.h5"]
    refused = running.record(directory / "missing", "--auto")
    assert refused.wait() == 2
    assert "missing" in refused.stderr[0]


def test_existing_files_are_refused_without_overwrite(services: StartServices, directory: Path):
    running = services(*SIMULATE)
    (directory / "file0.h5").touch()
    refused = running.record(directory, "-n", 5)
    assert refused.wait() == 1
    assert "refused" in refused.stderr[0]
    assert "file0.h5" in refused.stderr[0]
    assert refused.stderr[0].endswith("(--prefix, --auto, --overwrite)")
    running.record(directory, "-n", 5, "--overwrite").succeed()


@pytest.mark.slow
def test_a_failed_run_is_exit_code_1_with_the_reason(deployment: Deployment, directory: Path):
    _, url = deployment.start_driver()
    record = deployment.run(deployment.stddaq, "record", directory, "--url", url)
    assert record.wait() == 1
    assert re.search("run failed: .*writer 0", record.stderr[0])


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("/absent/directory",), 1, "/absent/directory"),
        ((".", "-n", "many"), 2, "argument -n"),
        ((".", "-n", "-3"), 2, "argument -n/--n-images: expected an integer from 0"),
        ((".", "--prefix", "a/b"), 1, "file_prefix"),
        ((".", "--config", "/absent.json"), 2, "/absent.json"),
        ((), 2, "path"),
    ],
)
def test_bad_arguments_are_one_line(
    deployment: Deployment, args: tuple[str, ...], code: int, message: str, directory: Path
):
    _, url = deployment.start_driver()
    record = deployment.run(deployment.stddaq, "record", *args, "--url", url, cwd=directory)
    assert record.wait() == code
    assert len(record.stderr) == 1
    assert message in record.stderr[0]


@pytest.mark.parametrize("command", [("record", "."), ("status",), ("stop",)])
def test_an_unreachable_driver_is_one_line(deployment: Deployment, command: tuple[str, ...]):
    url = f"ws://127.0.0.1:{free_port()}"
    process = deployment.run(deployment.stddaq, *command, "--url", url)
    assert process.wait() == 2
    assert len(process.stderr) == 1
    assert "is it started?" in process.stderr[0]


def test_a_basic_driver_can_be_used(deployment: Deployment, directory: Path):
    with BasicDriver() as peer:
        record = deployment.run(deployment.stddaq, "record", directory, "-n", 150, "--url", peer.url)
        assert record.wait() == 0
        assert "keeps no account" in record.output
        status = deployment.run(deployment.stddaq, "status", "--url", peer.url)
        assert status.wait() == 0
        assert status.stdout == ["idle"]


def test_a_driver_that_replaces_files_is_not_started_without_overwrite(
    deployment: Deployment, directory: Path
):
    (directory / "file0.h5").write_text("precious")
    (directory / "file_notes.h5").touch()
    with BasicDriver() as peer:
        command = [deployment.stddaq, "record", directory, "-n", 15, "--url", peer.url]
        refused = deployment.run(*command)
        assert refused.wait() == 1
        assert "expected no file of this run, got file0.h5; this driver replaces" in refused.stderr[0]
        unseen = deployment.run(*command[:2], directory / "absent", *command[3:])
        assert unseen.wait() == 1
        assert "a directory that can be listed from here" in unseen.stderr[0]
        assert peer.commands == []
        # The options that the messages advise.
        assert deployment.run(*command, "--overwrite").wait() == 0
        assert deployment.run(*command, "--prefix", "other").wait() == 0


@pytest.mark.slow
def test_duration_and_rate_exclude_the_wait_for_the_first_image(services: StartServices, directory: Path):
    running = services("--trigger", "--rate", "100")
    record = running.record(directory, "-n", 101)
    record.wait_for_line("waiting_for_first_image")
    time.sleep(1)  # The time that must not count.
    triggered = time.monotonic()
    with SimulatorClient(running.deployment.detector_name) as client:
        client.trigger(101)
    assert record.wait() == 0
    since = time.monotonic() - triggered
    found = re.search(
        r"duration +([\d.]+) s from the first image to the last, ([\d.]+) images/s", record.output
    )
    assert found
    # The simulator may be late on a busy machine.
    assert 0.9 < float(found[1]) < since
    assert 95 < float(found[1]) * float(found[2]) < 107


@pytest.mark.slow
def test_files_that_were_not_created_are_not_listed(deployment: Deployment, directory: Path):
    _, url = deployment.start_driver()
    record = deployment.run(deployment.stddaq, "record", directory, "--url", url)
    assert record.wait() == 1
    assert not any(line.startswith("file ") for line in record.stdout)


def test_status_shows_the_state_and_the_last_run(services: StartServices, directory: Path):
    running = services(*SIMULATE)
    stddaq = running.deployment.stddaq
    before = running.deployment.run(stddaq, "status", "--url", running.url)
    assert before.wait() == 0
    assert before.stdout[0] == "idle"
    running.record(directory, "-n", 7).succeed()
    after = running.deployment.run(stddaq, "status", "--url", running.url)
    assert after.wait() == 0
    assert "  outcome     saved" in after.stdout
    machine = running.deployment.run(stddaq, "status", "--json", "--url", running.url)
    assert machine.wait() == 0
    assert json.loads(machine.stdout[0])["last_result"]["count"] == 7


def test_stop_ends_a_run_of_another_client(services: StartServices, directory: Path):
    running = services(*SIMULATE)
    record = running.record(directory)
    record.wait_for_line("recording: ")
    stop = running.deployment.run(running.deployment.stddaq, "stop", "--url", running.url)
    assert stop.wait() == 0
    assert re.search(r"^file_saved: \d+ of \d+ images", stop.stdout[-1])
    assert record.wait() == 0


def test_stop_without_a_run_says_so(services: StartServices):
    running = services()
    stop = running.deployment.run(running.deployment.stddaq, "stop", "--url", running.url)
    assert stop.wait() == 0
    assert "no run is in progress" in stop.stdout[0]


def test_a_trigger_is_fired(services: StartServices, directory: Path):
    running = services("--trigger", "--rate", "500")
    record = running.record(directory, "-n", 30)
    record.wait_for_line("waiting_for_first_image")
    trigger = running.deployment.run(
        running.deployment.stddaq, "trigger", running.deployment.config_path, "-n", 30
    )
    assert trigger.wait() == 0
    assert "30 images" in trigger.stdout[0]
    assert record.wait() == 0
    assert (directory / "fileMaster.h5").exists()


# Modules are imported first, because other users may not have access to the checkout.
TRIGGER_AS_OTHER = """
import os, sys
from stddaq.client.simulator import SimulatorClient, SimulatorError
os.setgroups([]), os.setgid(65533), os.setuid(65533)
try:
    SimulatorClient(sys.argv[1], timeout=0.3).trigger()
except SimulatorError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root connects to every socket, and only root can drop rights")
def test_a_simulator_that_this_user_may_not_trigger_is_not_reported_as_absent(deployment: Deployment):
    command = (deployment.stddaq, "simulate", deployment.config_path, "--trigger", "--rate", 0)
    simulator = deployment.run(*command, ready="ready")
    deployment.ipc_directory.chmod(0o755)

    def trigger_as_other() -> str:
        command = [sys.executable, "-c", TRIGGER_AS_OTHER, deployment.detector_name]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    assert "expected permission to connect, got none as user" in (refused := trigger_as_other())
    assert "has owner user root and mode 0755" in refused
    deployment.ipc_directory.chmod(0o700)
    directory = deployment.ipc_directory
    assert f"expected permission to search {directory}, got none" in (refused := trigger_as_other())
    assert f"{directory} has owner user root and mode 0700" in refused
    assert simulator.end() == 0
    deployment.ipc_directory.chmod(0o755)
    assert "no simulator or replay of this detector is running on this machine" in trigger_as_other()
