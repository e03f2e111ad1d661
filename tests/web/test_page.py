"""The page as files: what is served, with which headers, and that nothing in it comes from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests
from support.processes.web import RestService

import stddaq.web
from stddaq.web.routes.page import SECURITY_HEADERS

FILES = sorted((Path(stddaq.web.__file__).parent / "dashboard").iterdir())
MAX_PAGE_BYTES = 300_000


def test_every_file_of_the_page_is_served_and_kept_by_browsers(rest: RestService) -> None:
    page = rest.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Cache-Control"] == "no-cache"
    base = re.findall(r'"(static/[0-9a-f]{16}/)main\.js"', page.text)[0]
    for path in FILES:
        if path.suffix == ".html":
            continue
        answer = rest.get(f"/{base}{path.name}")
        assert answer.content == path.read_bytes()
        assert "immutable" in answer.headers["Cache-Control"]
    again = requests.get(rest.url + "/", headers={"If-None-Match": page.headers["ETag"]}, timeout=30)
    assert (again.status_code, again.content) == (304, b"")


def test_every_answer_has_the_security_headers(rest: RestService) -> None:
    for path in ("/", "/api/live/sources", "/absent", "/static/0/main.js"):
        answer = rest.get(path)
        assert {name: answer.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


def test_only_files_of_the_page_are_served(rest: RestService) -> None:
    base = re.findall(r"(static/[0-9a-f]{16})/main\.js", rest.get("/").text)[0]
    for name in ("index.html", "docs.html", "../guard.py", "..%2fguard.py", "%2e%2e/guard.py", "absent.js"):
        assert rest.get(f"/{base}/{name}").status_code == 404


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_hold_nothing_that_the_policy_refuses(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//cdn", text)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
    if path.suffix == ".html":
        assert not re.search(r"\sstyle=|\son[a-z]+=|<script(?![^>]*\bsrc=)", text)


def test_page_is_small() -> None:
    assert sum(path.stat().st_size for path in FILES) < MAX_PAGE_BYTES
