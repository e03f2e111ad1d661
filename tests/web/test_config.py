"""`/api/config`: read, validate and replace configurations, and keep previous versions."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import make_config
from support.processes.web import RestService

from stddaq.client import ConfigChangedError, ConfigClient, ConfigRefusedError
from stddaq.config import store as config_store


def test_get_returns_the_content_of_the_file(rest: RestService) -> None:
    rest.deployment.write_config(of_another_service={"key": [1, 2.5, "µ"]})
    assert rest.client.get() == rest.deployment.config
    assert rest.get("/api/config/get", user="another_user").json() == rest.deployment.config
    rest.process.wait_for_line(
        rf"\[event\] another_user at 127\.0\.0\.1 reads the configuration of {rest.deployment.detector_name}"
    )


def test_unusable_user_name_is_refused(rest: RestService) -> None:
    for user in (None, "", "a b", "me\n[event] you", "x" * 65, "../me"):
        answer = rest.get("/api/config/get", **({} if user is None else {"user": user}))
        assert answer.status_code == 422
        assert "user: " in answer.json()["detail"][0]


def test_set_replaces_the_file_and_reports_the_consequences(rest: RestService) -> None:
    config = rest.client.get()
    before = rest.deployment.config_path.read_bytes()
    config |= {"image_pixel_width": 64, "number_of_writers": 3}
    change = rest.client.set(config)
    assert rest.config_on_disk() == config
    assert rest.client.get() == config
    assert change.changed == ["image_pixel_width", "number_of_writers"]
    assert change.restarted == ["std_det_driver", "std_det_writer", "std_det_meta_writer_gf"]
    assert change.picked_up_by == []
    assert [path.name for path in rest.history] == [change.previous]
    assert rest.history[0].read_bytes() == before
    assert "-before-me.json" in rest.history[0].name
    changed = "image_pixel_width, number_of_writers"
    rest.process.wait_for_line(rf"\[event\] me at 127\.0\.0\.1: configuration .* set, changed: {changed}")


def test_change_of_live_streams_is_reported_as_picked_up(rest: RestService) -> None:
    config = rest.client.get()
    config["live_stream_configs"] = {"tcp://127.0.0.1:20000": {"type": "forward", "config": []}}
    change = rest.client.set(config)
    assert (change.picked_up_by, change.restarted) == (["std_live_stream"], [])


def test_equal_configuration_changes_nothing(rest: RestService) -> None:
    before = rest.deployment.config_path.stat()
    change = rest.client.set(rest.client.get())
    assert (change.changed, change.previous) == ([], None)
    assert rest.history == []
    assert rest.deployment.config_path.stat().st_ino == before.st_ino


def test_every_mistake_is_in_the_answer_and_nothing_changes(rest: RestService) -> None:
    before = rest.deployment.config_path.read_bytes()
    bad = rest.deployment.config | {
        "bit_depth": 12,
        "n_modules": "one",
        "module_positions": {"0": [1, 2], "x": [0, 0, 1, 1], "2": [0, 0, 48, 1]},
        "log_level": "loud",
        "live_stream_configs": {"tcp://127.0.0.1:20000": {"type": "batch", "config": [5, 2]}},
    }
    del bad["start_udp_port"]
    answer = rest.set(bad)
    assert answer.status_code == 422
    mistakes = answer.json()["detail"]
    for place in (
        "live_stream_configs.tcp://127.0.0.1:20000",
        "bit_depth",
        "n_modules",
        "log_level",
        "start_udp_port",
    ):
        assert sum(mistake.startswith(f"{place}: ") for mistake in mistakes) == 1, mistakes
    for index in ("0", "x", "2"):
        assert sum(mistake.startswith(f'module_positions["{index}"]') for mistake in mistakes) == 1, mistakes
    with pytest.raises(ConfigRefusedError) as refused:
        rest.client.set(bad)
    assert refused.value.reasons == mistakes
    assert rest.deployment.config_path.read_bytes() == before
    assert rest.history == []


NOT_CONFIGURATIONS = (
    (b"", "is not JSON"),
    (b"{", "is not JSON"),
    (b"[]", "expected a JSON object"),
    (b'{"bit_depth": 1, "bit_depth": 2}', "expected one value in an object"),
    (b'{"x": NaN}', "NaN"),
    (b'{"x": 1e999}', "1e999"),
    (b'{"x": ' + b"9" * 5000 + b"}", "thousands of digits"),
    (b"[" * 100_000, "nested too deeply"),
    (b"\xff\xfe", "UTF-8"),
)


def test_body_that_is_not_a_configuration_is_refused(rest: RestService) -> None:
    before = rest.deployment.config_path.read_bytes()
    for body, reason in NOT_CONFIGURATIONS:
        answer = rest.set(None, data=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert reason in answer.json()["detail"][0]
        assert rest.deployment.config_path.read_bytes() == before


@pytest.mark.parametrize(("key", "value"), [("detector_name", "another"), ("detector_type", "eiger")])
def test_set_cannot_change_the_detector(rest: RestService, key: str, value: str) -> None:
    before = rest.config_on_disk()
    answer = rest.set(before | {key: value})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(f"{key}: expected ")
    assert rest.config_on_disk() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("services", ["stddaq-rest --root / --port 6000"]),
        ("switch_user_active", True),
        ("allowed_roots", ["/etc"]),
        ("trusted_uids", [1000]),
        ("live_stream_configs", {"tcp://0.0.0.0:9000": {"type": "forward", "config": []}}),
    ],
)
def test_set_cannot_change_who_may_do_what(rest: RestService, key: str, value: Any) -> None:
    before = rest.config_on_disk()
    answer = rest.set(before | {key: value})
    assert answer.status_code == 403
    assert answer.json()["detail"].startswith(f"{key}: ")
    assert rest.config_on_disk() == before


def test_lone_surrogate_survives_set_and_get(rest: RestService) -> None:
    config = rest.client.get()
    config["key_of_another_service"] = "\ud800"
    rest.client.set(config)
    assert rest.client.get()["key_of_another_service"] == "\ud800"


def test_mode_and_links_are_kept(rest: RestService) -> None:
    path = rest.deployment.config_path
    target = path.with_name("target.json")
    path.rename(target)
    path.symlink_to(target)
    target.chmod(0o640)
    rest.client.set(rest.client.get() | {"log_level": "debug"})
    assert path.is_symlink()
    assert json.loads(target.read_text())["log_level"] == "debug"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    (kept,) = target.with_name("target.json.history").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640
    target.unlink()


def test_second_writer_of_the_same_version_is_refused(rest: RestService) -> None:
    mine, yours = rest.client.get(), rest.client.get()
    mine["log_level"] = "debug"
    rest.client.set(mine)
    mine["log_level"] = "warning"
    rest.client.set(mine)
    yours["log_level"] = "error"
    with pytest.raises(ConfigChangedError):
        rest.client.set(yours)
    assert rest.config_on_disk()["log_level"] == "warning"


def test_concurrent_writers_take_turns_and_every_version_is_kept(
    rest: RestService, start_rest: Callable[..., RestService]
) -> None:
    clients = [service.client for service in (rest, start_rest())]
    config = dict(rest.client.get())

    def set_each(client: ConfigClient, first: int) -> None:
        for i in range(first, first + 5):
            client.set(config | {"start_udp_port": i})

    threads = [threading.Thread(target=set_each, args=(clients[i % 2], 3000 + 100 * i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    ports = [json.loads(path.read_text())["start_udp_port"] for path in rest.history]
    ports.append(rest.config_on_disk()["start_udp_port"])
    assert sorted(ports) == [2000, *(3000 + 100 * i + j for i in range(4) for j in range(5))]


def test_the_history_is_bounded(rest: RestService) -> None:
    path = rest.deployment.config_path
    store = config_store.ConfigStore(path)
    for i in range(config_store.HISTORY_LIMIT + 5):
        store.replace(json.dumps(rest.deployment.config | {"start_udp_port": i}).encode(), "me")
    assert len(rest.history) == config_store.HISTORY_LIMIT
    assert json.loads(rest.history[-1].read_text())["start_udp_port"] == config_store.HISTORY_LIMIT + 3


def test_broken_file_is_reported_and_can_be_replaced(rest: RestService) -> None:
    rest.deployment.config_path.write_text('{"detector_name": ')
    answer = rest.get("/api/config/get", user="me")
    assert answer.status_code == 409
    assert "is not JSON" in answer.json()["detail"]
    # The rights that an unreadable file gave are not known.
    config = rest.deployment.config
    assert rest.set(config).status_code == 403
    without_rights = {key: value for key, value in config.items() if key != "allowed_roots"}
    assert rest.set(without_rights).status_code == 200
    assert rest.client.get() == without_rights


def test_file_system_that_refuses_writes_is_reported(rest: RestService) -> None:
    path = rest.deployment.config_path
    before = path.read_bytes()
    path.with_name(f"{path.name}.history").write_text("in the way of the directory")
    answer = rest.set(rest.deployment.config | {"log_level": "debug"})
    assert answer.status_code == 409
    assert answer.json()["detail"].endswith(".history: Not a directory")
    assert path.read_bytes() == before


def test_detector_is_chosen_by_name(start_rest: Callable[..., RestService], tmp_path: Path) -> None:
    second = tmp_path / "second.json"
    second.write_text(json.dumps(make_config(detector_name="another")))
    rest = start_rest(second)
    mine = rest.deployment.detector_name
    assert rest.get("/api/config/get", user="me").status_code == 422
    assert rest.get("/api/config/get", user="me", detector="absent").status_code == 404
    assert rest.get("/api/config/get", user="me", detector=mine).json()["detector_name"] == mine
    client = ConfigClient(rest.url, user="me", detector="another")
    client.set(client.get() | {"log_level": "debug"})
    assert json.loads(second.read_text())["log_level"] == "debug"
    assert rest.config_on_disk() == rest.deployment.config


def test_check_reports_the_effect_and_writes_nothing(rest: RestService) -> None:
    before = rest.deployment.config_path.read_bytes()
    changed = rest.deployment.config | {"number_of_writers": 3}
    answer = rest.post("/api/config/check", changed).json()
    assert answer["mistakes"] == []
    assert answer["changed"] == ["number_of_writers"]
    assert "std_det_writer" in answer["restarted"]
    wrong = rest.post("/api/config/check", changed | {"number_of_writers": -1, "bit_depth": 7}).json()
    assert len(wrong["mistakes"]) == 2
    protected = rest.post("/api/config/check", changed | {"allowed_roots": ["/elsewhere"]}).json()
    assert protected["mistakes"][0].startswith("allowed_roots: expected the value in the file")
    assert rest.post("/api/config/check", rest.deployment.config).json()["changed"] == []
    assert rest.deployment.config_path.read_bytes() == before
    assert rest.history == []


def test_history_says_who_changed_what_and_a_version_can_be_set_again(rest: RestService) -> None:
    assert rest.get("/api/config/history").json() == []
    first = rest.deployment.config
    second = first | {"number_of_writers": 3}
    rest.set(second, user="anna")
    rest.set(second | {"log_level": "error"}, user="bert")
    newest, oldest = rest.get("/api/config/history").json()
    assert (newest["user"], newest["changed"]) == ("bert", ["log_level"])
    assert (oldest["user"], oldest["changed"]) == ("anna", ["number_of_writers"])
    assert newest["time"] > oldest["time"]
    assert rest.get(f"/api/config/history/{newest['name']}").json() == second
    assert rest.set(rest.get(f"/api/config/history/{oldest['name']}").json()).status_code == 200
    assert rest.config_on_disk() == first
    (rest.history[0]).write_text("no JSON")
    assert rest.get("/api/config/history").json()[-1]["changed"] is None


def test_only_versions_of_the_history_are_read(rest: RestService) -> None:
    rest.set(rest.deployment.config | {"number_of_writers": 3})
    version = rest.history[0]
    secret = version.with_name("secret.json")
    secret.write_text("{}")
    link = version.with_name("20200101T000000.000000Z-before-x.json")
    link.symlink_to(rest.deployment.config_path)
    for name in ("secret.json", "..%2f" + rest.deployment.config_path.name, "%2e%2e", "absent", "x" * 400):
        assert rest.get(f"/api/config/history/{name}").status_code in (404, 422), name
    assert rest.get(f"/api/config/history/{link.name}").status_code == 409
