"""`stddaq stop` against a driver that does not finish."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.peers.basic_driver import BasicDriver

from stddaq.cli import main
from stddaq.client import DriverClient, DriverTimeoutError


class SavingForEver(BasicDriver):
    """A driver that sends `saving_file` ten times a second and never ends."""

    async def _close_files(self) -> None:
        await asyncio.Event().wait()


def test_stop_gives_up_after_its_timeout_and_says_what_the_driver_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SavingForEver() as peer, DriverClient(peer.url) as driver:
        driver.start(tmp_path)
        driver.wait(["recording"], timeout=10)
        assert main(["stop", "--url", peer.url, "--timeout", "0.4"]) == 1
    assert "has not ended within 0.4 s, the driver is saving_file; it continues" in capsys.readouterr().err


def test_watching_a_run_with_a_timeout_ends_although_statuses_keep_coming(tmp_path: Path) -> None:
    with SavingForEver() as peer, DriverClient(peer.url) as driver:
        driver.start(tmp_path, n_image=1)
        with pytest.raises(DriverTimeoutError, match=r"has not ended within 0\.4 s"):
            list(driver.watch_run(timeout=0.4))


def test_wrong_timeout_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["stop", "--timeout", "0"])
    assert ended.value.code == 2
    assert "argument --timeout: expected a number of seconds above 0" in capsys.readouterr().err
