"""`ConfigStore` in a directory: a refusal changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.processes.deployment import make_config

from stddaq.config.store import (
    ConfigIdentityError,
    ConfigOutdatedError,
    ConfigProtectedError,
    ConfigStore,
    ConfigUnreadableError,
    ConfigWriteError,
)
from stddaq.errors import ConfigError


@pytest.fixture
def store(tmp_path: Path) -> ConfigStore:
    path = tmp_path / "c.json"
    path.write_bytes(changed())
    return ConfigStore(path)


def changed(**changes: object) -> bytes:
    return json.dumps(make_config(detector_name="camera", **changes)).encode()


def history(store: ConfigStore) -> list[Path]:
    return sorted(store.path.with_name("c.json.history").glob("*"))


def test_tag_of_the_file_admits_one_change(store: ConfigStore) -> None:
    etag = store.read().etag
    change = store.replace(changed(log_level="debug"), "me", etag)
    assert (change.changed, change.etag) == (["log_level"], store.read().etag)
    with pytest.raises(ConfigOutdatedError, match="has changed since it was read"):
        store.replace(changed(log_level="error"), "me", etag)
    assert store.read().config.log_level == "debug"
    assert len(history(store)) == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"{", ConfigError),
        (changed(bit_depth=12), ConfigError),
        (changed(services=["rm -r /"]), ConfigError),
        (changed(services=["std_gf_filter"]), ConfigProtectedError),
        (changed().replace(b'"camera"', b'"another"'), ConfigIdentityError),
        (changed(detector_type="eiger"), ConfigIdentityError),
    ],
)
def test_refused_configuration_changes_nothing(
    store: ConfigStore, text: bytes, error: type[Exception]
) -> None:
    before = store.path.read_bytes()
    with pytest.raises(error):
        store.replace(text, "me")
    assert store.path.read_bytes() == before
    assert history(store) == []


def test_directory_that_cannot_be_written_is_reported_and_the_file_stays(store: ConfigStore) -> None:
    before = store.path.read_bytes()
    store.path.with_name("c.json.history").write_text("a file where the directory must be")
    with pytest.raises(ConfigWriteError, match="cannot be replaced: Not a directory"):
        store.replace(changed(log_level="debug"), "me")
    assert store.path.read_bytes() == before


def test_no_temporary_file_stays(store: ConfigStore) -> None:
    store.replace(changed(log_level="debug"), "me")
    assert {path.name for path in store.path.parent.iterdir()} == {"c.json", "c.json.history"}


@pytest.mark.parametrize(
    ("content", "reason"), [(b"{", "is not JSON"), (b"5", "expected a JSON object"), (b"{}", "detector_name")]
)
def test_invalid_file_cannot_be_read_but_replaced(store: ConfigStore, content: bytes, reason: str) -> None:
    store.path.write_bytes(content)
    with pytest.raises(ConfigUnreadableError, match=f"{store.path}: .*{reason}"):
        store.read()
    change = store.replace(changed(), "me")
    assert (change.picked_up_by, change.restarted) == ([], [])
    assert store.read().config.detector_name


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadableError, match="cannot be read: No such file"):
        ConfigStore(tmp_path / "absent.json").read()
