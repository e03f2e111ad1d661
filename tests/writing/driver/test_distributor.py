"""A defect in the distributor's thread ends the driver, because clients could not notice it otherwise."""

from __future__ import annotations

import sys

from support.processes.deployment import Deployment

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
