"""Booted Debians with systemd, to which Ansible deploys: `systemd-nspawn`, made by .ci/make-container."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from support.processes.deployment import wait_until

from stddaq.daemon.parent_death import end_with_parent

TOOLS = Path(sys.prefix) / "container"
ROLE = Path(__file__).parents[3] / "services" / "ansible"
# Ansible calls it as ssh; the last argument is the command.
_ENTER = """#!/bin/sh
for last; do :; done
exec nsenter --target "$(cat {directory}/leader)" --mount --uts --ipc --net --pid --cgroup -- \
/usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root sh -c "$last"
"""
needs_container = pytest.mark.skipif(
    not (TOOLS / "debian").is_dir(), reason="a container of .ci/make-container, which needs root"
)


class Container:
    """A container that is booted in `with`; what it changes is in memory, and vanishes with it."""

    def __init__(self, directory: Path, host: str = "container") -> None:
        """`host`: its name in Ansible's inventory."""
        self.directory, self.host = directory / host, host
        self._name = f"stddaq-{os.getpid()}-{host}"
        self._enter = self.directory / "enter"
        self._process: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Container:
        self.directory.mkdir(parents=True)
        self._enter.write_text(_ENTER.format(directory=self.directory))
        self._enter.chmod(0o755)
        self._boot()
        return self

    @property
    def inventory(self) -> str:
        """Return the line of Ansible's inventory."""
        return (
            f"{self.host} ansible_ssh_executable={self._enter} ansible_ssh_transfer_method=piped "
            "ansible_python_interpreter=/usr/bin/python3 ansible_become=false\n"
        )

    @property
    def leader(self) -> int:
        """Return the process id of its first process."""
        return int((self.directory / "leader").read_text())

    def connect(self, other: Container, own_address: str, other_address: str) -> None:
        """Connect the networks of two containers, and these to nothing else."""
        command = (
            f"ip link add peer netns {self.leader} type veth peer name peer netns {other.leader}",
            *_addressed(self.leader, own_address),
            *_addressed(other.leader, other_address),
        )
        for line in command:
            subprocess.run(line.split(), check=True, timeout=30)

    def _boot(self) -> None:
        libraries = next((TOOLS / "libsystemd-shared").glob("usr/lib/*/systemd"))
        command = [
            TOOLS / "systemd-container/usr/bin/systemd-nspawn",
            *("--keep-unit", "--register=no", "--boot", "--private-network"),
            *(f"--directory={TOOLS / 'debian'}", "--volatile=overlay", f"--machine={self._name}"),
            f"--bind-ro={TOOLS / 'wheels'}:/srv/wheels",
        ]
        log = self.directory / "boot.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
                start_new_session=True,
                # Also when the test is killed.
                preexec_fn=end_with_parent(),  # noqa: PLW1509 - as in stddaq's own commands
            )
        process = self._process

        def is_running() -> bool:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            if process.poll() is not None:
                pytest.skip(f"systemd-nspawn cannot boot here: {log.read_text(errors='replace')[-300:]}")
            leader = children.read_text().split()[:1]
            (self.directory / "leader").write_text(" ".join(leader))
            return bool(leader) and self.run("systemctl is-system-running", check=False).strip() in (
                "running",
                "degraded",
            )

        try:
            wait_until(is_running, 120, "the container is up", 0.5)
        except BaseException:
            self._end()
            raise

    def run(self, command: str, *, check: bool = True, timeout: float = 120) -> str:
        """Run a shell command in the container; return its output."""
        done = subprocess.run(
            [self._enter, command], check=False, capture_output=True, text=True, timeout=timeout
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a shell command in the container."""
        return _start([self._enter, command], self._started)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        _end_all(self._started)
        if self._process is not None:
            # The end of its first process is the end of all; an orderly shutdown would wait for each.
            if leader := (self.directory / "leader").read_text():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(leader), signal.SIGKILL)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for left in Path("/run/systemd/nspawn").glob(f"*/{self._name}"):
            left.rmdir()


class Playbooks:
    """Ansible for some containers, with a copy of the role and its playbooks in `directory`."""

    def __init__(self, directory: Path, containers: Sequence[Container]) -> None:
        self.directory = directory
        self._started: list[subprocess.Popen[str]] = []
        (directory / "inventory").write_text("[all]\n" + "".join(each.inventory for each in containers))
        shutil.copytree(ROLE, directory / "ansible")

    def start(
        self, version: str, variables: Mapping[str, str] | None = None, playbook: str = "deployment.yml"
    ) -> subprocess.Popen[str]:
        """Start the deployment of a version."""
        values = {
            "std_daq_sw_version": version,
            "stddaq_package": f"stddaq=={version}",
            "stddaq_pip_arguments": "--no-index --find-links /srv/wheels",
            "stddaq_venv_arguments": ["--system-site-packages"],
            **(variables or {}),
        }
        command = [
            *(TOOLS / "ansible/bin/ansible-playbook", "-i", self.directory / "inventory"),
            *("-e", json.dumps(values)),
            self.directory / "ansible" / playbook,
        ]
        return _start(command, self._started, env=ansible(self.directory))

    def close(self) -> None:
        _end_all(self._started)


def _addressed(leader: int, address: str) -> tuple[str, str]:
    enter = f"nsenter --target {leader} --net ip"
    return f"{enter} address add {address}/24 dev peer", f"{enter} link set peer up"


def _start(
    command: Sequence[Any], started: list[subprocess.Popen[str]], **options: Any
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command,
        # Ansible refuses one that does not block, such as a test's may be.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    started.append(process)
    return process


def _end_all(started: Sequence[subprocess.Popen[str]]) -> None:
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ansible(directory: Path) -> dict[str, str]:
    """Return an environment in which Ansible writes into `directory` only."""
    return {
        **os.environ,
        "PATH": f"{TOOLS}/ansible/bin:{os.environ['PATH']}",
        "HOME": str(directory),
        "ANSIBLE_HOME": str(directory / ".ansible"),
        "ANSIBLE_LOCAL_TEMP": str(directory / "local"),
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
    }
