"""The decisions of `Access` about request headers."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import pytest

from stddaq.daemon.access import Access, AccessError
from stddaq.loopback import is_loopback

TOKEN = "a-token-that-is-hard-to-guess"
HOST = {"host": "127.0.0.1:8080"}


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def refusal(headers: Mapping[str, str | Sequence[str]], token: str | None = None) -> int:
    """Return the status with which a request is refused, or 0."""

    def values(name: str) -> Sequence[str]:
        found = headers.get(name, [])
        return [found] if isinstance(found, str) else found

    try:
        Access(token).check(values)
    except AccessError as error:
        return error.status
    return 0


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.2", "[::1]:8080"])
def test_programs_on_this_machine_need_no_token(host: str) -> None:
    assert refusal({"host": host}) == 0
    assert refusal({"host": host, "origin": f"http://{host}"}) == 0


@pytest.mark.parametrize("host", ["elsewhere.example", "10.0.0.1", "", "[", "localhost.example"])
def test_another_host_needs_a_token(host: str) -> None:
    assert refusal({"host": host}) == 403
    assert refusal({"host": host, "authorization": f"Bearer {TOKEN}"}, TOKEN) == 0


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "null", "", "http://127.0.0.1", "http://["])
def test_pages_of_another_web_site_are_refused_even_with_a_token(origin: str) -> None:
    assert refusal(HOST | {"origin": origin}) == 403
    assert refusal(HOST | {"origin": origin, "authorization": f"Bearer {TOKEN}"}, TOKEN) == 403


def test_the_token_is_that_of_bearer_or_the_password_of_basic() -> None:
    for value in (f"Bearer {TOKEN}", f"bearer  {TOKEN} ", basic(f"any:{TOKEN}"), basic(f":{TOKEN}")):
        assert refusal(HOST | {"authorization": value}, TOKEN) == 0, value
    wrong = ("", TOKEN, f"Bearer {TOKEN}x", f"Basic {TOKEN}", basic(TOKEN), basic(f"{TOKEN}:"), "Basic \xff!")
    for value in (*wrong, "Bearer \xff", f"Digest {TOKEN}"):
        assert refusal(HOST | {"authorization": value}, TOKEN) == 401, value
    assert refusal(HOST, TOKEN) == 401


def test_a_header_that_comes_twice_is_refused() -> None:
    right = f"Bearer {TOKEN}"
    for name, value in (
        ("host", HOST["host"]),
        ("origin", "http://" + HOST["host"]),
        ("authorization", right),
    ):
        headers = HOST | {"authorization": right} | {name: [value, value]}
        assert refusal(headers, TOKEN) == 403


def test_loopback_addresses() -> None:
    assert [h for h in ("127.0.0.1", "::1", "localhost", "127.9.9.9") if not is_loopback(h)] == []
    assert [h for h in ("0.0.0.0", "::", "", "localhost.example", "10.0.0.1") if is_loopback(h)] == []
