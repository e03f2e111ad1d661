"""Which user the files of a run may belong to, from the client that asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stddaq.text import mismatch
from stddaq.wire.driver_messages import CommandError


def _may_be_any() -> int | None:
    return 0


@dataclass(frozen=True, slots=True)
class Requester:
    """A client as a user of this machine.

    A driver that runs as root asks for the uid only when the client starts a run: root, and the users that
    the configuration trusts, may ask for any `writer_id`, others for their own uid.
    """

    uid: Callable[[], int | None] = field(default=_may_be_any)
    """Returns the uid of the client; None if it is not known."""
    trusted_uids: Sequence[int] = ()

    def check(self, writer_id: int) -> None:
        """Raise `CommandError` if the client may not ask for files of the user `writer_id`."""
        if os.geteuid() != 0:
            return  # The files belong to the user of the service.
        uid = self.uid()
        if uid is None:
            expected = "a client whose user is known, because the driver runs as root"
            raise CommandError("user_not_allowed", mismatch("writer_id", expected, "a connection that ended"))
        if uid in (0, *self.trusted_uids) or uid == writer_id:
            return
        advice = "a token, or trusted_uids in the configuration, allows any"
        expected, got = (
            f"{uid}, the uid of this client",
            f"{writer_id}" + (" (root)" if not writer_id else ""),
        )
        raise CommandError("user_not_allowed", mismatch("writer_id", expected, got, advice))


ANYONE = Requester()
