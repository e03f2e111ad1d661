"""The URL of a service without its token, and the token that a client sends."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit, urlunsplit

from stddaq.wire.default_addresses import TOKEN_VARIABLE


def split_token(url: str, token: str | None) -> tuple[str, str | None]:
    """Return `url` without user name and password, and the token.

    That is `token` if it is given, else the password (`ws://any:TOKEN@host:8080`), else the value of the
    environment variable. Messages show the URL, so it does not contain the token.
    """
    try:
        parts = urlsplit(url)
        given, found = parts.netloc.rpartition("@")[2], parts.password
    except ValueError:
        return url, token  # The connection reports what is wrong with it.
    if given != parts.netloc:
        url = urlunsplit(parts._replace(netloc=given))
    if token is None:
        token = unquote(found) if found else os.environ.get(TOKEN_VARIABLE)
    return url, token


def authorization(token: str | None) -> dict[str, str]:
    """Return the header of requests that carry `token`; nothing without one."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}
