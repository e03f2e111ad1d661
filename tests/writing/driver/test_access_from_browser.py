"""A page of another web site in Chromium, which tries to start a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.peers import chromium
from support.processes.recording import Rig, assert_saved, images_of

pytestmark = [
    pytest.mark.external,
    chromium.NEEDED,
]

PAGE = """<!DOCTYPE html><title>other site</title><script>
const socket = new WebSocket(%s);
socket.onopen = () => { socket.send(%s); document.title = "started a run"; };
socket.onerror = () => { document.title = "refused"; };
</script>"""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def other_site(rig: Rig, tmp_path: Path) -> Iterator[str]:
    """Serve a page whose script starts a run; return its URL."""
    command = {"command": "start", "path": str(tmp_path), "n_image": 1}
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text(PAGE % (json.dumps(rig.url), json.dumps(json.dumps(command))))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_page_of_another_web_site_starts_no_run(rig: Rig, other_site: str) -> None:
    with chromium.opened(other_site) as tab:
        tab.wait_for(lambda: tab.evaluate("document.title") == "refused", "the refused connection")
    rig.driver.wait_for_line(r"\[warning\].*connections were refused, the last one: Origin: expected that of")
    images = images_of(range(4))
    assert_saved(rig.record(images), images)
