"""The views of the page, with content, for axe-core: names, roles, order, contrast in both themes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.conftest import Up
from support.peers import chromium
from support.peers.chromium import Tab
from support.processes.deployment import Deployment, free_port
from support.processes.web import RestService

AXE = Path(sys.prefix) / "axe-core" / "axe.min.js"
pytestmark = [
    pytest.mark.external,
    pytest.mark.usefixtures("browser"),
    chromium.NEEDED,
    pytest.mark.skipif(not AXE.exists(), reason="needs axe-core, see .ci/make-axe"),
]

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# True once the view shows what it has.
CONTENT = {
    "live": "document.getElementById('live').textContent.includes('images/s')",
    "run": "document.querySelector('#run-path')",
    "services": "document.querySelector('#health tr[data-service=std_preview]')",
    "configuration": "document.querySelector('#config-keys tbody tr')",
    "events": "document.querySelector('#events-list li')",
    "runs": "document.querySelector('[data-run]')",
}
ACCOUNT = "document.querySelector('#run-account .file')"


def violations(tab: Tab) -> list[str]:
    """Return what axe finds on the page as it is, in both themes."""
    if not tab.evaluate("'axe' in window"):
        tab.evaluate(AXE.read_text() + "\n;0")
    found = _found(tab, {"type": "tag", "values": RULES})
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    found += [f"light: {text}" for text in _found(tab, {"type": "rule", "values": ["color-contrast"]})]
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    return found


def _found(tab: Tab, run_only: dict[str, object]) -> list[str]:
    options = json.dumps({"runOnly": run_only, "resultTypes": ["violations"]})
    return tab.evaluate(
        f"axe.run(document, {options}).then((found) => found.violations.map((one) =>"
        " `${one.id}: ${one.help}: ${one.nodes.map((node) => node.target.join(' ')).join(', ')}`))"
    )


def test_no_view_has_a_violation(deployment: Deployment, tmp_path: Path) -> None:
    port = free_port()
    deployment.write_config(services=[f"stddaq-rest --port {port} --allow-control --root {tmp_path}"])
    running = Up(deployment, "--source", "simulate", "--rate", 10)
    running.record(tmp_path, "-n", 3).succeed(60)
    with chromium.opened(f"http://127.0.0.1:{port}") as tab:
        tab.wait_for(lambda: tab.evaluate("document.querySelector('#tab-live')?.ariaSelected"), "the page")
        for view, content in CONTENT.items():
            tab.click(f"#tab-{view}")
            tab.wait_for(lambda content=content: tab.evaluate(f"Boolean({content})"), view)
            if view == "runs":
                tab.click("[data-run]")
                tab.wait_for(lambda: tab.evaluate(f"Boolean({ACCOUNT})"), "the account")
            assert violations(tab) == [], view
        tab.click("#show-help")
        assert violations(tab) == []
        tab.call("Page.navigate", url=f"http://127.0.0.1:{port}/docs")
        tab.wait_for(lambda: tab.evaluate("Boolean(document.querySelector('#requests section'))"), "requests")
        assert violations(tab) == []


def test_the_form_to_log_in_has_no_violation(
    start_rest: Callable[..., RestService], token_file: Path
) -> None:
    rest = start_rest("--token-file", token_file)
    with chromium.opened(rest.url) as tab:
        tab.wait_for(lambda: tab.evaluate("Boolean(document.querySelector('#login'))"), "the form")
        assert violations(tab) == []
