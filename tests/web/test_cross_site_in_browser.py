"""A page of another web site, in the real browser of a person who may control: it can do and read nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.peers import chromium
from support.processes.web import RestService

pytestmark = [
    pytest.mark.external,
    pytest.mark.usefixtures("browser"),
    chromium.NEEDED,
]

# `own` is the service, `body` a change of its configuration.
TOOLS = """
const set = own + '/api/config/set?user=evil', refused = () => 'refused';
const text = (answer) => answer.text(), shown = (text) => text || 'refused';
// What a frame shows cannot be read, unless it is of this site.
const seen = (frame) => {
  try { return frame.contentDocument.body.textContent || 'refused'; } catch { return 'refused'; }
};
const make = (name, properties) => Object.assign(document.createElement(name), properties);
const loaded = (name, properties, result = () => 'loaded') => new Promise((done) => {
  const one = make(name, properties);
  one.onload = () => done(result(one));
  one.onerror = () => done('refused');
  document.body.append(one);
});
const opened = (path) => new Promise((done) => {
  const socket = new WebSocket(own.replace('http', 'ws') + path);
  socket.onopen = () => done('open');
  socket.onerror = () => done('refused');
});
const sent = () => {
  const form = make('form', { method: 'POST', enctype: 'text/plain', target: 'answer', action: set });
  form.append(make('input', { name: body.slice(0, -1) + ', "a": "', value: '"}' }));
  document.body.append(form);
  const answer = loaded('iframe', { name: 'answer' }, seen);
  form.submit();
  return answer;
};
const headers = { 'Content-Type': 'application/json', 'X-Stddaq': '1' };
"""
# Each is a promise of "refused", or of what the page has achieved.
ATTACKS = {
    "read": "fetch(own + '/api/config/get').then(text, refused)",
    "read with cookies": "fetch(own + '/api/runs', { credentials: 'include' }).then(text, refused)",
    "change": "fetch(set, { method: 'POST', body, headers }).then(text, refused)",
    "change unasked": "fetch(set, { method: 'POST', mode: 'no-cors', body }).then(text, refused).then(shown)",
    "beacon": "Promise.resolve(navigator.sendBeacon(set, body) && 'refused')",
    "form": "sent()",
    "images": "opened('/api/live/ws')",
    "events": "opened('/api/events/ws')",
    "script": "loaded('script', { src: own + '/openapi.json' })",
    "style": "loaded('link', { rel: 'stylesheet', href: own + '/openapi.json' })",
    "picture": "loaded('img', { src: own + '/api/live/image.tiff?image=1' })",
    "frame": "loaded('iframe', { src: own }, seen)",
}


class _OtherSite(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>other</title><body></body>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def other_site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _OtherSite) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


def test_page_of_another_web_site_does_and_reads_nothing(
    start_rest: Callable[..., RestService], other_site: str
) -> None:
    rest = start_rest()
    before = rest.config_on_disk()
    arguments = f"{json.dumps(rest.url)}, {json.dumps(json.dumps(before | {'log_level': 'error'}))}"
    with chromium.opened(other_site) as tab:
        tab.wait_for(lambda: tab.text("title") == "other", "the page of the other site")
        done = {
            name: tab.evaluate(f"((own, body) => {{{TOOLS} return {attack}; }})({arguments})")
            for name, attack in ATTACKS.items()
        }
        sent = [url for url in tab.urls if rest.url.partition("//")[2] in url]
    assert done == dict.fromkeys(ATTACKS, "refused")
    # The browser has sent the requests.
    assert len(sent) >= len(ATTACKS) - 3
    assert rest.config_on_disk() == before
    assert rest.history == []
    # The same change from the service's own page is one.
    with chromium.opened(rest.url) as tab:
        tab.wait_for(lambda: tab.text("#state"), "the page")
        tab.evaluate(f"((own, body) => {{{TOOLS} return {ATTACKS['change']}; }})({arguments})")
    assert rest.config_on_disk()["log_level"] == "error"
