"""`stddaq status` shows which services work, and tells scripts by its exit code."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cli.conftest import Up
from support.processes.deployment import Deployment, wait_until
from support.processes.recording import Rig


def status(deployment: Deployment, url: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code, and the services by name."""
    process = deployment.run(deployment.stddaq, "status", "--json", "--url", url)
    code = process.wait(30)
    services = json.loads("\n".join(process.stdout))["services"]
    return code, {f"{row['service']} {row['id']}".rstrip(): row for row in services}


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
    assert shown.wait(30) == 1
    row = next(line.split() for line in shown.stdout if "std_det_writer 1" in line)
    assert row[:4] == ["std_det_writer", "1", "ended", "yes"]


def test_services_are_shown_when_the_driver_does_not_answer(deployment: Deployment) -> None:
    driver, url = deployment.start_driver()
    wait_until(lambda: status(deployment, url)[1], 20)
    driver.kill()
    shown = deployment.run(deployment.stddaq, "status", "--url", url)
    assert shown.wait(30) == 2
    assert any(line.split()[:3] == ["std_det_driver", "ended", "yes"] for line in shown.stdout)
    assert "is it started?" in shown.stderr[0]


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
