"""`stddaq stop` and `stddaq record` with a driver that does not finish, or starts slowly."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from support.peers.basic_driver import BasicDriver
from support.processes.deployment import Deployment, wait_until

from stddaq.cli import main
from stddaq.client import DriverClient, DriverTimeoutError


class SavingForEver(BasicDriver):
    """A driver that sends `saving_file` ten times a second and never ends."""

    async def _close_files(self) -> None:
        await asyncio.Event().wait()


class StartingSlowly(BasicDriver):
    """A driver that does not change its state, once it has received `start`, before `admit`."""

    def __init__(self) -> None:
        super().__init__()
        self._start: dict[str, Any] = {}

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["command"] != "start":
            return super()._obey(command)
        self._start = command
        return self._state

    def admit(self) -> None:
        """Start the run."""
        self._loop.call_soon_threadsafe(super()._obey, self._start)


def test_stop_gives_up_after_its_timeout_and_shows_the_state_of_the_driver(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SavingForEver() as peer, DriverClient(peer.url) as driver:
        driver.start(tmp_path)
        driver.wait(["recording"], timeout=60)
        assert main(["stop", "--url", peer.url, "--timeout", "0.4"]) == 1
    assert "has not ended within 0.4 s, the driver is saving_file; `stddaq status " in capsys.readouterr().err


def test_record_gives_up_after_its_timeout_when_it_was_stopped(
    deployment: Deployment, tmp_path: Path
) -> None:
    with SavingForEver() as peer:
        record = deployment.run(
            *(deployment.stddaq, "record", tmp_path, "--url", peer.url, "--stop-timeout", "0.4")
        )
        record.wait_for_line("recording: .* images")
        assert record.end(signal.SIGINT) == 1
    assert "has not ended within 0.4 s, the driver is saving_file; `stddaq status " in record.stderr[0]


def test_record_stops_a_run_that_starts_after_ctrl_c(deployment: Deployment, tmp_path: Path) -> None:
    with StartingSlowly() as peer:
        record = deployment.run(deployment.stddaq, "record", tmp_path, "--url", peer.url)
        wait_until(lambda: peer.commands)
        record.process.send_signal(signal.SIGINT)
        peer.admit()
        assert record.wait() == 0
        assert [command["command"] for command in peer.commands] == ["start", "stop"]
    assert record.stderr == []


def test_watching_a_run_ends_at_the_timeout_although_statuses_keep_arriving(tmp_path: Path) -> None:
    with SavingForEver() as peer, DriverClient(peer.url) as driver:
        driver.start(tmp_path, n_image=1)
        with pytest.raises(DriverTimeoutError, match=r"has not ended within 0\.4 s"):
            list(driver.watch_run(timeout=0.4))


def test_wrong_timeout_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["stop", "--timeout", "0"])
    assert ended.value.code == 2
    assert "argument --timeout: expected a number of seconds above 0" in capsys.readouterr().err
