"""Writing files as another user: the effective uid of this process while a file of a run is open."""

from __future__ import annotations

import os
import pwd

from stddaq.errors import StdDaqError


def groups_of(uid: int) -> tuple[int, list[int]]:
    """Primary group and all groups of a user."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        # A uid that only the file server knows; its own group, as the user databases have it mostly.
        return uid, [uid]
    return user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid)


class UserSwitchError(StdDaqError):
    """The files cannot be made to belong to the uid that was asked for."""


class FileOwner:
    """Switches the effective user of the whole process, and back.

    A run asks for a uid (`writer_id`); 0 and the service's own uid need no switch. Anything else needs
    `switch_user_active` in the configuration and a service that runs as root.
    """

    def __init__(self, switch_user_active: bool) -> None:
        self._switch_user_active = switch_user_active
        self._own_uid, self._own_gid, self._own_groups = os.geteuid(), os.getegid(), os.getgroups()
        self._switched = False

    def become(self, uid: int) -> None:
        """Act as `uid`, with that user's groups. Raises `UserSwitchError`, then nothing has changed."""
        if uid in (0, self._own_uid):
            return
        if uid < 0:
            raise UserSwitchError(f"writer_id: found {uid}, allowed is a uid, or 0")
        if not self._switch_user_active:
            raise UserSwitchError(
                f"writer_id: found {uid}, but switch_user_active is false in the configuration; "
                f"allowed is 0 (files belong to uid {self._own_uid})"
            )
        if self._own_uid != 0:
            raise UserSwitchError(
                f"writer_id: found {uid}, but this writer runs as uid {self._own_uid}, "
                "and only root can switch; allowed is 0"
            )
        gid, groups = groups_of(uid)
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)
        self._switched = True

    def return_to_self(self) -> None:
        """Act as the service's own user again."""
        if self._switched:
            os.seteuid(self._own_uid)
            os.setegid(self._own_gid)
            os.setgroups(self._own_groups)
            self._switched = False
