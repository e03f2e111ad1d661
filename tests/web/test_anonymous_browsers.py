"""How many anonymous browsers of one address are served, with a peer that is not on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.requests import HTTPConnection
from support.data.token import TOKEN
from support.processes.deployment import Deployment, console_script
from support.processes.namespaces import Network
from support.processes.web import RestService
from websockets.sync.client import connect

from stddaq.web.live.session import MAX_ANONYMOUS_OF_ADDRESS, anonymous_source
from stddaq.web.logins import Login
from stddaq.web.rights import Granted, Right

LOOKING = Granted(Right.LOOK)

# Statuses of handshakes from the other side of the cable: 101, or why they were refused.
PEER = """
import http.cookiejar, json, sys, time, urllib.request
from contextlib import ExitStack
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
url, token, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
stack, found = ExitStack(), {}
def status(path, **headers):
    address = url.replace("http", "ws") + path
    try:
        browser = connect(address, proxy=None, open_timeout=20, additional_headers=headers)
    except InvalidStatus as error:
        return [error.response.status_code, json.loads(error.response.body)["detail"]]
    opened.append(stack.enter_context(browser))
    return [101, ""]
opened = []
found["first"] = [status("/api/live/ws") for _ in range(n)]
found["further"] = status("/api/live/ws")
found["forwarded"] = status("/api/live/ws", **{"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"})
found["of the run"] = status("/api/run/ws")
found["with the token"] = status("/api/live/ws", Authorization=f"Bearer {token}")
body = json.dumps({"token": token, "user": "anna"}).encode()
headers = {"Content-Type": "application/json", "X-Stddaq": "1"}
request = urllib.request.Request(url + "/api/login", body, headers)
with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
    cookie = answer.headers["Set-Cookie"].partition(";")[0]
found["logged in"] = status("/api/live/ws", Cookie=cookie)
found["still further"] = status("/api/live/ws", Cookie="stddaq=wrong")
opened[0].close()
until = time.monotonic() + 20
while (last := status("/api/live/ws"))[0] != 101 and time.monotonic() < until:
    time.sleep(0.05)
found["after one has left"] = last
stack.close()
print(json.dumps(found))
"""


def test_one_address_cannot_take_the_places_of_all(
    deployment: Deployment, token_file: Path, tmp_path: Path
) -> None:
    n = MAX_ANONYMOUS_OF_ADDRESS
    with Network() as network:
        options = "--port", 0, "--host", network.first_address, "--token-file", token_file, "--anonymous-view"
        service = deployment.run(
            *network.on_first,
            *(console_script("stddaq-rest"), deployment.config_path, *options, "--url", "ws://127.0.0.1:9"),
        )
        url = service.wait_for_line(r"ready: listening on (http://\S+)")[1]
        peer = [*network.on_second, sys.executable, "-c", PEER, url, TOKEN, str(n)]
        done = subprocess.run(peer, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    refused = [429, f"browsers at 10.99.0.2: expected at most {n} without a login, got another one; log in"]
    accepted = [101, ""]
    assert found == {
        "first": [accepted] * n,
        "further": refused,
        "forwarded": refused,
        "of the run": accepted,
        "with the token": accepted,
        "logged in": accepted,
        "still further": refused,
        "after one has left": accepted,
    }


def test_browsers_on_this_machine_are_only_limited_in_all(deployment: Deployment, token_file: Path) -> None:
    rest = RestService.start(
        deployment, deployment.config_path.parent, "--token-file", token_file, "--anonymous-view"
    )
    with ExitStack() as stack:
        for _ in range(MAX_ANONYMOUS_OF_ADDRESS + 1):
            stack.enter_context(connect(rest.url.replace("http", "ws") + "/api/live/ws", proxy=None))


@pytest.mark.parametrize(
    ("host", "granted", "source"),
    [
        ("192.0.2.7", LOOKING, "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", LOOKING, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", LOOKING, "2001:db8:1:2::/64"),
        ("fe80::1%eth0", LOOKING, "fe80::/64"),
        ("127.0.0.2", LOOKING, ""),
        ("::1", LOOKING, ""),
        ("192.0.2.7", Granted(Right.CONTROL, has_token=True), ""),
        ("192.0.2.7", Granted(Right.VIEW, Login(Right.VIEW, "anna", 0.0)), ""),
    ],
)
def test_anonymous_browsers_are_counted_by_address_or_network(
    host: str, granted: Granted, source: str
) -> None:
    scope = {"type": "websocket", "client": (host, 50000), "state": {"granted": granted}}
    assert anonymous_source(HTTPConnection(scope)) == source
