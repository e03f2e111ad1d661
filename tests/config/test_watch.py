"""`ConfigWatch` and `config_changes`: one way to follow a configuration file."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from support.processes.deployment import make_config

from stddaq.config.watch import ConfigWatch, config_changes
from stddaq.errors import ConfigError


def config_text(n_writers: int) -> str:
    return json.dumps(make_config(number_of_writers=n_writers))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "c.json"
    path.write_text(config_text(1))
    return path


@pytest.fixture
def watch(path: Path) -> ConfigWatch:
    """Return a watch of `path` that has returned the first configuration."""
    watch = ConfigWatch(path)
    assert polls(watch, 2) == [None, 1]
    return watch


def polls(watch: ConfigWatch, count: int) -> list[int | str | None]:
    """Return for each poll the number of writers, the error, or None."""
    found: list[int | str | None] = []
    for _ in range(count):
        try:
            config = watch.poll()
        except ConfigError as error:
            found.append(str(error))
        else:
            found.append(config and config.number_of_writers)
    return found


def test_configuration_is_returned_once_at_the_start(path: Path) -> None:
    assert polls(ConfigWatch(path), 4) == [None, 1, None, None]


def test_changed_file_is_read_once_when_two_polls_find_it_the_same(path: Path, watch: ConfigWatch) -> None:
    path.write_text(config_text(2))
    assert polls(watch, 4) == [None, 2, None, None]


def test_file_is_not_read_while_it_changes(path: Path, watch: ConfigWatch) -> None:
    text = config_text(3)
    for length in (50, 100, len(text)):
        path.write_text(text[:length])
        assert polls(watch, 1) == [None]
    assert polls(watch, 2) == [3, None]


def test_file_of_equal_size_and_time_is_noticed_when_it_is_moved_into_place(
    path: Path, watch: ConfigWatch
) -> None:
    status, new = path.stat(), path.with_suffix(".new")
    new.write_text(config_text(4))
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)
    assert polls(watch, 3) == [None, 4, None]


def test_invalid_file_is_reported_once_and_the_next_valid_one_returned(
    path: Path, watch: ConfigWatch
) -> None:
    path.write_text("{")
    pause, error, *rest = polls(watch, 4)
    assert (pause, rest) == (None, [None, None])
    assert str(error).startswith(f"{path}: is not JSON")
    path.write_text(config_text(5))
    assert polls(watch, 2) == [None, 5]


def test_missing_file_is_reported_once_and_followed_when_it_reappears(path: Path, watch: ConfigWatch) -> None:
    path.unlink()
    pause, error, *rest = polls(watch, 4)
    assert (pause, rest) == (None, [None, None])
    assert "cannot be read" in str(error)
    path.write_text(config_text(1))
    assert polls(watch, 2) == [None, 1]


def test_file_that_is_missing_for_one_poll_is_not_an_error(path: Path, watch: ConfigWatch) -> None:
    path.unlink()
    assert polls(watch, 1) == [None]
    path.write_text(config_text(6))
    assert polls(watch, 2) == [None, 6]


def test_changes_yield_valid_configurations_and_report_the_others(path: Path) -> None:
    errors: list[ConfigError] = []

    async def follow() -> list[int]:
        found = []
        async for config in config_changes(path, report, interval=0):
            found.append(config.number_of_writers)
            if len(found) == 2:
                break
            path.write_text("{")
        return found

    def report(error: ConfigError) -> None:
        errors.append(error)
        path.write_text(config_text(2))

    assert asyncio.run(asyncio.wait_for(follow(), 10)) == [1, 2]
    assert ["is not JSON" in str(error) for error in errors] == [True]
