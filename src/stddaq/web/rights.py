"""What a request may do: look, view or control, by its token, its login, or without either.

`Guard` refuses a request whose right is less than `needed` by its path and method.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from stddaq.daemon.access import AccessError, Header, host_of, is_token, name_of, token_in
from stddaq.loopback import is_loopback
from stddaq.text import mismatch
from stddaq.web.logins import Login, Logins

_PUBLIC_PATHS = frozenset({"/", "/docs", "/api/login", "/api/logout", "/api/session", "/health/live"})
_LOOKING_PATHS = frozenset(
    {"/api/live/sources", "/api/live/ws", "/api/run/ws", "/api/health", "/api/history", "/health"}
)


class Right(IntEnum):
    """What a request may do. Each right includes those before it."""

    NOTHING = 0
    """See the page's frame, and log in."""
    LOOK = 1
    """See images, state, progress, losses, rates and health, without paths, names of files and users."""
    VIEW = 2
    """Read all that the service has."""
    CONTROL = 3
    """Control runs and simulators, set configurations, make files."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The right of one request, and the login that it comes from."""

    right: Right
    login: Login | None = None
    has_token: bool = False

    @property
    def is_anonymous(self) -> bool:
        """Whether the request brings neither a token nor a login."""
        return not self.has_token and self.login is None

    @property
    def user(self) -> str | None:
        """The user that the login names."""
        return self.login.user if self.login else None


def needed(path: str, method: str = "GET") -> Right:
    """Return the right that a request needs."""
    if path in _PUBLIC_PATHS or path.startswith("/static/"):
        return Right.NOTHING
    if method not in ("GET", "HEAD"):
        return Right.CONTROL
    return Right.LOOK if path in _LOOKING_PATHS else Right.VIEW


class Rights:
    """The rights that a service grants.

    Without `token`, requests must be local, may view, and control if `allow_control`. With one, it gives
    control, `view_token` a view; without either, requests may look if `anonymous_view`.
    """

    def __init__(
        self,
        token: str | None = None,
        *,
        view_token: str | None = None,
        anonymous_view: bool = False,
        allow_control: bool = False,
        hosts: Collection[str] = (),
    ) -> None:
        """`hosts`: further names of this service, for browsers."""
        self._token, self._view_token = token, view_token
        self._without_token = self._granted_without_token(anonymous_view, allow_control)
        self._hosts = {*map(str.lower, hosts)}
        if token is not None:
            self._hosts |= {"localhost", socket.gethostname().lower()}
        self.logins = Logins()

    def _granted_without_token(self, anonymous_view: bool, allow_control: bool) -> Right:
        if self._token is None:
            return Right.CONTROL if allow_control else Right.VIEW
        return Right.LOOK if anonymous_view else Right.NOTHING

    @property
    def has_login(self) -> bool:
        """Whether there is a token to log in with."""
        return self._token is not None

    def of_token(self, given: bytes) -> Right:
        """Return the right that a token gives; `NOTHING` if it is neither of the tokens."""
        if self._token is not None and is_token(given, self._token):
            return Right.CONTROL
        if self._view_token is not None and is_token(given, self._view_token):
            return Right.VIEW
        return Right.NOTHING

    def of(self, header: Header, cookie: str | None) -> Granted:
        """Return what a request may do. Raise `AccessError` if a browser sent it for another web site.

        `cookie`: that of its login.
        """
        host = host_of(header)
        # A page of another web site that has this address by a name of its own does not know the token.
        if header("authorization") and self.has_login:
            if right := self.of_token(token_in(header)):
                return Granted(right, has_token=True)
            raise AccessError(401, mismatch("Authorization", "a token of this service", "another value"))
        self._check_host(host)
        login = self.logins.of(cookie)
        return Granted(Right(login.right), login) if login else Granted(self._without_token)

    def _check_host(self, host: str) -> None:
        name = name_of(host)
        if self._token is None:
            if not (is_loopback(name) or name in self._hosts):
                raise AccessError(403, mismatch("Host", "localhost or its address", ascii(host[:200])))
        elif not (name in self._hosts or _is_address(name)):
            expected = "an address, the name of this host, or one of --allowed-host"
            raise AccessError(403, mismatch("Host", expected, ascii(host[:200])))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
