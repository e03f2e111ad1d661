"""The older REST, used by the real `std-daq-client` and by plain requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import requests
from std_daq_client import StdDaqAdminException, StdDaqClient
from support.data.token import TOKEN
from support.processes.deployment import Deployment, free_port, wait_until
from support.processes.recording import Publishing, Rig, images_of
from support.processes.web import RestService

from stddaq.client.status import DriverStatus
from stddaq.web.older_writer import Acquisition


class Older:
    """A driver, its writers, `stddaq-rest --compat`, and the client."""

    def __init__(self, rig: Rig, token_file: Path) -> None:
        self.rig = rig
        options = ("--compat", "--url", rig.url, "--token-file", token_file)
        self.rest = RestService.start(rig.deployment, rig.directory, *options)
        self.url = self.rest.url.replace("http://", f"http://any:{TOKEN}@")
        self.client = StdDaqClient(self.url)

    def file(self, name: str) -> str:
        return str(self.rig.directory / name)

    def state(self) -> str:
        return self.client.get_status()["acquisition"]["state"]

    def wait_until_ready(self) -> None:
        """Wait until the run records every image that is published from now on."""
        # The rig's own client learns of the run later than the one that has started it.
        self.rig.client.wait_for(lambda status: status.has_reached("waiting_for_first_image"), 30)

    def wait_for(self, state: str) -> dict[str, Any]:
        wait_until(lambda: self.state() == state, 30, state)
        return self.client.get_status()


@pytest.fixture
def older(rig: Rig, token_file: Path) -> Older:
    return Older(rig, token_file)


def test_run_of_the_real_client_is_in_the_file_that_it_names(older: Older) -> None:
    client, rig = older.client, older.rig
    rig.wait_for_subscription()
    before = client.get_status()
    assert before["state"] == "READY"
    assert before["acquisition"]["info"] == {"n_images": 0, "output_file": None, "run_id": None}
    started = client.start_writer_async({"output_file": older.file("a.h5"), "n_images": 10, "run_id": "r1"})
    assert started["state"] == "WRITING"
    assert older.wait_for("WAITING_IMAGES")["state"] == "WRITING"
    with pytest.raises(StdDaqAdminException, match="writing"):
        client.start_writer_async({"output_file": older.file("b.h5"), "n_images": 1})
    older.wait_until_ready()
    rig.publish(images_of(range(10)))
    ended = older.wait_for("FINISHED")["acquisition"]
    assert ended["message"] == "Completed."
    assert ended["info"] == {"n_images": 10, "output_file": older.file("a.h5"), "run_id": "r1"}
    stats = ended["stats"]
    assert (stats["n_write_completed"], stats["n_write_requested"]) == (10, 10)
    assert stats["start_time"] < stats["stop_time"]
    with h5py.File(older.file("a.h5")) as file:
        data: Any = file["entry/data/data"]
        assert (data[:] == [image.pixels for image in images_of(range(10))]).all()
    assert client.get_logs(5) == [ended]
    wait_until(lambda: client.get_status()["state"] == "READY", 20)


def test_run_that_is_stopped_is_interrupted_and_a_stop_without_a_run_is_valid(older: Older) -> None:
    older.rig.wait_for_subscription()
    assert older.client.stop_writer()["state"] == "READY"
    older.client.start_writer_async({"output_file": older.file("a.h5"), "n_images": 10})
    older.wait_until_ready()
    older.rig.publish(images_of(range(3)))
    older.rig.wait_for_count(3)
    stopped = older.client.stop_writer()
    assert (stopped["state"], stopped["acquisition"]["message"]) == ("READY", "Interrupted.")
    assert stopped["acquisition"]["stats"]["n_write_completed"] == 3


def test_synchronous_run_is_answered_at_its_end(older: Older) -> None:
    with Publishing(older.rig):
        ended = older.client.start_writer_sync({"output_file": older.file("a.h5"), "n_images": 5})
    assert (ended["state"], ended["acquisition"]["message"]) == ("READY", "Completed.")
    assert ended["acquisition"]["stats"]["n_write_completed"] == 5


def test_run_that_was_fast_is_still_seen_waiting() -> None:
    acquisition = Acquisition(n_images=1, state="WAITING_IMAGES")
    acquisition.see(DriverStatus("recording", count=1))
    assert acquisition.as_json(may_wait=True)["state"] == "WAITING_IMAGES"
    assert acquisition.as_json(may_wait=True)["state"] == "ACQUIRING_IMAGES"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_file": "a.h5"}, "output_file: expected an absolute path"),
        ({"output_file": "/tmp/a.h5"}, "/tmp"),
        ({"n_images": 0}, "n_images"),
        ({"output_file": None}, "output_file"),
    ],
    ids=str,
)
def test_wrong_run_is_an_error_of_the_answer(older: Older, fields: dict[str, Any], message: str) -> None:
    request = {"output_file": older.file("a.h5"), "n_images": 1} | fields
    with pytest.raises(StdDaqAdminException, match=message):
        older.client.start_writer_async(request)
    assert older.client.get_status()["state"] == "READY"


def test_missing_directory_is_named(older: Older) -> None:
    with pytest.raises(StdDaqAdminException, match="absent"):
        older.client.start_writer_async({"output_file": older.file("absent/a.h5"), "n_images": 1})


def test_existing_file_is_refused(older: Older) -> None:
    Path(older.file("a.h5")).touch()
    with pytest.raises(StdDaqAdminException, match="exists"):
        older.client.start_writer_async({"output_file": older.file("a.h5"), "n_images": 1})


def test_only_the_given_keys_of_the_configuration_change(older: Older) -> None:
    before = older.client.get_config()
    assert before == older.rig.deployment.config
    after = older.client.set_config({"stats_collection_period": 2, "unknown": 1})
    assert after == before | {"stats_collection_period": 2} == older.client.get_config()
    with pytest.raises(StdDaqAdminException, match="bit_depth"):
        older.client.set_config({"bit_depth": 7})
    assert older.client.get_config() == after


def test_statistics_and_deployment_are_those_of_the_services(older: Older) -> None:
    stats = older.client.get_stats()
    assert stats["writer"] == {"bytes_per_second": 0.0, "images_per_second": 0.0} == stats["detector"]
    wait_until(lambda: older.client.get_deployment_status()["status"] == "SUCCESS", 30)
    older.rig.writers[1].kill()
    wait_until(lambda: older.client.get_deployment_status()["status"] == "ERROR", 30)


def test_requests_need_the_token(older: Older) -> None:
    with pytest.raises(RuntimeError):
        StdDaqClient(older.rest.url).get_status()
    assert requests.post(f"{older.rest.url}/writer/stop", json={}, timeout=20).status_code == 401


def test_driver_that_does_not_run_is_unknown(deployment: Deployment, tmp_path: Path) -> None:
    url = f"ws://127.0.0.1:{free_port()}"
    rest = RestService.start(deployment, tmp_path / "files", "--compat", "--url", url)
    assert StdDaqClient(rest.url).get_status()["state"] == "UNKNOWN"


def test_older_rest_is_off_by_default(start_rest: Callable[..., RestService]) -> None:
    assert start_rest().get("/writer/status").status_code == 404
