"""A defect in the distributor's thread ends the driver, because clients could not notice it otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.processes.deployment import Deployment

from stddaq.client import DriverClient, RunFailedError
from stddaq.daemon.forced_exit import CRASHED

DRIVER_WITH_A_DEFECT = """
import sys
from stddaq.writing.driver.distributor import Distributor
from stddaq.writing.driver.service import main

Distributor._control = lambda self: 1 / 0
sys.exit(main(sys.argv[1:]))
"""


def test_a_defect_in_the_data_path_ends_the_driver(deployment: Deployment) -> None:
    program = (sys.executable, "-c", DRIVER_WITH_A_DEFECT)
    driver = deployment.run(*program, deployment.config_path, "--port", 0)
    assert driver.wait() == CRASHED, driver.output
    assert "the thread distributor failed unexpectedly: the service exits" in driver.output
    assert "ZeroDivisionError" in driver.output
    assert deployment.sockets() == []


DRIVER_THAT_CANNOT_SEND = """
import sys
from stddaq.writing.driver.service import main
from stddaq.writing.driver.writer_peer import WriterConnection

WriterConnection.request = lambda *_: 1 / 0
sys.exit(main(sys.argv[1:]))
"""


def test_a_request_that_cannot_be_sent_ends_the_run(deployment: Deployment, directory: Path) -> None:
    deployment.start_writers()
    program = (sys.executable, "-c", DRIVER_THAT_CANNOT_SEND)
    driver = deployment.run(*program, deployment.config_path, "--port", 0)
    url = driver.wait_for_line(r"ready: listening on (ws://\S+)")[1]
    with DriverClient(url) as client:
        client.start(directory, n_image=1)
        with pytest.raises(RunFailedError, match="unexpected ZeroDivisionError"):
            client.wait_until_saved(timeout=50)
        client.wait(["idle"], timeout=50)
