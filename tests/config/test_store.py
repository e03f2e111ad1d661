"""`ConfigStore` in a directory: a refusal changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.processes.deployment import make_config

from stddaq.config.store import (
    HISTORY_LIMIT,
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
        (changed(switch_user_active=True), ConfigProtectedError),
        (changed(allowed_roots=["/", "/etc"]), ConfigProtectedError),
        (changed(allowed_roots=None), ConfigProtectedError),
        (changed(trusted_uids=[1000]), ConfigProtectedError),
        (changed(live_stream_configs={"tcp://0.0.0.0:9000": {"type": "forward"}}), ConfigProtectedError),
        (changed(live_stream_configs={"ipc:///etc/file": {"type": "forward"}}), ConfigProtectedError),
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


def test_keys_of_rights_may_be_repeated_and_left_out_with_their_defaults(store: ConfigStore) -> None:
    store.replace(changed(switch_user_active=False, trusted_uids=[], services=[]), "me")
    store.replace(changed(), "me")


def test_live_streams_of_this_machine_may_be_added_and_others_changed(store: ConfigStore) -> None:
    everywhere, here = "tcp://0.0.0.0:9000", "tcp://127.0.0.1:9001"
    store.path.write_bytes(changed(live_stream_configs={everywhere: {"type": "forward"}}))
    streams = {everywhere: {"type": "batch", "config": [1, 5]}, here: {"type": "forward"}}
    store.replace(changed(live_stream_configs=streams), "me")
    assert set(store.read().config.live_stream_configs) == {everywhere, here}


def test_directory_that_cannot_be_written_is_reported_and_the_file_stays(store: ConfigStore) -> None:
    before = store.path.read_bytes()
    store.path.with_name("c.json.history").write_text("a file where the directory must be")
    with pytest.raises(ConfigWriteError, match=r"cannot be replaced: .*history: Not a directory"):
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
    # The rights that an unreadable file gave are not known, so the new one gives none.
    with pytest.raises(ConfigProtectedError, match="allowed_roots"):
        store.replace(changed(), "me")
    change = store.replace(changed(allowed_roots=None), "me")
    assert (change.picked_up_by, change.restarted) == ([], [])
    assert store.read().config.detector_name


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadableError, match="cannot be read: No such file"):
        ConfigStore(tmp_path / "absent.json").read()


def test_history_that_is_a_link_is_not_followed(store: ConfigStore, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for i in range(150):
        (elsewhere / f"{i}").touch()
    store.path.with_name("c.json.history").symlink_to(elsewhere)
    before = store.path.read_bytes()
    with pytest.raises(ConfigWriteError, match="history: Not a directory"):
        store.replace(changed(log_level="debug"), "me")
    assert store.path.read_bytes() == before
    assert len(list(elsewhere.iterdir())) == 150


def test_only_versions_of_the_store_are_removed_from_the_history(store: ConfigStore) -> None:
    directory = store.path.with_name("c.json.history")
    directory.mkdir()
    others = {directory / name for name in ("00-notes.txt", "1.json", "20200101T000000.000000Z-before-me")}
    versions = [directory / f"20200101T000000.{i:06d}Z-before-me.json" for i in range(HISTORY_LIMIT + 10)]
    for path in (*others, *versions):
        path.touch()
    store.replace(changed(log_level="debug"), "me")
    left = set(history(store))
    assert others < left
    assert left.isdisjoint(versions[:11])
    assert len(left - others) == HISTORY_LIMIT


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give away a directory")
def test_history_of_another_user_is_refused(store: ConfigStore) -> None:
    directory = store.path.with_name("c.json.history")
    directory.mkdir()
    os.chown(directory, 12345, 12345)
    with pytest.raises(
        ConfigWriteError, match=r"history: expected a directory of uid 0.*got one of uid 12345"
    ):
        store.replace(changed(log_level="debug"), "me")
    assert history(store) == []
