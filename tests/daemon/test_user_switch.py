"""The user as which a service acts."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from stddaq.daemon.isolation import run_in_fork
from stddaq.daemon.user_switch import (
    UserSwitch,
    UserSwitchError,
    drop_rights,
    groups_of,
    may_create_files,
)

ANOTHER_UID = 4711
WITHOUT_NAME = 2_000_000_011
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch users")


def identity() -> tuple[int, int, list[int]]:
    """Return effective user, effective group and all groups of this process."""
    return os.geteuid(), os.getegid(), sorted(os.getgroups())


def test_groups_come_from_the_user_database() -> None:
    user = pwd.getpwall()[-1]
    gid, groups = groups_of(user.pw_uid)
    assert gid == pwd.getpwuid(user.pw_uid).pw_gid
    assert gid in groups


def test_unknown_user_has_the_group_of_the_same_number() -> None:
    assert groups_of(WITHOUT_NAME) == (WITHOUT_NAME, [WITHOUT_NAME])


@pytest.mark.parametrize("active", [True, False])
def test_own_user_and_0_need_no_switch(active: bool) -> None:
    before = identity()
    switch = UserSwitch(active)
    for uid in (0, os.geteuid()):
        switch.check(uid)
        switch.become(uid)
        assert identity() == before
        switch.return_to_self()
    assert identity() == before


def test_negative_uid_is_refused() -> None:
    with pytest.raises(UserSwitchError, match=r"^writer_id: expected a uid, or 0, got -5"):
        UserSwitch(True).become(-5)


def test_another_user_is_refused_if_the_configuration_forbids_it() -> None:
    before = identity()
    with pytest.raises(UserSwitchError, match=f"got {ANOTHER_UID}.* switch_user_active to false"):
        UserSwitch(False).become(ANOTHER_UID)
    assert identity() == before


def test_another_user_is_refused_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UserSwitchError, match=r"^writer_id: expected 0 .uid 1000.* runs as root"):
        UserSwitch(True).become(ANOTHER_UID)


@needs_root
def test_switch_and_return() -> None:
    def switched() -> list[object]:
        switch = UserSwitch(True)
        found: list[object] = [identity()]
        switch.become(ANOTHER_UID)
        found.append(identity())
        switch.return_to_self()
        return [*found, identity()]

    own = identity()
    assert run_in_fork(switched, 60.0, "switch") == [own, (ANOTHER_UID, ANOTHER_UID, [ANOTHER_UID]), own]


@needs_root
def test_dropped_rights_cannot_be_taken_back() -> None:
    def dropped() -> tuple[object, bool]:
        drop_rights(ANOTHER_UID)
        try:
            os.seteuid(0)
        except PermissionError:
            return os.getresuid(), True
        return os.getresuid(), False

    assert run_in_fork(dropped, 10.0, "drop") == ((ANOTHER_UID,) * 3, True)


def test_rights_of_the_own_user_need_no_drop() -> None:
    before = identity()
    drop_rights(os.geteuid())
    assert identity() == before


@needs_root
def test_directory_of_another_user_takes_no_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    def may() -> tuple[bool, bool]:
        before = may_create_files("/")
        drop_rights(ANOTHER_UID)
        return before, may_create_files("/")

    assert run_in_fork(may, 10.0, "rights") == (True, False)


def test_missing_directory_takes_no_files(tmp_path: Path) -> None:
    assert may_create_files(str(tmp_path))
    assert not may_create_files(str(tmp_path / "missing"))
