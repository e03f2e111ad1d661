"""Acting as the user that the files of a run belong to."""

from __future__ import annotations

import os
import pwd

from stddaq.errors import StdDaqError
from stddaq.text import mismatch


class UserSwitchError(StdDaqError, PermissionError):
    """This process may not act as the requested user."""


def groups_of(uid: int) -> tuple[int, list[int]]:
    """Return the primary group and all groups of a user."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        # Only the file server knows this uid. Most user databases give a user the group with the same number.
        return uid, [uid]
    return user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid)


def drop_rights(uid: int) -> None:
    """Act as `uid` for the rest of this process, which must run as root or as `uid`."""
    if uid == os.geteuid():
        return
    gid, groups = groups_of(uid)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def may_create_files(directory: str) -> bool:
    """Return whether the user of this process may create files in `directory`."""
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=True)


class UserSwitch:
    """Switches the effective user of the whole process to the one that a run asks for, and back.

    A run asks for a uid (`writer_id`). 0 and the service's own uid need no switch. Any other uid needs
    `switch_user_active` in the configuration and a service that runs as root.
    """

    def __init__(self, switch_user_active: bool) -> None:
        self._switch_user_active = switch_user_active
        self._own_uid, self._own_gid, self._own_groups = os.geteuid(), os.getegid(), os.getgroups()
        self._switched = False

    def check(self, uid: int) -> None:
        """Raise `UserSwitchError` unless this process may act as `uid`."""
        if uid in (0, self._own_uid):
            return
        if uid < 0:
            raise UserSwitchError(mismatch("writer_id", "a uid, or 0", str(uid)))
        if not self._switch_user_active:
            advice = "the configuration sets switch_user_active to false"
        elif self._own_uid != 0:
            advice = "only a service that runs as root can switch users"
        else:
            return
        raise UserSwitchError(mismatch("writer_id", f"0 (uid {self._own_uid})", str(uid), advice))

    def become(self, uid: int) -> None:
        """Act as `uid`, with that user's groups. Raises `UserSwitchError`, and changes nothing then."""
        self.check(uid)
        if uid in (0, self._own_uid):
            return
        gid, groups = groups_of(uid)
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)
        self._switched = True

    @property
    def is_switched(self) -> bool:
        """Whether the process acts as another user than its own."""
        return self._switched

    def return_to_self(self) -> None:
        """Act as the service's own user again."""
        if self._switched:
            os.seteuid(self._own_uid)
            os.setegid(self._own_gid)
            os.setgroups(self._own_groups)
            self._switched = False
