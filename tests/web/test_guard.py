"""`Guard`, fed with requests: origin, host, token, type and length of the body."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from stddaq.web import guard
from stddaq.web.guard import MAX_BODY_BYTES, Guard
from stddaq.web.rights import Rights

TOKEN = "0123456789abcdef"
JSON = ("content-type", "application/json")


def answer(
    *headers: tuple[str, str],
    body: tuple[bytes, ...] = (b"",),
    token: str | None = None,
    rights: Rights | None = None,
    ends: bool = True,
    method: str = "GET",
    path: str = "/api/config/get",
) -> tuple[int, Any]:
    """Send one request through a guard. Return 200 and the body that passes, or status and detail."""
    parts = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    if ends:
        parts[-1]["more_body"] = False
    sent: list[Any] = []
    passed: list[bytes] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        passed.append((await receive())["body"])

    async def receive() -> Any:
        if not parts:
            await asyncio.Event().wait()
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    given = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    if "host" not in dict(headers):
        given.append((b"host", b"127.0.0.1:5000"))
    scope = {"type": "http", "method": method, "path": path, "headers": given}
    asyncio.run(Guard(app, rights or Rights(token))(scope, receive, send))
    if passed:
        return 200, passed[0]
    return sent[0]["status"], json.loads(sent[1]["body"])["detail"]


def test_local_request_passes_with_its_whole_body() -> None:
    assert answer() == (200, b"")
    assert answer(JSON, body=(b"{", b"}")) == (200, b"{}")
    assert answer(("content-type", "Application/JSON; charset=utf-8"), body=(b"{}",)) == (200, b"{}")


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.2", "[::1]:5000"])
def test_request_to_a_loopback_address_passes_without_a_token(host: str) -> None:
    assert answer(("host", host))[0] == 200


@pytest.mark.parametrize("host", ["elsewhere.example", "10.0.0.1", "", "[", "localhost.example"])
def test_request_to_another_host_needs_a_token(host: str) -> None:
    status, detail = answer(("host", host))
    assert status == 403
    assert detail.startswith("Host: expected localhost or its address, got ")
    assert answer(("host", host), ("authorization", f"Bearer {TOKEN}"), token=TOKEN)[0] == 200


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "null", "http://127.0.0.1", "http://["])
def test_request_of_another_web_site_is_refused(origin: str) -> None:
    status, detail = answer(("origin", origin))
    assert status == 403
    assert detail.startswith("Origin: ")


def test_request_of_its_own_pages_passes() -> None:
    assert answer(("origin", "http://127.0.0.1:5000"))[0] == 200


LINK = (("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"))


@pytest.mark.parametrize("site", ["cross-site", "same-site", "SAME-ORIGIN", ""])
def test_request_that_another_web_site_caused_is_refused_without_an_origin(site: str) -> None:
    status, detail = answer(("sec-fetch-site", site), ("sec-fetch-mode", "no-cors"))
    assert status == 403
    assert detail.startswith("Sec-Fetch-Site: expected same-origin, none, or a link to the page /, got ")


def test_only_the_page_can_be_opened_by_a_link_of_another_web_site() -> None:
    link = (("sec-fetch-site", "cross-site"), *LINK)
    assert answer(*link, path="/")[0] == 200
    assert answer(*link, path="/api/config/get")[0] == 403
    assert answer(*link, path="/", method="POST")[0] == 403
    framed = (("sec-fetch-site", "cross-site"), LINK[0], ("sec-fetch-dest", "iframe"))
    assert answer(*framed, path="/")[0] == 403
    twice = (("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site"))
    assert answer(*twice)[0] == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_request_of_its_own_pages_or_of_the_person_passes(site: str) -> None:
    assert answer(("sec-fetch-site", site))[0] == 200


@pytest.mark.parametrize(
    "value", ["", f"Basic {TOKEN}", "Basic !", f"Bearer {TOKEN}x", "Bearer", "Bearer \xff"]
)
def test_request_without_the_right_token_is_refused(value: str) -> None:
    assert answer(("authorization", value), token=TOKEN)[0] == 401


@pytest.mark.parametrize("declared", [(), (("content-type", "text/plain"),)])
def test_body_that_is_not_declared_as_json_is_refused(declared: tuple[tuple[str, str], ...]) -> None:
    status, detail = answer(*declared, body=(b"{}",))
    assert status == 415
    assert detail.startswith("Content-Type: expected application/json, got ")


def test_body_that_is_too_long_is_refused_before_its_end() -> None:
    assert answer(JSON, ("content-length", str(MAX_BODY_BYTES + 1)), ends=False)[0] == 413
    assert answer(JSON, body=(b" " * MAX_BODY_BYTES, b" "), ends=False)[0] == 413
    assert answer(JSON, body=(b" " * MAX_BODY_BYTES,))[0] == 200


def test_body_that_does_not_arrive_in_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_TIMEOUT_S", 0.01)
    assert answer(JSON, body=(b"{",), ends=False) == (408, "body: expected its end within 0.01 s, got a part")


def test_websocket_handshake_is_checked_like_a_request() -> None:
    passed: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        passed.append(scope["type"])

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    def handshake(**headers: str) -> None:
        scope = {
            "type": "websocket",
            "path": "/api/run/ws",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "extensions": {"websocket.http.response": {}},
        }
        asyncio.run(Guard(app, Rights())(scope, receive, send))

    handshake(host="127.0.0.1:5000", origin="http://elsewhere.example")
    handshake(host="elsewhere.example")
    handshake(**{"host": "127.0.0.1:5000", "sec-fetch-site": "cross-site"})
    assert passed == []
    starts = [m for m in sent if m["type"] == "websocket.http.response.start"]
    assert [m["status"] for m in starts] == [403, 403, 403]
    handshake(host="127.0.0.1:5000", origin="http://127.0.0.1:5000")
    handshake(host="localhost:5000")
    assert passed == ["websocket", "websocket"]


BROWSER = ("sec-fetch-site", "same-origin")
MARK = ("x-stddaq", "1")


def change(*headers: tuple[str, str], path: str = "/api/run/start", rights: Rights | None = None) -> int:
    """Send a request that changes something; return its status."""
    return answer(*headers, method="POST", path=path, rights=rights or Rights(allow_control=True))[0]


def test_change_by_a_browser_needs_a_header_that_no_other_site_can_send() -> None:
    for browser in (BROWSER, ("origin", "http://127.0.0.1:5000"), ("cookie", "stddaq-5000=x")):
        assert change(browser, JSON, MARK) == 200
        assert change(browser, JSON) == 403
        assert change(browser, JSON, ("x-stddaq", "0")) == 403
        assert change(browser, JSON, MARK, MARK) == 403
        assert change(browser, MARK) == 415
        assert change(browser, ("content-type", "text/plain"), MARK) == 415
    assert change() == 200  # Programs send what they like.


def test_without_a_token_only_a_service_that_allows_it_is_controlled() -> None:
    assert change(rights=Rights()) == 403
    assert answer(rights=Rights())[0] == 200


@pytest.mark.parametrize("path", ["/", "/static/x/main.js", "/api/session", "/health/live"])
def test_frame_of_the_page_is_public_with_a_token(path: str) -> None:
    assert answer(path=path, token=TOKEN)[0] == 200


LOOKING = ["/api/live/ws", "/api/run/ws", "/api/live/sources", "/api/health", "/api/history", "/health"]
VIEWING = [
    *("/api/config/get", "/api/config/history", "/api/events", "/api/events/ws", "/api/runs", "/metrics"),
    *("/api/h5/read_metadata", "/api/live/image.tiff", "/api/live/pixel", "/openapi.json", "/nothing"),
]


@pytest.mark.parametrize("path", [*LOOKING, *VIEWING])
def test_anonymous_viewers_get_only_what_has_no_names(path: str) -> None:
    status = 200 if path in LOOKING else 401
    assert answer(path=path, rights=Rights(TOKEN, anonymous_view=True))[0] == status
    assert answer(path=path, rights=Rights(TOKEN))[0] == 401


def test_token_for_viewers_does_not_control() -> None:
    rights = Rights(TOKEN, view_token=TOKEN[::-1])
    viewer = ("authorization", f"Bearer {TOKEN[::-1]}")
    assert answer(viewer, rights=rights)[0] == 200
    assert change(viewer, rights=rights) == 403
    assert change(("authorization", f"Bearer {TOKEN}"), rights=rights) == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(
            (name, 200)
            for name in ("10.0.0.1:5000", "[fd00::1]:5000", "localhost", "daq.example", "DAQ.example:5")
        ),
        *((name, 403) for name in ("rebound.example", "daq.example.evil", "", "[")),
    ],
)
def test_browser_reaches_a_service_with_a_token_only_by_its_names(host: str, status: int) -> None:
    rights = Rights(TOKEN, anonymous_view=True, hosts=["daq.example"])
    assert answer(("host", host), path="/api/live/sources", rights=rights)[0] == status
