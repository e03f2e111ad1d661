"""Access to the driver, as a real process: browsers, other machines, tokens."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.data.token import TOKEN
from support.processes.deployment import Deployment, free_port
from support.processes.recording import MakeRig, Rig, assert_saved, images_of
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from stddaq.client import AsyncDriverClient, DriverClient, DriverNotAllowedError
from stddaq_ophyd import StdDaqDetector


@pytest.fixture
def guarded(make_rig: MakeRig, token_file: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Return a rig whose driver listens on all interfaces and demands a token, and a client with it."""
    monkeypatch.setenv("STDDAQ_TOKEN", TOKEN)
    rig = make_rig(driver=["--host", "0.0.0.0", "--token-file", token_file])
    monkeypatch.delenv("STDDAQ_TOKEN")
    del rig.deployment.env["STDDAQ_TOKEN"]
    return rig


def handshake(url: str, **headers: str) -> tuple[int, dict[str, str]]:
    """Send a WebSocket handshake with these headers. Return status and headers of the answer."""
    address = urlsplit(url)
    given = {"Host": address.netloc} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [
        "GET / HTTP/1.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in given.items()),
        "\r\n",
    ]
    with socket.create_connection(("127.0.0.1", address.port or 0), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        answer = connection.makefile("rb")
        status = int(answer.readline().split()[1])
        found = {}
        while line := answer.readline().strip().decode():
            name, _, value = line.partition(":")
            found[name.lower()] = value.strip()
    return status, found


@pytest.mark.fault(
    fault="page of another web site that opens the driver's WebSocket",
    state="idle",
    promise="its handshake is refused with 403 and logged; local programs are not affected",
)
def test_a_page_of_another_web_site_cannot_connect(rig: Rig) -> None:
    here = urlsplit(rig.url).netloc
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{urlsplit(rig.url).port}"},
        {
            "Host": f"evil.example:{urlsplit(rig.url).port}"
        },  # Its host name resolves to this machine (DNS rebinding).
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ):
        status, answer = handshake(rig.url, **headers)
        assert status == 403, headers
        assert "www-authenticate" not in answer
    rig.driver.wait_for_line(r"\[warning\].*connections were refused, the last one: Origin: expected that of")
    for headers in ({}, {"Host": "localhost"}, {"Host": "[::1]:8080"}, {"Origin": f"http://{here}"}):
        assert handshake(rig.url, **headers)[0] == 101, headers
    images = images_of(range(4))
    assert_saved(rig.record(images), images)


@pytest.mark.fault(
    fault="start of a driver on all interfaces without a token",
    state="start",
    promise="it refuses in one line, which explains how to provide a token",
)
def test_addresses_that_are_not_loopback_need_a_token(deployment: Deployment) -> None:
    driver = deployment.start("std_det_driver", "--port", 0, "--host", "0.0.0.0", ready=None)
    assert driver.wait() == 2
    assert len(driver.stderr) == 1
    assert "expected a loopback address, because there is no token, got 0.0.0.0" in driver.stderr[0]


def test_only_clients_with_the_token_can_connect(guarded: Rig) -> None:
    url = f"ws://127.0.0.1:{urlsplit(guarded.url).port}"
    wrong = ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"})
    for headers in wrong:
        status, answer = handshake(url, **headers)
        assert (status, answer["www-authenticate"]) == (401, "Bearer")
    password = base64.b64encode(f"any:{TOKEN}".encode()).decode()
    for value in (f"Bearer {TOKEN}", f"Basic {password}"):
        assert handshake(url, Authorization=value, Host="daq.example:8080")[0] == 101
        assert handshake(url, Authorization=value, Origin="http://evil.example")[0] == 403
    assert not any(TOKEN in line for line in guarded.driver.stdout)
    assert TOKEN.encode() not in Path(f"/proc/{guarded.driver.pid}/cmdline").read_bytes()


def test_a_client_that_takes_only_a_url_can_carry_the_token_in_it(guarded: Rig) -> None:
    port = urlsplit(guarded.url).port
    with connect(f"ws://any:{TOKEN}@127.0.0.1:{port}/now") as client:
        assert json.loads(client.recv(timeout=60))["status"] == "idle"
    with pytest.raises(InvalidStatus, match="401"):
        connect(f"ws://any:wrong@127.0.0.1:{port}/now")


def test_clients_carry_the_token_and_never_show_it(
    guarded: Rig, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    url = f"ws://127.0.0.1:{urlsplit(guarded.url).port}"
    with_token = url.replace("//", f"//any:{TOKEN}@")
    with pytest.raises(DriverNotAllowedError, match="Authorization: expected Bearer and the token"):
        DriverClient(url).connect()
    with DriverClient(url, token=TOKEN) as client:
        assert client.latest.status == "idle"
    with DriverClient(with_token) as client:
        assert client.url == url
        assert client.status().status == "idle"
    assert AsyncDriverClient(with_token).url == url
    device = StdDaqDetector(with_token, name="det", paths=directory)
    assert device.driver_state().startswith("idle")
    assert TOKEN not in repr(device) + device.prefix
    monkeypatch.setenv("STDDAQ_TOKEN", TOKEN)
    assert StdDaqDetector(url, name="det", paths=directory).driver_state().startswith("idle")


def test_commands_carry_the_token(guarded: Rig) -> None:
    port = urlsplit(guarded.url).port

    def run(url: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [guarded.deployment.stddaq, "status", "--url", url],
            env=guarded.deployment.env | env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    done = run(f"ws://127.0.0.1:{port}")
    assert done.returncode == 2
    assert "expected Bearer and the token of this service" in done.stderr
    assert run(f"ws://127.0.0.1:{port}", STDDAQ_TOKEN=TOKEN).stdout.startswith("idle")
    assert run(f"ws://any:{TOKEN}@127.0.0.1:{port}").stdout.startswith("idle")


def test_up_passes_the_token_to_its_services(deployment: Deployment, token_file: Path) -> None:
    port = free_port()
    up = deployment.run(
        *(deployment.stddaq, "up", deployment.config_path, "--port", port),
        *("--host", "0.0.0.0", "--token-file", token_file),
        ready="all services ready",
    )
    assert handshake(f"ws://127.0.0.1:{port}")[0] == 401
    with DriverClient(f"ws://127.0.0.1:{port}", token=TOKEN) as client:
        assert client.latest.status == "idle"
    assert up.end() == 0
