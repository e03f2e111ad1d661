"""`/api/run`: runs that are checked, started and stopped over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from support.data.token import TOKEN
from support.processes.deployment import Deployment, wait_until
from support.processes.web import RestService

from stddaq.client import DriverClient
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def controlled(deployment: Deployment, driver_url: str, tmp_path: Path) -> RestService:
    return RestService.start(deployment, tmp_path / "files", "--url", driver_url)


@pytest.fixture
def publisher(deployment: Deployment) -> Iterator[ImagePublisher]:
    with ImagePublisher(DetectorConfig.parse(deployment.config)) as publisher:
        yield publisher


def image(deployment: Deployment) -> np.ndarray:
    return np.ones(DetectorConfig.parse(deployment.config).image_shape, np.uint16)


def state(rest: RestService) -> str:
    return rest.get("/api/run/status").json()["status"]


def test_run_is_checked_started_stopped_and_followed(
    controlled: RestService, publisher: ImagePublisher, driver_url: str, tmp_path: Path
) -> None:
    rest = controlled
    with requests.get(rest.url + "/api/run/events", stream=True, timeout=30) as stream:
        lines = stream.iter_lines(chunk_size=1)
        assert next(lines) == b"event: idle"
        body = {"path": str(tmp_path), "file_prefix": "scan", "n_image": 100}
        checked = rest.post("/api/run/check", body).json()
        assert checked["status"] == "idle"
        assert checked["needed_bytes"] == 100 * image(rest.deployment).nbytes
        assert checked["free_bytes"] > checked["needed_bytes"]
        assert checked["files"]["master"] == f"{tmp_path}/scanMaster.h5"
        assert list(tmp_path.glob("scan*")) == []

        answer = rest.post("/api/run/start", body)
        assert answer.status_code == 200
        run_id = answer.json()["run_id"]
        with DriverClient(driver_url) as driver:
            driver.wait(["waiting_for_first_image"], 20)
        publisher.publish(7, image(rest.deployment))
        wait_until(lambda: state(rest) == "recording", 20, "the first image")
        busy = rest.post("/api/run/start", body)
        assert (busy.status_code, busy.json()["error"]) == (409, "busy")
        # A run can be checked during another one.
        assert rest.post("/api/run/check", body | {"file_prefix": "next"}).json()["status"] == "recording"
        assert rest.post("/api/run/check", body).json()["error"] == "file_exists"
        assert rest.post("/api/run/stop").json()["run_id"] == run_id
        states = ["idle"]
        while states[-1] != "file_saved":
            line = next(lines)
            if line.startswith(b"event: "):
                states.append(line.removeprefix(b"event: ").decode())
            elif line.startswith(b"data: ") and states[-1] == "file_saved":
                assert json.loads(line.removeprefix(b"data: "))["count"] == 1
        assert {"started", "recording"} <= set(states)
    rest.process.wait_for_line(rf"\[event\] a client at 127.0.0.1 starts run {run_id}: .*scan")
    rest.process.wait_for_line(rf"\[event\] a client at 127.0.0.1 stops run {run_id}")
    assert rest.post("/api/run/repair").json() == []


@pytest.mark.parametrize(
    ("change", "field", "error"),
    [
        ({"path": "relative"}, "path", "invalid_field"),
        ({"path": "{tmp}/absent"}, "path", "path_not_usable"),
        ({"file_prefix": "a/b"}, "file_prefix", "invalid_field"),
        ({"file_prefix": ""}, "file_prefix", "invalid_field"),
        ({"file_prefix": "there"}, "file_prefix", "file_exists"),
        ({"n_image": -1}, "n_image", "invalid_field"),
        ({"n_image": 2**50}, "n_image", "disk_full"),
        ({"start_id": -1}, "start_id", "invalid_field"),
        ({"first_image_timeout": 0}, "first_image_timeout", "invalid_field"),
    ],
)
def test_refusal_names_its_field(
    controlled: RestService, tmp_path: Path, change: dict[str, Any], field: str, error: str
) -> None:
    (tmp_path / "there0.h5").touch()
    body: dict[str, Any] = {"path": str(tmp_path), "n_image": 1} | change
    body["path"] = body["path"].format(tmp=tmp_path)
    for command in ("check", "start"):
        answer = controlled.post(f"/api/run/{command}", body)
        assert answer.status_code == 422, answer.text
        assert (answer.json()["field"], answer.json()["error"]) == (field, error)
    assert state(controlled) == "idle"


def test_uid_and_unknown_fields_are_refused(controlled: RestService, tmp_path: Path) -> None:
    """The page decides neither whose files they are nor which command it is."""
    for extra in ({"writer_id": 0}, {"command": "stop"}, {"timeout": 5}):
        for command in ("check", "start"):
            answer = controlled.post(f"/api/run/{command}", {"path": str(tmp_path), **extra})
            assert answer.status_code == 422
            assert "unknown field" in answer.json()["detail"][0]


def test_driver_that_does_not_run_is_named(
    deployment: Deployment, start_rest: Callable[..., RestService], tmp_path: Path
) -> None:
    rest = start_rest("--url", "ws://127.0.0.1:9")
    for command in ("check", "start", "stop", "repair"):
        answer = rest.post(f"/api/run/{command}", {"path": str(tmp_path)})
        assert answer.status_code == 502
        assert "ws://127.0.0.1:9: no driver accepts connections there" in answer.json()["detail"]


def test_driver_with_the_token_of_this_service_is_controlled(
    deployment: Deployment, token_file: Path, tmp_path: Path
) -> None:
    _, url = deployment.start_driver("--token-file", token_file)
    rest = RestService.start(deployment, tmp_path / "files", "--url", url, "--token-file", token_file)
    answer = requests.post(
        rest.url + "/api/run/check",
        json={"path": str(tmp_path), "n_image": 1},
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=30,
    )
    assert answer.json()["status"] == "idle"


def test_page_of_another_site_starts_no_run(controlled: RestService, tmp_path: Path) -> None:
    """What a form or a script of another site can make a browser send."""
    body = json.dumps({"path": str(tmp_path)})
    for headers in (
        {"Origin": "http://elsewhere.example", **JSON},
        {"Origin": "http://elsewhere.example", "X-Stddaq": "1", **JSON},
        {"Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"},
        {"Sec-Fetch-Site": "same-origin", **JSON},
        {"Host": "rebound.example", **JSON},
    ):
        for command in ("check", "start", "stop", "repair"):
            url = f"{controlled.url}/api/run/{command}"
            assert requests.post(url, body, headers=headers, timeout=30).status_code == 403
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        assert requests.request(method, f"{controlled.url}/api/run/start", timeout=30).status_code == 405
    assert state(controlled) == "idle"
