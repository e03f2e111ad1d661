"""The documentation site in a browser: the search finds pages, and the buttons copy whole blocks."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.peers import chromium

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build/docs"
PAGE = "tutorials/first-run.html"
BUTTONS = "document.querySelectorAll('button.copybtn')"

pytestmark = [
    # The site is built in half a minute.
    pytest.mark.slow,
    pytest.mark.timeout(300),
    chromium.NEEDED,
]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are no news."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Build the site, from what `make docs` has built if it has, and serve it."""
    directory = tmp_path_factory.mktemp("site")
    if BUILT.exists():
        shutil.copytree(BUILT, directory, dirs_exist_ok=True)
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "docs", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_search_field_finds_pages(site: str) -> None:
    with chromium.opened(f"{site}/index.html") as tab:
        field = "document.querySelector('input.sidebar-search')"
        tab.wait_for(lambda: tab.evaluate(f"{field} !== null"), "the search field")
        tab.evaluate(f"{field}.value = 'ram_buffer_gb'; {field}.form.submit()")
        links = "[...document.querySelectorAll('ul.search li a')].map(link => link.getAttribute('href'))"
        tab.wait_for(lambda: "found" in tab.text(".search-summary"), "the end of the search")
        found = [link.partition("?")[0].partition("#")[0] for link in tab.evaluate(links)]
        assert "reference/configuration.html" in found
        assert tab.complaints == []


def copied(tab: chromium.Tab, number: int) -> str:
    """Click a button, and return the text of the clipboard, pasted into the last text field."""
    field = "document.querySelector('body > textarea:last-child')"
    tab.evaluate(f"{BUTTONS}[{number}].click(); {field}.value = ''; {field}.focus()")
    key = {"key": "v", "code": "KeyV", "modifiers": 2}
    tab.call("Input.dispatchKeyEvent", type="keyDown", commands=["paste"], **key)
    tab.call("Input.dispatchKeyEvent", type="keyUp", **key)
    return tab.evaluate(f"{field}.value").strip()


def test_copy_buttons_copy_whole_blocks(site: str) -> None:
    with chromium.opened(f"{site}/{PAGE}") as tab:
        n = tab.wait_for(lambda: tab.evaluate(f"{BUTTONS}.length"), "the buttons")
        assert n == tab.evaluate("document.querySelectorAll('div.highlight pre').length")
        tab.evaluate("document.body.append(document.createElement('textarea'))")
        for i in range(n):
            block = tab.evaluate(f"document.querySelectorAll('div.highlight pre')[{i}].textContent").strip()
            # A page that had no key yet has no focus, and copies nothing.
            tab.wait_for(lambda i=i, text=block: copied(tab, i) == text, f"{block!r} in the clipboard")
