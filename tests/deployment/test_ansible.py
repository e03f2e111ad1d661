"""The role deploys to a booted container: recorded, repeated, upgraded during a run, rolled back, removed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes.container import ROLE, TOOLS, Container, ansible, needs_container
from support.processes.deployment import wait_until

pytestmark = [pytest.mark.external, needs_container, pytest.mark.timeout(600)]
DRIVER = "std_daq-simulated-std_det_driver-0.service"
UPDATE = f"/run/systemd/system/{DRIVER}.d/90-update.conf"


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    with Container(tmp_path) as container:
        yield container


def changes(playbook: subprocess.Popen[str]) -> int:
    """Return the number of changes of a deployment that succeeds."""
    output, _ = playbook.communicate(timeout=300)
    assert playbook.returncode == 0, output
    found = re.search(r"changed=(\d+)", output)
    assert found, output
    return int(found[1])


def record(container: Container, version: str, prefix: str) -> None:
    """Record 50 images, all of them good."""
    command = f"/opt/stddaq/{version}/bin/stddaq record /var/lib/std_daq -n 50 --prefix {prefix}"
    assert "50, all good" in container.run(command)


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
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_deployment_from_nothing_to_its_removal(container: Container) -> None:
    assert changes(container.playbook("9.0.1")) > 0
    record(container, "9.0.1", "first")
    before = processes(container)
    assert changes(container.playbook("9.0.1")) == 0
    assert processes(container) == before

    _refuses_mistakes(container)
    assert processes(container) == before

    _upgrades_after_the_run(container)
    record(container, "9.0.2", "second")
    assert changes(container.playbook("9.0.1")) > 0
    assert version_of(container) == "9.0.1"
    record(container, "9.0.1", "third")

    changes(container.playbook("9.0.1", {"stddaq_state": "absent"}))
    assert container.run("ls -d /etc/systemd/system/std_daq* /opt/stddaq /etc/std_daq", check=False) == ""
    assert container.run("ls /var/lib/std_daq/*Master.h5").count("Master.h5") == 4


def _refuses_mistakes(container: Container) -> None:
    playbook = container.directory / "ansible" / "deployment.yml"
    right = playbook.read_text()
    playbook.write_text(right.replace("params: [1]", "params: [7]"))
    process = container.playbook("9.0.1")
    output, _ = process.communicate(timeout=300)
    playbook.write_text(right)
    assert process.returncode != 0
    assert "expected a writer below number_of_writers, 2, got 7" in output


def _upgrades_after_the_run(container: Container) -> None:
    run = container.start("/opt/stddaq/9.0.1/bin/stddaq record /var/lib/std_daq --prefix during")
    playbook = container.playbook("9.0.2")

    def is_waiting() -> bool:
        return container.run(f"ls {UPDATE}", check=False) != ""

    wait_until(is_waiting, 300, "the upgrade waits for the run", 1.0)
    assert version_of(container) == "9.0.1"
    container.run("/opt/stddaq/9.0.1/bin/stddaq stop")
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output
    assert re.search(r"images +\d+, all good, .* none dropped", output), output
    assert changes(playbook) > 0
    assert version_of(container) == "9.0.2"
