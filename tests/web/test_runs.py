"""Recent runs: their accounts, before and after a restart of the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.web import RestService
from websockets.sync.client import connect

from stddaq.client import DriverClient
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.web import runs as runs_module
from stddaq.web.runs import FILE, KEPT, LISTED, Runs


def account(number: int, **more: Any) -> dict[str, Any]:
    return {"run_id": f"r{number}", "outcome": "file_saved", "count": number, **more}


def ids(runs: Runs, limit: int = 10, before: str | None = None) -> list[str]:
    return [one["run_id"] for one in runs.recent(limit, before)]


def test_newest_run_comes_first_and_each_once() -> None:
    runs = Runs()
    assert [runs.add(account(n)) for n in (1, 2, 3, 2)] == [True, True, True, False]
    for bad in ({}, {"run_id": None}, {"run_id": "r9"}, account(9) | {"count": "many"}):
        with pytest.raises(ValidationError, match="RunSummary"):
            runs.add(bad)
    assert ids(runs) == ["r3", "r2", "r1"]
    assert ids(runs, 1) == ["r3"]
    assert ids(runs, before="r3") == ["r2", "r1"]
    assert ids(runs, before="absent") == []
    assert runs.of("r2") == account(2)
    for n in range(KEPT + 10):
        runs.add(account(n))
    assert len(runs.recent(2 * KEPT)) == KEPT


def test_lists_of_ids_are_cut_and_say_so() -> None:
    runs = Runs()
    runs.add(account(1, skipped=[[n, n] for n in range(LISTED + 1)], damaged_ids=[5]))
    kept = runs.of("r1")
    assert kept is not None
    assert (len(kept["skipped"]), kept["damaged_ids"], kept["lists_truncated"]) == (LISTED, [5], True)


def test_runs_are_read_again_after_a_restart_and_the_file_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "MAX_LINES", 3)
    runs = Runs(tmp_path)
    for n in range(5):
        runs.add(account(n))
        runs.write(f"r{n}")
    path = tmp_path / FILE
    assert len(path.read_text().splitlines()) == 2
    with path.open("a") as file:
        file.write('no JSON\n[]\n{"run_id": 5}\n{"run_id": "r8"}\n{"run_id": "r9", "outco')
    again = Runs(tmp_path)
    assert ids(again) == [f"r{n}" for n in (4, 3, 2, 1, 0)]
    # The line that was cut, as by a full disk, costs no other.
    again.add(account(5))
    again.write("r5")
    assert ids(Runs(tmp_path))[0] == "r5"


def test_disk_that_does_not_take_a_run_is_reported_and_nothing_fails(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add(account(1))
    (tmp_path / FILE).mkdir()
    runs.write("r1")
    assert ids(runs) == ["r1"]


def test_runs_of_all_clients_are_listed_with_their_accounts(deployment: Deployment, tmp_path: Path) -> None:
    _, url = deployment.start_driver()
    deployment.start_writers()
    config = DetectorConfig.parse(deployment.config)
    state = tmp_path / "state"
    state.mkdir()
    options = ("--url", url, "--state-directory", state)

    def record(driver: DriverClient, prefix: str, *image_ids: int) -> None:
        driver.start(tmp_path, file_prefix=prefix, n_image=len(image_ids))
        driver.wait_until_ready(20)
        for image_id in image_ids:
            publisher.publish(image_id, np.ones(config.image_shape, np.uint16))
        driver.wait_until_saved(30)

    with ImagePublisher(config) as publisher, DriverClient(url) as driver:
        record(driver, "before", 1, 2)
        rest = RestService.start(deployment, tmp_path / "files", *options)
        # The last run before the start of this service is known from the driver.
        wait_until(lambda: len(rest.get("/api/runs").json()) == 1, 20, "the run before")
        record(driver, "after", 3, 5)
        wait_until(lambda: len(rest.get("/api/runs").json()) == 2, 20, "the run after")
        newest, oldest = rest.get("/api/runs").json()
        assert (newest["count"], newest["n_good"], newest["n_skipped"]) == (2, 2, 1)
        assert newest["files"]["master"] == f"{tmp_path}/afterMaster.h5"
        assert rest.get(f"/api/runs/{newest['run_id']}").json()["skipped"] == [[4, 4]]
        assert rest.get("/api/runs", before=newest["run_id"]).json() == [oldest]
        assert rest.get("/api/runs/absent").status_code == 404
        rest.process.end()
        again = RestService.start(deployment, tmp_path / "files", *options)
        assert [run["run_id"] for run in again.get("/api/runs").json()] == [
            newest["run_id"],
            oldest["run_id"],
        ]
    lines = (state / FILE).read_text().splitlines()
    assert [json.loads(line)["run_id"] for line in lines] == [oldest["run_id"], newest["run_id"]]


@pytest.mark.slow
def test_run_whose_driver_was_killed_is_listed_as_an_error(deployment: Deployment, tmp_path: Path) -> None:
    port = free_port()
    killed = deployment.start("std_det_driver", "--port", port)
    deployment.start_writers()
    config, url = DetectorConfig.parse(deployment.config), f"ws://127.0.0.1:{port}"
    rest = RestService.start(deployment, tmp_path / "files", "--url", url)
    with ImagePublisher(config) as publisher, DriverClient(url) as driver:
        driver.start(tmp_path, file_prefix="lost", n_image=5)
        run_id = driver.wait_until_ready(20).run_id
        for image_id in (1, 3):
            publisher.publish(image_id, np.ones(config.image_shape, np.uint16))
        with connect(f"ws{rest.url.removeprefix('http')}/api/run/ws") as statuses:
            wait_until(lambda: json.loads(statuses.recv(timeout=20)).get("count") == 2, 20, "two images")
    killed.kill()
    deployment.start("std_det_driver", "--port", port)
    (run,) = wait_until(lambda: rest.get("/api/runs").json(), 20, "the run of the killed driver")
    assert (run["run_id"], run["outcome"], run["n_image"], run["count"]) == (run_id, "error", 5, 2)
    assert "the driver ended, or was not reachable, in the state recording" in run["reason"]
    assert list(run["files"]) == ["raw"]
    assert run["files"]["raw"]
    assert rest.get(f"/api/runs/{run_id}").json()["n_skipped"] == 1
