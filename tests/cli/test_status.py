"""`stddaq status` shows which services work, and tells scripts by its exit code."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.conftest import Up
from support.processes.deployment import Deployment, wait_until
from support.processes.recording import Rig

from stddaq.daemon.health import health_of
from stddaq.daemon.metrics_reader import read_pages


def answer(deployment: Deployment, url: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the answer in JSON, with the services by name."""
    process = deployment.run(deployment.stddaq, "status", "--json", "--url", url)
    code = process.wait(60)
    content = json.loads("\n".join(process.stdout))
    rows = {f"{row['service']} {row['id']}".rstrip(): row for row in content["services"]}
    return code, content | {"services": rows}


def status(deployment: Deployment, url: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code, and the services by name."""
    code, content = answer(deployment, url)
    return code, content["services"]


def shown(deployment: Deployment, url: str, service: str) -> tuple[int, list[str]]:
    """Return the exit code, and the words of the row of a service."""
    process = deployment.run(deployment.stddaq, "status", "--url", url)
    code = process.wait(60)
    return code, next((line.split() for line in process.stdout if line.strip().startswith(service)), [])


def wait_for_state(monkeypatch: pytest.MonkeyPatch, deployment: Deployment, service: str, state: str) -> None:
    """Wait until a service has a state, by the function that the command calls."""
    monkeypatch.setenv("STDDAQ_IPC_DIR", str(deployment.ipc_directory))

    def has_it() -> bool:
        services = health_of(deployment.detector_name, read_pages(deployment.detector_name))
        return any((one.name, one.state) == (service, state) for one in services)

    wait_until(has_it, 40, f"{service}: {state}", 0.1)


def wait_for_code(deployment: Deployment, url: str, code: int) -> dict[str, dict[str, Any]]:
    def found() -> dict[str, dict[str, Any]] | None:
        found_code, services = status(deployment, url)
        return services if found_code == code else None

    return wait_until(found, 40, f"exit code {code}")


def test_killed_service_is_shown_and_is_exit_code_1(rig: Rig) -> None:
    deployment, url = rig.deployment, rig.url
    names = {"std_det_driver", "std_det_writer 0", "std_det_writer 1"}
    wait_until(lambda: status(deployment, url)[1].keys() == names, 20)
    assert {row["state"] for row in wait_for_code(deployment, url, 0).values()} == {"works"}
    rig.writers[1].kill()
    services = wait_for_code(deployment, url, 1)
    assert services["std_det_writer 1"]["state"] == "ended"
    shown = deployment.run(deployment.stddaq, "status", "--url", url)
    assert shown.wait(60) == 1
    row = next(line.split() for line in shown.stdout if "std_det_writer 1" in line)
    assert row[:4] == ["std_det_writer", "1", "ended", "yes"]


def test_services_are_shown_when_the_driver_does_not_answer(deployment: Deployment) -> None:
    driver, url = deployment.start_driver()
    wait_until(lambda: status(deployment, url)[1], 20)
    driver.kill()
    shown = deployment.run(deployment.stddaq, "status", "--url", url)
    assert shown.wait(60) == 2
    assert any(line.split()[:3] == ["std_det_driver", "ended", "yes"] for line in shown.stdout)
    assert "is it started?" in shown.stderr[0]


@pytest.mark.slow
def test_up_says_what_it_runs_and_how_often_it_restarted_it(up: Callable[..., Up]) -> None:
    running = up("--source", "simulate", "--rate", "10")
    deployment, url = running.deployment, f"ws://127.0.0.1:{running.port}"
    services = wait_for_code(deployment, url, 0)
    assert services["up"]["pid"] == running.process.pid
    assert services["std_det_writer 0"]["restarts"] == 0
    os.kill(services["std_det_writer 0"]["pid"], signal.SIGKILL)
    wait_until(lambda: status(deployment, url)[1]["std_det_writer 0"]["restarts"] == 1, 20)
    assert wait_for_code(deployment, url, 0)["std_det_writer 0"]["state"] == "works"


def test_finished_replay_is_not_needed(up: Callable[..., Up], tmp_path: Path) -> None:
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((3, 32, 48), "<u2"))
    running = up("--source", "replay", str(images), "--rate", "100")
    running.process.wait_for_line("replay has finished")
    url = f"ws://127.0.0.1:{running.port}"
    wait_until(lambda: status(running.deployment, url)[1].get("replay", {}).get("state") == "not_needed", 20)
    wait_for_code(running.deployment, url, 0)


@pytest.mark.slow
def test_hanging_service_is_silent_and_one_that_has_ended_in_order_is_not_shown(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment, url = rig.deployment, rig.url
    wait_for_state(monkeypatch, deployment, "std_det_writer 1", "works")
    rig.writers[1].send(signal.SIGSTOP)
    wait_for_state(monkeypatch, deployment, "std_det_writer 1", "silent")
    code, row = shown(deployment, url, "std_det_writer 1")
    assert (code, row[:4]) == (1, ["std_det_writer", "1", "silent", "yes"])
    assert row[-1] == str(rig.writers[1].pid)
    rig.writers[1].send(signal.SIGCONT)
    wait_for_state(monkeypatch, deployment, "std_det_writer 1", "works")
    assert rig.writers[0].end() == 0
    services = wait_for_code(deployment, url, 0)
    assert services.keys() == {"std_det_driver", "std_det_writer 1"}


@pytest.mark.slow
def test_hanging_driver_is_exit_code_2_and_named_with_all_services(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, url = deployment.start_driver()
    wait_for_state(monkeypatch, deployment, "std_det_driver", "works")
    driver.send(signal.SIGSTOP)
    # The command waits for the driver until its heartbeat is old.
    code, content = answer(deployment, url)
    assert code == 2
    assert content["status"] is content["last_result"] is None
    assert content["error"] == f"{url}: expected the status of a driver within 5 s, got none"
    assert content["services"]["std_det_driver"]["state"] == "silent"
    assert driver.end(signal.SIGKILL) == -signal.SIGKILL
    code, content = answer(deployment, url)
    assert (code, content["services"]["std_det_driver"]["state"]) == (2, "ended")


def test_services_that_all_have_ended_in_order_leave_exit_code_2_and_no_rows(deployment: Deployment) -> None:
    driver, url = deployment.start_driver()
    assert driver.end() == 0
    code, content = answer(deployment, url)
    assert (code, content["services"]) == (2, {})
    assert "is it started?" in content["error"]


def test_service_that_cannot_start_is_missing(up: Callable[..., Up], monkeypatch: pytest.MonkeyPatch) -> None:
    running = up("--source", "simulate", "--rate", "10")
    deployment = running.deployment
    deployment.write_config(services=["std_preview --mask /absent.npy"])
    wait_for_state(monkeypatch, deployment, "std_preview", "missing")
    code, row = shown(deployment, running.url, "std_preview")
    assert (code, row[:4]) == (1, ["std_preview", "missing", "yes", "never"])
