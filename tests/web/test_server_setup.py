"""`/api/test/.../server-setup`: the tests of a server, and what they find."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import Deployment, wait_until
from support.processes.web import RestService

PATH = "/api/test/tomcat/server-setup"


def findings(rest: RestService) -> dict[str, Any]:
    """Return the findings of all tests by name."""
    return {finding["name"]: finding for finding in rest.post(PATH).json()["tests"]}


def test_server_that_is_ready_passes_and_keeps_no_file(
    deployment: Deployment, driver_url: str, start_rest: Callable[..., RestService]
) -> None:
    rest = start_rest("--url", driver_url)
    # A service that stands still on a busy machine is not ready.
    wait_until(lambda: rest.post(PATH).json()["passed"], what="a server that is ready")
    answer = rest.post(PATH)
    assert answer.status_code == 200
    result = answer.json()
    assert (result["passed"], result["message"]) == (True, "the server is ready for runs")
    assert result["detector_name"] == deployment.detector_name
    names = ["services", "driver", f"HDF5 file in {rest.root}", "run in /"]
    assert [test["name"] for test in result["tests"]] == names
    assert result["tests"][1]["found"] == "idle"
    assert "B free" in result["tests"][3]["found"]
    assert list(rest.root.iterdir()) == []
    rest.process.wait_for_line(r"\[event\] server setup of .* \(tomcat\): the server is ready for runs")


@pytest.mark.slow
def test_service_that_was_killed_and_missing_driver_are_found(
    deployment: Deployment, start_rest: Callable[..., RestService]
) -> None:
    driver, driver_url = deployment.start_driver()
    rest = start_rest("--url", driver_url)
    wait_until(lambda: findings(rest)["services"]["found"] == "2 work", 20, "the pages of the services")
    driver.kill()
    wait_until(lambda: not findings(rest)["services"]["passed"], 20, "the killed driver")
    found = findings(rest)
    assert "std_det_driver: ended" in found["services"]["found"]
    assert not found["driver"]["passed"]
    assert driver_url in found["driver"]["found"]
    assert found[f"HDF5 file in {rest.root}"]["passed"]
    message = rest.post(PATH).json()["message"]
    assert message.startswith("failed: services, driver, run in ")


def test_root_where_no_file_can_be_made_is_found(rest: RestService) -> None:
    """A file is made with the rights of the owner of the directory."""
    place = Path(tempfile.mkdtemp(prefix="stddaq-", dir="/tmp"))
    try:
        started = rest.start(rest.deployment, place)
        os.chown(place, 12345, -1)
        for mode, expected in ((0o500, "in which uid 12345 may create files"), (0o400, "may enter")):
            place.chmod(mode)
            found = findings(started)[f"HDF5 file in {place}"]
            assert not found["passed"]
            assert expected in found["found"]
    finally:
        place.rmdir()


def test_root_that_was_removed_is_found(rest: RestService) -> None:
    rest.root.rmdir()
    assert "does not exist" in findings(rest)[f"HDF5 file in {rest.root}"]["found"]
