"""Who may use a service over TCP: the token, and the Origin and Host that a browser sends.

The loopback interface alone does not keep a service private, because any web site can make a browser send
requests and open WebSockets to it. Only programs on this machine reach a service without a token; browsers
reach it from its own pages only.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from stddaq.errors import ConfigError, StdDaqError
from stddaq.loopback import is_loopback
from stddaq.text import mismatch
from stddaq.wire.default_addresses import TOKEN_VARIABLE

MIN_TOKEN_LENGTH = 16

Header = Callable[[str], Sequence[str]]
"""Returns all values of a header, whose name is in lower case."""


class AccessError(StdDaqError, PermissionError):
    """A request does not pass the checks. `status` is that of HTTP: 401 or 403."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Access:
    """Checks every request and WebSocket handshake. Without `token`, requests must be local."""

    def __init__(self, token: str | None = None) -> None:
        self._token = token

    @property
    def demands_token(self) -> bool:
        """Return whether every request that passes carries a token."""
        return self._token is not None

    def check(self, header: Header) -> None:
        """Raise `AccessError` if a browser sent it for another web site, or its token is not right."""
        host = host_of(header)
        if self._token is None:
            if not is_loopback(name_of(host)):
                raise AccessError(403, mismatch("Host", "localhost or its address", ascii(host[:200])))
        elif not is_token(token_in(header), self._token):
            raise AccessError(401, mismatch("Authorization", EXPECTED_TOKEN, "another value or none"))


EXPECTED_TOKEN = "Bearer and the token of this service, or the token as the password of Basic"


def host_of(header: Header) -> str:
    """Return the Host of a request. Raise `AccessError` if a page of another web site sent it."""
    host = _only("Host", header("host"))
    origins = header("origin")
    if origins and _netloc(_only("Origin", origins)) != host:
        raise AccessError(403, mismatch("Origin", "that of this service", ascii(origins[0][:200])))
    return host


def is_token(given: bytes, token: str) -> bool:
    """Return whether `given` is the token, in a time that does not depend on how much of it is right."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(token.encode()).digest())


def add_token_option(parser: argparse.ArgumentParser) -> None:
    """Add `--token-file`."""
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file with the token that requests must carry (or environment variable {TOKEN_VARIABLE}); "
        "mandatory if --host is not a loopback address",
    )


def access_of(args: argparse.Namespace) -> Access:
    """Return the checks of a service with `--host` and `--token-file`. Raise `ConfigError`."""
    return Access(token_of(args))


def token_of(args: argparse.Namespace) -> str | None:
    """Return the token by `--token-file` or the environment. Raise `ConfigError` if `--host` needs one.

    The token is removed from the environment, so that processes started later do not have it.
    """
    token = read_token(args.token_file, "--token-file", os.environ.pop(TOKEN_VARIABLE, None))
    if token is None and not is_loopback(args.host):
        raise ConfigError(
            mismatch(
                "--host",
                "a loopback address, because there is no token",
                args.host,
                f"give --token-file, or {TOKEN_VARIABLE} in the environment",
            )
        )
    return token


def read_token(path: Path | None, option: str, token: str | None = None) -> str | None:
    """Return the token in a file, else `token`, which is that of the environment. Raise `ConfigError`.

    A token is never an argument, because all users can list those.
    """
    where = TOKEN_VARIABLE
    if path is not None:
        where = f"{option} {path}"
        try:
            with path.open() as file:
                token, mode = file.read().strip(), os.fstat(file.fileno()).st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read: {error}") from error
        if mode & 0o007:
            raise ConfigError(mismatch(where, "mode 0600 or 0640", "access for others"))
    if token is None:
        return None
    if len(token) < MIN_TOKEN_LENGTH or not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(
            mismatch(
                where,
                f"a token of at least {MIN_TOKEN_LENGTH} printable ASCII characters without spaces",
                f"one of {len(token)} characters",
            )
        )
    return token


def _only(name: str, values: Sequence[str]) -> str:
    if len(values) > 1:
        raise AccessError(403, mismatch(name, "one header", f"{len(values)}"))
    return values[0] if values else ""


def token_in(header: Header) -> bytes:
    """Return the token in the Authorization header; empty if there is none."""
    scheme, _, given = _only("Authorization", header("authorization")).strip().partition(" ")
    given = given.strip()
    if scheme.lower() == "bearer":
        return given.encode()
    if scheme.lower() != "basic":
        return b""
    # Clients that take only a URL send its user name and password: http://any:TOKEN@host:5000.
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _netloc(origin: str) -> str | None:
    """Return the host and port of an origin; None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def name_of(host: str) -> str:
    """Return the name in a Host header, without its port; empty if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
