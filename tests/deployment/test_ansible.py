"""The roles deploy to booted containers: recorded, repeated, upgraded during a run, rolled back, removed.

The summary of each step is printed, for `pytest -s` and for the report of a test that fails.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes.container import ROLE, TOOLS, Container, Playbooks, ansible, needs_container
from support.processes.deployment import wait_until

pytestmark = [pytest.mark.external, needs_container, pytest.mark.timeout(600)]
DRIVER = "std_daq-simulated-std_det_driver-0.service"
SOURCE = "std_daq-simulated-simulate-0.service"
UPDATE = f"/run/systemd/system/{DRIVER}.d/90-update.conf"


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    with Container(tmp_path) as container:
        yield container


@pytest.fixture
def playbooks(tmp_path: Path, container: Container) -> Iterator[Playbooks]:
    playbooks = Playbooks(tmp_path, [container])
    yield playbooks
    playbooks.close()


def changes(playbook: subprocess.Popen[str], what: str) -> int:
    """Return the number of changes, on all servers, of a deployment that succeeds."""
    output, _ = playbook.communicate(timeout=300)
    assert playbook.returncode == 0, output
    found = re.findall(r"(?m)^\w+ +: ok=\d+ +changed=(\d+) .*$", output)
    assert found, output
    print(f"{what}: changed={'+'.join(found)}")
    return sum(map(int, found))


def record(container: Container, version: str, prefix: str) -> None:
    """Record 50 images, all of them good."""
    command = f"/opt/stddaq/{version}/bin/stddaq record /var/lib/std_daq -n 50 --prefix {prefix}"
    output = container.run(command)
    print(f"recorded by {version}: {counts(output)}")
    assert "50, all good" in output


def counts(output: str) -> str:
    """Return the line with the counts of images."""
    found = re.search(r"(?m)^images +(.+)$", output)
    assert found, output
    return found[1]


def processes(container: Container) -> str:
    """Return the main processes of all services."""
    return container.run("systemctl show --property=Id,MainPID 'std_daq-*.service'")


def version_of(container: Container) -> str:
    found = re.search(r"/opt/stddaq/([\d.]+)/", container.run(f"systemctl cat {DRIVER}"))
    assert found
    return found[1]


def test_role_and_playbook_are_clean(tmp_path: Path) -> None:
    shutil.copytree(ROLE, tmp_path / "ansible")
    command = [TOOLS / "ansible/bin/ansible-lint", "--offline", "--nocolor", "-q"]
    done = subprocess.run(
        command,
        check=False,
        cwd=tmp_path / "ansible",
        env=ansible(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_deployment_from_nothing_to_its_removal(container: Container, playbooks: Playbooks) -> None:
    # Too small for the ring buffer.
    container.run("mount -o remount,size=1M /dev/shm")
    assert changes(playbooks.start("9.0.1"), "applied") > 0
    assert int(container.run("stat --file-system --format=%b /dev/shm")) * 4096 > 30 * 2**20
    record(container, "9.0.1", "first")
    before = processes(container)
    assert changes(playbooks.start("9.0.1"), "applied again") == 0
    assert processes(container) == before

    _refuses_mistakes(playbooks)
    assert processes(container) == before
    _runs_as_its_units_say(container)
    _restarts_what_hangs(container)

    _upgrades_after_the_run(container, playbooks)
    record(container, "9.0.2", "second")
    assert changes(playbooks.start("9.0.1"), "rolled back") > 0
    assert version_of(container) == "9.0.1"
    record(container, "9.0.1", "third")

    changes(playbooks.start("9.0.1", {"stddaq_state": "absent"}), "removed")
    left = "ls -d /etc/systemd/system/std* /opt/stddaq /etc/std_daq"
    assert container.run(left, check=False) == ""
    assert container.run("ls /var/lib/std_daq/*Master.h5").count("Master.h5") == 4


def _refuses_mistakes(playbooks: Playbooks) -> None:
    playbook = playbooks.directory / "ansible" / "deployment.yml"
    right = playbook.read_text()
    playbook.write_text(right.replace("params: [1]", "params: [7]"))
    process = playbooks.start("9.0.1")
    output, _ = process.communicate(timeout=300)
    playbook.write_text(right)
    assert process.returncode != 0
    mistake = "expected a writer below number_of_writers, 2, got 7"
    assert mistake in output
    print(f"refused: {mistake}")


def _runs_as_its_units_say(container: Container) -> None:
    cores = f"grep Cpus_allowed_list /proc/$(systemctl show --property=MainPID --value {DRIVER})/status"
    assert container.run(cores).split()[-1] == "0"
    # The journal has the level of each line.
    assert "ready: listening" in container.run(f"journalctl --priority=info --unit={DRIVER}")
    assert "ready: listening" not in container.run(f"journalctl --priority=notice --unit={DRIVER}")
    print("pinned to its core, levels in the journal")


def _restarts_what_hangs(container: Container) -> None:
    drop_in = f"/run/systemd/system/{SOURCE}.d"
    settings = "[Service]\\nWatchdogSec=4\\nTimeoutAbortSec=1\\n"
    container.run(
        f"mkdir {drop_in} && printf '{settings}' >{drop_in}/90-test.conf"
        f" && systemctl daemon-reload && systemctl restart {SOURCE}"
    )
    show = f"systemctl show --value --property=MainPID,ActiveState {SOURCE}"
    pid, _ = container.run(show).split()
    container.run(f"kill -STOP {pid}")

    def is_restarted() -> bool:
        now, state = container.run(show).split()
        return now not in (pid, "0") and state == "active"

    wait_until(is_restarted, 120, "the watchdog restarts a service that hangs", 1.0)
    container.run(f"rm -r {drop_in} && systemctl daemon-reload && systemctl restart {SOURCE}")
    print("a service that hangs is restarted by the watchdog")


def _upgrades_after_the_run(container: Container, playbooks: Playbooks) -> None:
    run = container.start("/opt/stddaq/9.0.1/bin/stddaq record /var/lib/std_daq --prefix during")
    playbook = playbooks.start("9.0.2")

    def is_waiting() -> bool:
        return container.run(f"ls {UPDATE}", check=False) != ""

    wait_until(is_waiting, 300, "the upgrade waits for the run", 1.0)
    assert version_of(container) == "9.0.1"
    container.run("/opt/stddaq/9.0.1/bin/stddaq stop")
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output
    print(f"run during the upgrade: {counts(output)}")
    assert re.search(r"\d+, all good, .* none dropped", counts(output)), output
    assert changes(playbook, "upgraded after the run") > 0
    assert version_of(container) == "9.0.2"


@pytest.mark.skipif(shutil.which("ip") is None, reason="ip of iproute2")
def test_a_receiving_and_a_writing_server(tmp_path: Path) -> None:
    with Container(tmp_path, "receiving") as receiving, Container(tmp_path, "writing") as writing:
        receiving.connect(writing, "10.0.0.1", "10.0.0.2")
        playbooks = Playbooks(tmp_path, [receiving, writing])
        try:
            assert changes(playbooks.start("9.0.1", playbook="two_servers.yml"), "two servers, applied") > 0
            record(writing, "9.0.1", "first")
            before = [processes(server) for server in (receiving, writing)]
            again = playbooks.start("9.0.1", playbook="two_servers.yml")
            assert changes(again, "two servers, applied again") == 0
            assert [processes(server) for server in (receiving, writing)] == before
            record(writing, "9.0.1", "second")
            # The images come over the network: without it, none are recorded.
            assert "std_stream_send" not in before[1]
            assert "std_det_driver" not in before[0]
        finally:
            playbooks.close()
