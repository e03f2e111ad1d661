"""`/api/login`, `/api/logout`, `/api/session`: browsers exchange the token for a cookie."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import HTTPConnection

from stddaq.daemon.log import event
from stddaq.text import mismatch
from stddaq.web.logins import MAX_TRIES_OF_ADDRESS, VALID_S
from stddaq.web.responses import described, refusal
from stddaq.web.rights import Granted, Rights
from stddaq.web.routes.parameters import MAX_NAME_LENGTH, NAME


class LoginRequest(BaseModel):
    """The token of the service, and the user's name for its logs."""

    model_config = ConfigDict(extra="forbid")

    token: Annotated[str, Field(max_length=1000)]
    user: Annotated[str, Field(max_length=MAX_NAME_LENGTH, pattern=NAME)]


class BrowserSession(BaseModel):
    """What this browser may do."""

    right: Literal["nothing", "look", "view", "control"]
    user: str | None
    """As given at the login; null without one."""
    has_login: bool
    """Whether a token gives more rights."""


def router(rights: Rights) -> APIRouter:
    """Return the routes of the logins of `rights`."""
    routes = APIRouter(prefix="/api")

    @routes.get("/session")
    async def session(request: Request) -> BrowserSession:
        """Return what this browser may do."""
        return _session(granted_of(request), rights)

    @routes.post("/login", responses=described(409, 415, 429))
    async def login(body: LoginRequest, request: Request, response: Response) -> BrowserSession:
        """Log in with the token. The answer sets a cookie, which scripts cannot read."""
        address, tries = address_of(request), rights.logins.tries
        if not rights.has_login:
            return _refused(409, mismatch("login", "a service with --token-file", "one without"))
        if not tries.is_allowed(address):
            advice = "try again in a minute"
            return _refused(
                429, mismatch("token", f"at most {MAX_TRIES_OF_ADDRESS} wrong ones a minute", "more", advice)
            )
        right = rights.of_token(body.token.encode(errors="replace"))
        if not right:
            tries.note_wrong(address)
            event("%s at %s: login refused", body.user, address)
            return _refused(401, mismatch("token", "a token of this service", "another value"))
        rights.logins.end(cookie_of(request))
        name, is_secure = _cookie_name(request), _is_secure(request)
        secret = rights.logins.add(right, body.user)
        response.set_cookie(
            name, secret, max_age=int(VALID_S), httponly=True, samesite="strict", secure=is_secure
        )
        event("%s at %s logs in, with the right to %s", body.user, address, right.name.lower())
        return _session(Granted(right, rights.logins.of(secret)), rights)

    @routes.post("/logout", responses=described(415))
    async def logout(request: Request, response: Response) -> BrowserSession:
        """Log out, and close the WebSockets of this login."""
        granted = granted_of(request)
        rights.logins.end(cookie_of(request))
        response.delete_cookie(_cookie_name(request), httponly=True, samesite="strict")
        if granted.user:
            event("%s at %s logs out", granted.user, address_of(request))
        return _session(rights.of(request.headers.getlist, None), rights)

    return routes


def cookie_of(connection: HTTPConnection) -> str | None:
    """Return the secret of the login that a request carries."""
    return connection.cookies.get(_cookie_name(connection))


def granted_of(connection: HTTPConnection) -> Granted:
    """Return the right of a request that has passed the guard."""
    return connection.state.granted


def address_of(connection: HTTPConnection) -> str:
    """Return the address of the other side."""
    return connection.client.host if connection.client else "unknown"


def who(connection: HTTPConnection, named: str | None = None) -> str:
    """Return who sent a request, for the log: the user of its login, else the one that it names."""
    user = granted_of(connection).user or named
    return f"{user} at {address_of(connection)}" if user else f"a client at {address_of(connection)}"


def _cookie_name(connection: HTTPConnection) -> str:
    # Browsers send the cookies of one port to all ports of a host.
    _, port = connection.scope.get("server") or ("", None)
    return f"{'__Host-' if _is_secure(connection) else ''}stddaq-{port}"


def _is_secure(connection: HTTPConnection) -> bool:
    return connection.scope.get("scheme") in ("https", "wss")


def _session(granted: Granted, rights: Rights) -> BrowserSession:
    name: Literal["nothing", "look", "view", "control"] = granted.right.name.lower()  # pyright: ignore[reportAssignmentType]
    return BrowserSession(right=name, user=granted.user, has_login=rights.has_login)


def _refused(status: int, reason: str) -> BrowserSession:
    return refusal(status, reason)  # pyright: ignore[reportReturnType]
