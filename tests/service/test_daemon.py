"""How daemons end: signals, exit code, and nothing left behind (which the deployment checks itself)."""

from __future__ import annotations

import signal
import time

import pytest
from support.processes import Deployment


@pytest.mark.fault(
    fault="every daemon: {signal_number}",
    state="idle",
    promise="exit code 0 within 2 s; sockets and segments removed",
)
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_every_daemon_with_exit_code_0_within_2_s(
    deployment: Deployment, signal_number: signal.Signals
) -> None:
    driver, _ = deployment.start_driver("-m")
    services = [
        driver,
        *deployment.start_writers(),
        deployment.start("std_det_meta_writer_gf"),
        deployment.run(deployment.stddaq, "simulate", deployment.config_path, "--trigger", ready="ready"),
    ]
    assert deployment.segments()
    assert deployment.sockets()

    begin = time.monotonic()
    for service in services:
        service.send(signal_number)
    assert [service.wait() for service in services] == [0] * len(services)
    assert time.monotonic() - begin < 2.0
    assert deployment.segments() == []
    assert deployment.sockets() == []
    assert [service.stderr for service in services] == [[]] * len(services)


def test_signal_that_comes_twice_changes_nothing(deployment: Deployment) -> None:
    driver, _ = deployment.start_driver()
    driver.send(signal.SIGTERM)
    driver.send(signal.SIGINT)
    assert driver.wait() == 0
    assert driver.stderr == []
