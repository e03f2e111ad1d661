"""BEC's servers as processes with their own Redis, and a client of them; `make test-all` installs them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import h5py
from support.processes.deployment import Service, free_port

# A second environment, which `make test-all` creates.
PYTHON = Path(sys.prefix) / "bec" / "bin" / "python"
CLIENT = Path(__file__).parents[1] / "peers" / "bec_client.py"
# Six processes import BEC one after the other.
START_TIMEOUT_S = 200.0
STEP_TIMEOUT_S = 100.0
# The device server first, for which the others wait. Without scihub no configuration is accepted.
SERVERS = {
    "bec-device-server": "Started DeviceServer",
    "bec-scan-server": "Started ScanServer",
    "bec-scan-bundler": "Started ScanBundler",
    "bec-file-writer": "Started FileWriter",
    "bec-scihub": "Started SciHub",
}

# A motor that moves at once, in a configuration of devices.
MOTOR = """
samx:
  deviceClass: ophyd_devices.SimPositioner
  deviceConfig: {delay: 0, limits: [-50, 50], tolerance: 0.01, update_frequency: 400}
  readoutPriority: baseline
  enabled: true
  readOnly: false
"""


def is_complete(path: Path) -> bool:
    """Return whether BEC has closed its file."""
    try:
        with h5py.File(path):
            return True
    except OSError:
        return False


def write_plugin(directory: Path, devices: str) -> None:
    """Write a plugin repository of a beamline as it is when it is installed: `beamline_bec.devices`."""
    package, info = directory / "beamline_bec", directory / "beamline_bec-1.0.dist-info"
    for folder in (package, info):
        folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "devices.py").write_text(devices)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: beamline_bec\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bec]\nplugin_bec = beamline_bec\n")


class BecServers:
    """Redis, BEC's servers and a client, whose files are below `directory`; a context manager."""

    def __init__(self, directory: Path, environment: dict[str, str], devices: str) -> None:
        """Devices run in `environment`; `devices` is the module of a beamline that defines them."""
        assert PYTHON.exists(), (
            f"{PYTHON}: missing; `make test-all` creates it, or sh .ci/make-bec {sys.prefix}"
        )
        self._directory, self._close = directory, ExitStack()
        write_plugin(directory / "plugin", devices)
        # Settings and files of a user's home directory do not count.
        own = {"HOME": str(directory), "PYTHONPATH": str(directory / "plugin")}
        self._env = environment | own
        self._config = directory / "services.yaml"
        self.data = directory / "data"
        self.servers: dict[str, Service] = {}
        self._asked: list[Service] = []

    def __enter__(self) -> Self:
        with self._close:
            self._start()
            self._close = self._close.pop_all()
        return self

    def _start(self) -> None:
        port = free_port()
        redis = [str(PYTHON.with_name("redis-server")), "--port", str(port), "--bind", "127.0.0.1"]
        server = Service([*redis, "--save", "", "--dir", str(self._directory)], self._env)
        self._close.callback(server.end, timeout=STEP_TIMEOUT_S)
        server.wait_for_line("[Rr]eady to accept connections", START_TIMEOUT_S)
        self.data.mkdir()
        # JSON is YAML.
        config = {
            "redis": {"host": "127.0.0.1", "port": port},
            "file_writer": {"plugin": "default_NeXus_format", "base_path": str(self.data)},
            "log_writer": {"base_path": str(self._directory / "logs")},
            "procedures": {"enable_procedures": False},
        }
        self._config.write_text(json.dumps(config))
        for name in SERVERS:
            self._start_server(name)
        self.client = self._close.enter_context(BecClient(self._config, self._directory, self._env))
        for name in SERVERS:
            self.wait_for_server(name)
        self.client.run(
            "[client.wait_for_service(name) for name in ('DeviceServer', 'ScanServer', 'SciHub')]"
        )

    def _start_server(self, name: str) -> None:
        command = [str(PYTHON.with_name(name)), "--config", str(self._config)]
        server = Service(["sh", "-c", 'exec "$@" 2>&1', "sh", *command], self._env, self._directory)
        self._close.callback(self._end_server, server)
        self.servers[name] = server

    def wait_for_server(self, name: str) -> None:
        """Wait until a server has started."""
        self.servers[name].wait_for_line(SERVERS[name], START_TIMEOUT_S)

    def restart(self, name: str) -> None:
        """Start a server again that has ended."""
        self._start_server(name)
        self.wait_for_server(name)

    def _ask_to_end(self, server: Service) -> None:
        # They end by Ctrl-C; a second one would interrupt their end, after which some never do.
        if server not in self._asked:
            self._asked.append(server)
            server.send(signal.SIGINT)

    def _end_server(self, server: Service) -> None:
        if server.returncode is None:
            self._ask_to_end(server)
            try:
                server.wait(STEP_TIMEOUT_S)  # Not all exit with 0.
            except AssertionError:
                server.kill()

    def load(self, devices: str) -> None:
        """Load a configuration of devices, in YAML."""
        path = self._directory / "devices.yaml"
        path.write_text(devices)
        load = f"client.config.update_session_with_file({str(path)!r}, force=True, save_recovery=False)"
        self.client.run(f"{load}\nscans, dev = client.scans, client.device_manager.devices")

    def assert_valid(self, devices: str) -> None:
        """Check a configuration of devices with BEC's own tool, which loads and connects them."""
        path = self._directory / "checked.yaml"
        path.write_text(devices)
        tool = [PYTHON.with_name("ophyd_test"), "--config", path, "--output", self._directory, "--connect"]
        done = subprocess.run(
            tool, env=self._env, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "All devices passed the test." in done.stdout

    def master(self, number: int) -> Path:
        """Return BEC's master file of a scan."""
        scan = f"S{number:05d}"
        return self.data / "S00000-00999" / scan / f"{scan}_master.h5"

    @property
    def output(self) -> str:
        """Return what the device server logged, for messages."""
        return self.servers["bec-device-server"].output[-5000:]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # They end at the same time, the device server last: others wait for it.
        for server in reversed(self.servers.values()):
            self._ask_to_end(server)
        self._close.close()


class BecClient:
    """A client, which runs Python lines with the names `client`, `scans` and `dev`; a context manager."""

    def __init__(self, config: Path, directory: Path, env: dict[str, str]) -> None:
        self._log = (directory / "client.log").open("wb")
        mine, theirs = os.pipe()
        self._answers = os.fdopen(mine)
        self._process = subprocess.Popen(
            [PYTHON, CLIENT, config, str(theirs)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=env | {"PYTHONUNBUFFERED": "1"},
            cwd=directory,
            pass_fds=[theirs],
            text=True,
            bufsize=1,
        )
        os.close(theirs)

    def begin(self, code: str) -> None:
        """Start to run Python code; `answer` waits for its end."""
        lines: IO[str] | None = self._process.stdin
        assert lines is not None
        lines.write(json.dumps(code) + "\n")
        lines.flush()

    def answer(self, timeout: float = STEP_TIMEOUT_S) -> dict[str, Any]:
        """Return the value of `result`, or the error."""
        ready, _, _ = select.select([self._answers], [], [], timeout)
        assert ready, f"no answer of the client within {timeout} s:\n{self.output}"
        line = self._answers.readline()
        assert line, f"the client has ended:\n{self.output}"
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, code: str, timeout: float = START_TIMEOUT_S) -> Any:
        """Run Python code, which must not fail. Return the value of `result`."""
        self.begin(code)
        answer = self.answer(timeout)
        assert "error" not in answer, answer["error"] + "\n" + answer["trace"]
        return answer["value"]

    @property
    def output(self) -> str:
        """Return what the client has printed."""
        return Path(self._log.name).read_text(errors="replace")[-5000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STEP_TIMEOUT_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._answers.close()
            self._log.close()
