"""Logins: the cookie, its end, wrong tokens, and what other web sites and viewers cannot do."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from support.data.token import TOKEN
from support.processes.deployment import Deployment
from support.processes.web import RestService, json_message
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from stddaq.web.logins import (
    MAX_LOGINS,
    MAX_TRIES,
    MAX_TRIES_OF_ADDRESS,
    TRIES_PERIOD_S,
    VALID_S,
    Logins,
    Tries,
)

VIEW_TOKEN = TOKEN[::-1]
MARKED = {"X-Stddaq": "1", "Sec-Fetch-Site": "same-origin"}


class Clock:
    """The time, which the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_login_is_valid_for_twelve_hours_and_ends_with_an_event() -> None:
    clock = Clock()
    logins = Logins(clock)
    first, second = logins.add(3, "one"), logins.add(2, "two")
    assert first != second
    login = logins.of(first)
    assert login is not None
    assert (login.user, login.right, login.ended.is_set()) == ("one", 3, False)
    assert (logins.of(None), logins.of(""), logins.of("else")) == (None, None, None)
    logins.end(second)
    logins.end(second)
    assert logins.of(second) is None
    clock.now = VALID_S
    assert logins.of(first) is None
    assert login.ended.is_set()


def test_logins_are_limited_in_number() -> None:
    logins = Logins(Clock())
    oldest = logins.add(3, "one")
    for _ in range(MAX_LOGINS):
        logins.add(3, "more")
    assert logins.of(oldest) is None


def test_wrong_tokens_are_limited_by_address_and_in_all() -> None:
    clock = Clock()
    tries = Tries(clock)
    for _ in range(MAX_TRIES_OF_ADDRESS):
        assert tries.is_allowed("a")
        tries.note_wrong("a")
    assert not tries.is_allowed("a")
    assert tries.is_allowed("b")
    for number in range(MAX_TRIES - MAX_TRIES_OF_ADDRESS):
        tries.note_wrong(str(number))
    assert not tries.is_allowed("b")
    clock.now = TRIES_PERIOD_S
    assert tries.is_allowed("a")


@pytest.fixture
def guarded(start_rest: Callable[..., RestService], token_file: Path, tmp_path: Path) -> RestService:
    """Start a service with both tokens, which lets everyone look."""
    view = tmp_path / "view_token"
    view.write_text(VIEW_TOKEN)
    view.chmod(0o600)
    return start_rest("--token-file", token_file, "--view-token-file", view, "--anonymous-view")


class Browser(requests.Session):
    """What the page sends."""

    def __init__(self, rest: RestService) -> None:
        super().__init__()
        self._url = rest.url
        self.headers.update(MARKED)

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.request(method, self._url + path, timeout=30, **options)

    def log_in(self, token: str = TOKEN, user: str = "anna") -> requests.Response:
        return self.ask("POST", "/api/login", json={"token": token, "user": user})

    def right(self) -> str:
        return self.ask("GET", "/api/session").json()["right"]

    @property
    def cookie(self) -> str:
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.cookies)


@pytest.fixture
def browser(guarded: RestService) -> Iterator[Browser]:
    with Browser(guarded) as browser:
        yield browser


def test_token_is_exchanged_for_a_cookie_that_scripts_cannot_read(
    guarded: RestService, browser: Browser
) -> None:
    assert browser.right() == "look"
    assert browser.ask("GET", "/api/config/get?user=anna").status_code == 401
    answer = browser.log_in()
    assert answer.json() == {"right": "control", "user": "anna", "has_login": True}
    cookie = answer.headers["Set-Cookie"]
    port = urlsplit(guarded.url).port
    assert re.match(rf"stddaq-{port}=[\w-]{{43}}; ", cookie)
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert browser.ask("GET", "/api/config/get?user=anna").json() == guarded.deployment.config
    changed = guarded.deployment.config | {"number_of_writers": 3}
    # A login has one name, whatever a request says.
    assert browser.ask("POST", "/api/config/set?user=bert", json=changed).status_code == 200
    assert [version["user"] for version in browser.ask("GET", "/api/config/history").json()] == ["anna"]
    guarded.process.wait_for_line(r"\[event\] anna at 127\.0\.0\.1: configuration .* set")
    assert not any(TOKEN in line for line in guarded.process.stdout)


def test_viewer_sees_everything_and_changes_nothing(guarded: RestService, browser: Browser) -> None:
    assert browser.log_in(VIEW_TOKEN).json()["right"] == "view"
    assert browser.ask("GET", "/api/config/get?user=anna").status_code == 200
    changed = guarded.deployment.config | {"number_of_writers": 3}
    for path in ("/api/config/set?user=anna", "/api/run/start", "/api/run/stop", "/api/run/repair"):
        answer = browser.ask("POST", path, json=changed)
        assert answer.status_code == 403, path
        assert "expected a service with --allow-control, or a login with its token" in answer.json()["detail"]
    assert guarded.config_on_disk() == guarded.deployment.config


def test_change_by_a_browser_needs_json_the_mark_and_its_own_origin(
    guarded: RestService, browser: Browser
) -> None:
    """Each is what a page of another web site cannot send with the cookie."""
    browser.log_in()
    changed = json.dumps(guarded.deployment.config | {"number_of_writers": 3})
    right = {"Content-Type": "application/json"}
    for headers, status in (
        (right | {"X-Stddaq": ""}, 403),
        (right | {"Origin": "http://elsewhere.example"}, 403),
        (right | {"Origin": "null"}, 403),
        (right | {"Sec-Fetch-Site": "cross-site"}, 403),
        (right | {"Sec-Fetch-Site": "same-site"}, 403),
        (right | {"Host": "rebound.example"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({}, 415),
    ):
        answer = browser.ask("POST", "/api/config/set?user=anna", data=changed, headers=headers)
        assert answer.status_code == status, headers
    for method in ("GET", "HEAD"):
        for path in ("/api/login", "/api/logout", "/api/config/set?user=anna"):
            assert browser.ask(method, path).status_code == 405, path
    assert guarded.config_on_disk() == guarded.deployment.config
    assert browser.right() == "control"


def test_logout_ends_the_cookie_and_the_streams_of_the_login(guarded: RestService, browser: Browser) -> None:
    browser.log_in()
    with Browser(guarded) as other:
        other.log_in(user="bert")
        cookie = browser.cookie
        address = guarded.url.replace("http", "ws") + "/api/run/ws"
        with (
            connect(address, additional_headers={"Cookie": cookie}, proxy=None) as own,
            connect(address, additional_headers={"Cookie": other.cookie}, proxy=None) as others,
            requests.get(
                guarded.url + "/api/run/events", headers={"Cookie": cookie}, stream=True, timeout=30
            ) as events,
        ):
            assert browser.ask("POST", "/api/logout", json={}).json()["right"] == "look"
            said: dict[str, Any] = {}
            while "bye" not in said:
                said = json_message(own)
            assert said["code"] == "logged_out"
            assert list(events.iter_lines())[-1] == b""
            assert json_message(others)["status"]
        assert other.right() == "control"
    stolen = requests.get(guarded.url + "/api/config/get?user=anna", headers={"Cookie": cookie}, timeout=20)
    assert stolen.status_code == 401


def test_wrong_tokens_are_counted_and_then_refused(guarded: RestService, browser: Browser) -> None:
    for _ in range(MAX_TRIES_OF_ADDRESS):
        assert browser.log_in("wrong").status_code == 401
    answer = browser.log_in()
    assert answer.status_code == 429
    assert answer.json()["detail"].startswith("token: expected at most 5 wrong ones a minute, got more")
    assert browser.right() == "look"
    # Programs with the right token are not concerned.
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert requests.get(guarded.url + "/openapi.json", headers=headers, timeout=20).status_code == 200


@pytest.mark.parametrize("user", ["", "a b", "../x", "<img>", "x" * 65, "\n"])
def test_name_that_cannot_be_part_of_a_log_line_is_refused(browser: Browser, user: str) -> None:
    assert browser.log_in(user=user).status_code == 422


def test_anonymous_viewer_gets_no_paths_of_a_run(guarded: RestService) -> None:
    address = guarded.url.replace("http", "ws")
    with connect(address + "/api/run/ws", proxy=None) as socket:
        # The reason of a driver that cannot be reached names its address.
        assert json_message(socket) == {"status": "unreachable"}
    for path in ("/api/events/ws", "/nowhere"):
        with pytest.raises(InvalidStatus) as refused, connect(address + path, proxy=None):
            pass
        assert refused.value.response.status_code == 401


def test_without_a_token_there_is_no_login_and_only_a_view(deployment: Deployment, tmp_path: Path) -> None:
    rest = RestService.start_as_it_is(deployment, tmp_path)
    with Browser(rest) as browser:
        assert browser.ask("GET", "/api/session").json() == {
            "right": "view",
            "user": None,
            "has_login": False,
        }
        assert browser.log_in().status_code == 409
    refused = rest.set(deployment.config | {"number_of_writers": 3})
    assert refused.status_code == 403
    assert rest.config_on_disk() == deployment.config


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--anonymous-view",), "--anonymous-view: expected --token-file, too, got none"),
        (("--view-token-file", "{token}"), "--view-token-file: expected --token-file, too, got none"),
        (
            ("--token-file", "{token}", "--allow-control"),
            "--allow-control: expected a service without a token",
        ),
        (("--token-file", "{token}", "--view-token-file", "{token}"), "expected another token"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    deployment: Deployment, token_file: Path, arguments: tuple[str, ...], reason: str
) -> None:
    given = [argument.format(token=token_file) for argument in arguments]
    process = deployment.start("stddaq-rest", *given, ready=None)
    assert process.wait() == 2
    assert reason in process.stderr[0]


def test_end_of_a_login_is_noticed_by_who_waits_for_it() -> None:
    async def wait() -> None:
        logins = Logins()
        secret = logins.add(3, "one")
        login = logins.of(secret)
        assert login is not None
        waiting = asyncio.create_task(login.ended.wait())
        logins.end(secret)
        assert await waiting

    asyncio.run(wait())
