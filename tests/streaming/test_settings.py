"""`live_stream_configs`: refusals, and changes while a live stream runs."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.errors import ConfigError
from stddaq.streaming.settings import FollowedSetting, setting_at

ADDRESS = "tcp://127.0.0.1:20000"
FORWARD = {"type": "forward", "config": []}


def parsed(setting: object) -> DetectorConfig:
    return DetectorConfig.parse(make_config(live_stream_configs={ADDRESS: setting}))


@pytest.mark.parametrize(
    "setting",
    [
        FORWARD,
        {"type": "forward"},
        {"type": "batch", "config": [2, 555]},
        {"type": "batch", "config": [5, 5]},
        {"type": "periodic", "config": [1, 5]},
        {"type": "periodic", "config": [3, 0.2]},
        {"type": "periodic", "config": [1, 5], "comment": "of another tool"},
    ],
)
def test_possible_settings_are_accepted(setting: dict[str, Any]) -> None:
    found = setting_at(parsed(setting), ADDRESS, Path("c.json"))
    assert (found.type, found.config) == (setting["type"], setting.get("config", []))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"type": "sometimes", "config": []}, "'forward', 'batch' or 'periodic'"),
        ({"config": []}, "mandatory"),
        ([], "object"),
        ({"type": "forward", "config": [1]}, '"config": [] for forward'),
        ({"type": "batch", "config": []}, "1 <= Y <= N"),
        ({"type": "batch", "config": [2]}, "1 <= Y <= N"),
        ({"type": "batch", "config": [1, 2, 3]}, "1 <= Y <= N"),
        ({"type": "batch", "config": [0, 5]}, "1 <= Y <= N"),
        ({"type": "batch", "config": [-1, 5]}, "1 <= Y <= N"),
        ({"type": "batch", "config": [6, 5]}, "1 <= Y <= N"),
        ({"type": "batch", "config": [1, 0]}, "1 <= Y <= N"),
        ({"type": "batch", "config": [1.5, 5]}, "1 <= Y <= N"),
        ({"type": "batch", "config": [True, 5]}, "1 <= Y <= N"),
        ({"type": "batch", "config": ["1", 5]}, "1 <= Y <= N"),
        ({"type": "batch", "config": [1, 2**31]}, "1 <= Y <= N"),
        ({"type": "periodic", "config": [0, 5]}, "F times a second"),
        ({"type": "periodic", "config": [1, 0]}, "F times a second"),
        ({"type": "periodic", "config": [1, -2]}, "F times a second"),
        ({"type": "periodic", "config": [1, 1e9]}, "F times a second"),
        ({"type": "periodic", "config": [1, 1e-9]}, "F times a second"),
        ({"type": "periodic", "config": [1, float("inf")]}, "F times a second"),
        ({"type": "periodic", "config": [1, float("nan")]}, "F times a second"),
        ({"type": "periodic", "config": [1.0, 5]}, "F times a second"),
        ({"type": "periodic", "config": [1, True]}, "F times a second"),
        ({"type": "periodic", "config": [1, None]}, "F times a second"),
    ],
)
def test_impossible_settings_are_refused_with_what_is_allowed(setting: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=r"live_stream_configs\.tcp://127\.0\.0\.1:20000") as refused:
        parsed(setting)
    assert reason in str(refused.value)


def test_address_that_is_not_in_the_configuration_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError) as refused:
        setting_at(parsed(FORWARD), "tcp://127.0.0.1:1", Path("c.json"))
    assert '"tcp://127.0.0.1:1"' in str(refused.value)
    assert ADDRESS in str(refused.value)


def at_once(text: bytes, where: str) -> Future[DetectorConfig]:
    """Validate in this process."""
    future: Future[DetectorConfig] = Future()
    try:
        future.set_result(DetectorConfig.of_text(text, where))
    except ConfigError as error:
        future.set_exception(error)
    return future


class File:
    """A configuration file and a live stream that follows it."""

    def __init__(self, path: Path) -> None:
        self.path, self._config = path, make_config()
        self.write(FORWARD)
        config = DetectorConfig.load(path)
        self.followed = FollowedSetting(path, ADDRESS, config, at_once)
        assert self.polls(3) == [False] * 3

    def write(self, setting: object) -> None:
        """Replace the file by a new one."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self._config | {"live_stream_configs": {ADDRESS: setting}}))
        new.replace(self.path)

    def polls(self, count: int) -> list[bool]:
        return [self.followed.poll() for _ in range(count)]


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "c.json")


def test_change_is_noticed_once(file: File) -> None:
    file.write({"type": "batch", "config": [1, 2]})
    assert file.polls(4) == [False, True, False, False]
    assert str(file.followed.current) == "batch 1 2"


def test_replaced_file_with_the_same_setting_is_not_a_change(file: File) -> None:
    file.write(FORWARD)
    assert file.polls(4) == [False] * 4


@pytest.mark.parametrize("bad", [{"type": "batch", "config": [3, 2]}, {"type": "none"}, 7])
def test_bad_change_is_reported_once_and_the_setting_stays(file: File, bad: object) -> None:
    file.write(bad)
    assert file.polls(1) == [False]
    with pytest.raises(ConfigError):
        file.followed.poll()
    assert file.polls(3) == [False] * 3
    assert str(file.followed.current) == "forward"
    file.write({"type": "periodic", "config": [1, 5]})
    assert file.polls(2) == [False, True]


def test_address_that_disappears_is_reported_once_and_the_setting_stays(file: File) -> None:
    file.path.write_text(json.dumps(make_config(live_stream_configs={})))
    assert file.polls(1) == [False]
    with pytest.raises(ConfigError, match="expected one of its addresses: none, got"):
        file.followed.poll()
    assert file.polls(2) == [False, False]
    assert str(file.followed.current) == "forward"


def test_missing_file_is_reported_once_and_followed_when_it_reappears(file: File) -> None:
    file.path.unlink()
    assert file.polls(1) == [False]
    with pytest.raises(ConfigError, match="cannot be read"):
        file.followed.poll()
    assert file.polls(2) == [False, False]
    file.write({"type": "batch", "config": [1, 2]})
    assert file.polls(2) == [False, True]


def test_change_between_start_and_first_poll_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    file = File(path)
    followed = FollowedSetting(path, ADDRESS, DetectorConfig.load(path), at_once)
    file.write({"type": "batch", "config": [1, 2]})
    assert [followed.poll(), followed.poll()] == [False, True]
