"""Configurations that a child process validates are those that this process would have validated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.daemon.config_loading import load_in_fork, validated_in_process, validation_in_process
from stddaq.errors import ConfigError

STREAMS = {"tcp://127.0.0.1:1": {"type": "batch", "config": [1, 2], "header": ["source"], "other": 1}}


def in_process(path: Path) -> DetectorConfig:
    return validated_in_process(path.read_bytes(), str(path))


def beside(path: Path) -> DetectorConfig:
    return validation_in_process(path.read_bytes(), str(path)).result(30)


def in_fork(path: Path) -> DetectorConfig:
    return load_in_fork(str(path))


LOADS = pytest.mark.parametrize("load", [in_fork, in_process, beside])


@LOADS
def test_configuration_comes_back_with_all_keys(tmp_path: Path, load: Callable[[Path], object]) -> None:
    path = tmp_path / "c.json"
    nexus = {"beam": {"energy_kev": 12}, "axes": {}}
    path.write_text(json.dumps(make_config(live_stream_configs=STREAMS, nexus=nexus, other=[None])))
    config, expected = load(path), DetectorConfig.load(path)
    assert isinstance(config, DetectorConfig)
    assert config == expected
    assert config.etag == expected.etag != ""
    assert config.nexus == {"beam": {"energy_kev": 12.0}, "axes": {}}
    assert config.live_stream_configs["tcp://127.0.0.1:1"].others == {"other": 1}


@LOADS
@pytest.mark.parametrize("text", ["{", "[]", '{"n_modules": "8", "bit_depth": 7}'])
def test_mistakes_come_back_unchanged(tmp_path: Path, load: Callable[[Path], object], text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as expected:
        DetectorConfig.load(path)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert (str(refused.value), refused.value.mistakes) == (str(expected.value), expected.value.mistakes)


def test_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^/no/such: cannot be read: No such file or directory$"):
        load_in_fork("/no/such")
