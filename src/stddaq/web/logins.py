"""Logins of browsers: who they are, until when, and how many wrong tokens are tried.

They are kept in memory only: after a restart of the service, people log in again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

VALID_S = 12 * 3600.0
MAX_LOGINS = 1000
TRIES_PERIOD_S = 60.0
MAX_TRIES_OF_ADDRESS = 5
MAX_TRIES = 50


@dataclass(frozen=True, slots=True, eq=False)
class Login:
    """One login. `ended` is set when it is no longer valid."""

    right: int
    user: str
    until: float
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_until_ended(self) -> None:
        """Wait for the logout, or for the end of its validity."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self.until - time.monotonic())):
                await self.ended.wait()


class Logins:
    """The logins that are valid, by the secret in the browser's cookie. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._logins = clock, dict[str, Login]()
        self.tries = Tries(clock)

    def add(self, right: int, user: str) -> str:
        """Log in, and return the secret for the cookie. Beyond the limit the oldest login ends."""
        self._end_outdated()
        while len(self._logins) >= MAX_LOGINS:
            self.end(next(iter(self._logins)))
        secret = secrets.token_urlsafe(32)
        self._logins[secret] = Login(right, user, self._clock() + VALID_S)
        return secret

    def of(self, secret: str | None) -> Login | None:
        """Return the login of a cookie; None if there is none, or it is outdated."""
        self._end_outdated()
        # A lookup takes a time that depends on the hash of the secret, and not on a part of it.
        return self._logins.get(secret) if secret else None

    def end(self, secret: str | None) -> None:
        """Log out."""
        login = self._logins.pop(secret, None) if secret else None
        if login:
            login.ended.set()

    def _end_outdated(self) -> None:
        # Logins are in the order in which they end.
        while self._logins and next(iter(self._logins.values())).until <= self._clock():
            self.end(next(iter(self._logins)))


class Tries:
    """Limits wrong tokens: a few a minute from one address, more from all together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: deque[tuple[float, str]] = deque()

    def is_allowed(self, address: str) -> bool:
        """Return whether `address` may try a token now."""
        while self._wrong and self._wrong[0][0] <= self._clock() - TRIES_PERIOD_S:
            self._wrong.popleft()
        n_of_address = sum(1 for _, tried in self._wrong if tried == address)
        return len(self._wrong) < MAX_TRIES and n_of_address < MAX_TRIES_OF_ADDRESS

    def note_wrong(self, address: str) -> None:
        """Note a wrong token."""
        self._wrong.append((self._clock(), address))
