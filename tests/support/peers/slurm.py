"""A real SLURM of Debian: one node of two processors, for jobs of the user who runs the tests."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
from support.processes.deployment import free_port, wait_until

from stddaq.closing import Closing

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0

# All sockets are of the loopback interface, and no file of the system is used. The node may have less than
# its line says. Jobs need no cgroups.
_CONFIG = """\
ClusterName=stddaq
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
PluginDir={plugins}
PlugStackConfig={directory}/plugstack.conf
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=100000 State=UNKNOWN
PartitionName=test Nodes=node Default=YES State=UP
"""


class Slurm(Closing):
    """A running SLURM after `start`.

    Attributes:
        environment: variables with which `sbatch`, `scancel` and `srun` are found and use it.
    """

    def __init__(self, directory: Path) -> None:
        """`directory` is for its files. Skip the test without the programs."""
        unpacked = Path(sys.prefix) / "slurm"
        root = unpacked if (unpacked / "usr/bin/sbatch").exists() else Path("/")
        path = os.pathsep.join([*(str(root / "usr" / name) for name in ("bin", "sbin")), os.environ["PATH"]])
        libraries = [*root.glob("usr/lib/*-linux-gnu*"), *root.glob("usr/lib/*-linux-gnu*/slurm-wlm")]
        if shutil.which("sbatch", path=path) is None or shutil.which("munged", path=path) is None:
            pytest.skip(
                "needs the packages slurmctld, slurmd and munge of Debian, see .ci/make-debian-packages"
            )
        self.environment = os.environ | {
            "PATH": path,
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "SLURM_CONF": str(directory / "slurm.conf"),
        }
        self._directory, self._close = directory, ExitStack()
        self._on_host, host = _host_of_loopback()
        for name in ("state", "spool"):
            (directory / name).mkdir()
        (directory / "plugstack.conf").touch()
        (directory / "key").touch(0o600)
        (directory / "key").write_bytes(secrets.token_bytes(1024))
        (directory / "slurm.conf").write_text(
            _CONFIG.format(
                ports=[free_port(), free_port()],
                user=pwd.getpwuid(os.getuid()).pw_name,
                directory=directory,
                plugins=libraries[-1],
                host=host,
            )
        )

    def start(self) -> Self:
        """Start it, and wait until the node is idle."""
        munge = self._directory / "munge.socket"
        files = {
            name: self._directory / f"munged.{name}" for name in ("pid-file", "log-file", "seed-file")
        } | {"key-file": self._directory / "key", "socket": munge}
        # Directories of tests are not accessible to all users.
        self._start(
            "munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items())
        )
        wait_until(munge.exists, START_TIMEOUT_S, "munged")
        self._start("slurmctld-wlm", "-D")
        self._start("slurmd-wlm", "-D", "-d", self._program("slurmstepd-wlm"))
        wait_until(
            lambda: self.run("sinfo", "-h", "-o", "%T", check=False) == "idle", START_TIMEOUT_S, "SLURM"
        )
        # Jobs end before it.
        self._close.callback(self._end_jobs)
        return self

    def run(self, *command: str | Path, check: bool = True, directory: Path | None = None) -> str:
        """Run one of its programs; return its standard output."""
        finished = subprocess.run(
            [self._program(str(command[0])), *command[1:]],
            env=self.environment,
            cwd=directory or self._directory,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not check or finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    def submit(self, *arguments: str | Path, directory: Path) -> str:
        """Submit a job by `sbatch` from `directory`; return its id."""
        return self.run("sbatch", "--parsable", *arguments, directory=directory)

    def wait(self, job: str, timeout: float) -> list[str]:
        """Wait until all tasks of a job have ended; return their states."""
        wait_until(lambda: not self.run("squeue", "-h", "-j", job), timeout, f"job {job}", period=0.1)
        shown = self.run("scontrol", "-o", "show", "job", job).splitlines()
        return [line.partition("JobState=")[2].split()[0] for line in shown]

    def close(self) -> None:
        self._close.close()

    def _end_jobs(self) -> None:
        for job in self.run("squeue", "-h", "-o", "%A").split():
            self.run("scancel", "--full", "--signal=KILL", job, check=False)
        wait_until(lambda: not self.run("squeue", "-h"), END_TIMEOUT_S, "the end of the jobs", period=0.1)

    def _start(self, name: str, *arguments: str) -> None:
        with (self._directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*self._on_host, self._program(name), *arguments],
                env=self.environment,
                stdout=log,
                stderr=log,
                # Ctrl-C is not for them: they must end the jobs first.
                start_new_session=True,
            )
        self._close.callback(_end, process)

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=self.environment["PATH"])
        assert found is not None, f"{name} is not in {self.environment['PATH']}"
        return found


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(END_TIMEOUT_S)
    finally:
        # Nothing is left behind when it does not end; that fails the test.
        daemon.kill()


def _host_of_loopback() -> tuple[list[str], str]:
    """Return what commands start with, and the name of the host for them.

    The daemons listen at its address. Unless that is 127.0.0.1, they run in a namespace where the host is
    named localhost; skip the test where none can be made.
    """
    name = os.uname().nodename
    try:
        if socket.gethostbyname(name) == "127.0.0.1":
            return [], name.split(".")[0]
    except OSError:  # The name is unknown.
        pass
    command = ["unshare", "--uts", "sh", "-c", 'hostname localhost && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"{name}: needs the address 127.0.0.1, or root for another name")
    return command, "localhost"
