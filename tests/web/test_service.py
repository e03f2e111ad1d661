"""The service as a daemon: tokens, limits, arguments and its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from support.data.token import TOKEN
from support.processes.deployment import Deployment, wait_until
from support.processes.sources import start_source
from support.processes.stream_readers import ImageReader
from support.processes.web import RestService
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from stddaq.client import (
    ConfigClient,
    ConfigServiceUnreachableError,
    NotAllowedError,
    NotFoundError,
    RequestRefusedError,
)
from stddaq.daemon.forced_exit import CRASHED
from stddaq.web import service
from stddaq.web.http_protocol import HEADER_TIMEOUT_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_service_ends_cleanly_with_open_connections(rest: RestService, number: int) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(rest.url).port or 0)) as connection:
        connection.sendall(b"POST /api/config/set?user=me HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
        assert rest.client.get()
        assert rest.process.end(number) == 0
    assert rest.process.stderr == []


def test_service_ends_by_itself(rest: RestService) -> None:
    assert rest.process.end() == 0
    assert not [line for line in rest.process.stdout if "[info]" not in line]


SERVICE_WITH_A_DEFECT = """
import sys
from stddaq.web.history import History
from stddaq.web.service import main

History.add = lambda *_: 1 / 0
sys.exit(main(sys.argv[1:]))
"""


def test_service_exits_when_it_cannot_note_rates(deployment: Deployment, tmp_path: Path) -> None:
    program = (sys.executable, "-c", SERVICE_WITH_A_DEFECT, deployment.config_path)
    service = deployment.run(*program, "--port", 0, "--root", tmp_path, "--url", "ws://127.0.0.1:9")
    assert service.wait() == CRASHED, service.output
    assert "the task Memory._note_rates failed unexpectedly: the service exits" in service.output


def test_garbage_after_a_request_is_refused_without_output_on_standard_error(rest: RestService) -> None:
    """Without the workaround uvicorn raises an error and does not send the answer to the request."""
    post = b"POST /api/config/set?user=me HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
    for request, statuses in (
        # Both the host and the length of the chunk are wrong.
        (post + b"Host: elsewhere\r\n\r\nno length\r\n", (b"400", b"403")),
        (post + b"Host: 127.0.0.1\r\n\r\n2\r\n{}\r\nno length\r\n", (b"400",)),
        (b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n\x00\r\n\r\n", (b"404",)),
    ):
        with socket.create_connection(("127.0.0.1", urlsplit(rest.url).port or 0), timeout=60) as connection:
            connection.sendall(request)
            assert connection.recv(1000).split(b" ")[1] in statuses
    assert rest.client.get() == rest.deployment.config
    assert not [line for line in rest.process.stdout if "][error]" in line or not line.startswith("[")]
    assert rest.process.end() == 0
    assert rest.process.stderr == []


def test_every_output_line_is_a_log_line(rest: RestService) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(rest.url).port or 0)) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        assert b"400" in connection.recv(1000)
    rest.get("/api/config/get", user="me")
    assert rest.process.end() == 0
    assert len(rest.process.stdout) > 2
    assert all("][stddaq-rest][v" in line for line in rest.process.stdout)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--host", "0.0.0.0"), "expected a loopback address, because there is no token, got 0.0.0.0"),
        (("--host", "0.0.0.0", "--token-file", "{tmp}/absent"), "cannot be read"),
        (
            ("--token-file", "{tmp}/short"),
            "expected a token of at least 16 printable ASCII characters",
        ),
        (("--token-file", "{tmp}/open"), "expected mode 0600 or 0640, got access for others"),
        (("--root", "{tmp}/absent"), "expected an existing directory"),
        (("--port", "70000"), "--port: expected an integer from 0 to 65535"),
        (("--file-timeout", "0"), "expected a number of seconds"),
        (("{config}",), "expected one configuration for each detector, got"),
        (("{tmp}/absent.json",), "cannot be read"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    deployment: Deployment, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    for name, content, mode in (("short", "short", 0o600), ("open", TOKEN, 0o604)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(mode)
    given = [argument.format(tmp=tmp_path, config=deployment.config_path) for argument in arguments]
    process = deployment.start("stddaq-rest", *given, ready=None)
    assert process.wait() == 2
    assert len(process.stderr) == 1
    assert reason in process.stderr[0]


def test_a_port_in_use_is_refused(rest: RestService) -> None:
    second = rest.deployment.start("stddaq-rest", "--port", urlsplit(rest.url).port, ready=None)
    assert second.wait() == 2
    assert "Address already in use; end the program that has it, or choose another port" in second.stderr[0]


def test_other_addresses_need_a_token(start_rest: Callable[..., RestService], token_file: Path) -> None:
    rest = start_rest("--host", "0.0.0.0", "--token-file", token_file)
    port = urlsplit(rest.url).port
    url = f"http://127.0.0.1:{port}"
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": b"Bearer \xff\xfe"},
    ):
        for path in ("/api/config/get?user=me", "/openapi.json", "/absent"):
            answer = requests.get(url + path, headers=headers, timeout=20)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    with pytest.raises(NotAllowedError):
        ConfigClient(url, user="me", token="wrong").get()
    assert ConfigClient(url, user="me", token=TOKEN).get() == rest.deployment.config
    in_url = f"http://any:{TOKEN}@127.0.0.1:{port}"
    assert ConfigClient(in_url, user="me").get() == rest.deployment.config
    assert TOKEN not in ConfigClient(in_url, user="me").url
    # A client that takes only a URL sends its user name and password.
    assert requests.get(f"{in_url}/api/config/get?user=me", timeout=20).json() == rest.deployment.config
    command = Path(f"/proc/{rest.process.pid}/cmdline").read_bytes()
    assert TOKEN.encode() not in command
    assert not any(TOKEN in line for line in rest.process.stdout)


def test_the_token_may_come_from_the_environment(
    deployment: Deployment, start_rest: Callable[..., RestService]
) -> None:
    deployment.env["STDDAQ_TOKEN"] = TOKEN
    rest = start_rest()
    with pytest.raises(NotAllowedError):
        rest.client.get()
    assert ConfigClient(rest.url, user="me", token=TOKEN).get() == deployment.config


def test_other_web_sites_cannot_use_a_browser_to_set_a_configuration(rest: RestService) -> None:
    changed = json.dumps(rest.deployment.config | {"log_level": "error"})
    for header, value, status in (
        ("Origin", "https://elsewhere.example", 403),
        ("Origin", "null", 403),
        ("Host", "elsewhere.example", 403),
        ("Content-Type", "text/plain", 415),
        ("Content-Type", "application/x-www-form-urlencoded", 415),
    ):
        answer = rest.set(None, data=changed, headers={"Content-Type": "application/json", header: value})
        assert answer.status_code == status
        assert rest.config_on_disk() == rest.deployment.config


def test_a_body_that_is_too_long_is_refused(rest: RestService) -> None:
    body = b" " * (2**20 + 1)
    for data in (body, iter([body])):
        answer = rest.set(None, data=data, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413


def test_many_requests_at_once_are_all_answered(rest: RestService) -> None:
    connections = [
        http.client.HTTPConnection("127.0.0.1", urlsplit(rest.url).port, timeout=30) for _ in range(20)
    ]
    for connection in connections:
        connection.request("GET", f"/api/h5/get_metadata_status?filename={rest.root}/absent.h5")
    assert {connection.getresponse().status for connection in connections} == {404}
    for connection in connections:
        connection.close()


def test_unknown_paths_and_methods_are_answered_in_json(rest: RestService) -> None:
    assert rest.get("/api/absent").json() == {"detail": "Not Found"}
    answer = requests.delete(f"{rest.url}/api/config/get", timeout=20)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")
    assert answer.json() == {"detail": "Method Not Allowed"}
    with pytest.raises(InvalidStatus) as refused, connect(f"ws{rest.url.removeprefix('http')}/absent"):
        pass
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body or b"") == {"detail": "Not Found"}


def test_head_is_answered_as_get_without_the_body(rest: RestService) -> None:
    """Load balancers ask so whether a service is well."""
    for path in ("/", "/health", "/health/live", "/metrics", "/openapi.json"):
        answer = requests.head(rest.url + path, timeout=20)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["Content-Type"] == rest.get(path).headers["Content-Type"]
    assert requests.head(rest.url + "/api/run/stop", timeout=20).status_code == 405


def test_client_without_a_service_raises_unreachable(rest: RestService) -> None:
    rest.process.end()
    with pytest.raises(ConfigServiceUnreachableError, match="no answer of a configuration service"):
        rest.client.get()


@pytest.mark.slow
def test_the_simulator_is_started_stopped_and_triggered(rest: RestService) -> None:
    name = rest.deployment.detector_name
    with pytest.raises(
        RequestRefusedError, match="no simulator or replay of this detector is running"
    ) as refused:
        rest.client.simulator(name, "start")
    assert refused.value.status == 409
    start_source(rest.deployment, "simulate", "--trigger", "--rate", 100)
    with ImageReader(rest.deployment) as reader:
        assert rest.client.simulator(name, "start")["free_running"] is True
        reader.receive(5)
    assert rest.client.simulator(name, "stop")["free_running"] is False
    before = rest.client.simulator(name, "trigger", rate=50)
    assert (before["free_running"], before["rate"]) == (False, 50)
    wait_until(lambda: rest.client.simulator(name, "stop")["n_published"] > before["n_published"])
    assert rest.post(f"/api/test/{name}/simulator/start", rate=-1).status_code == 422
    # The paths of std_daq have the beamline and the type of the detector.
    assert rest.post("/api/test/tomcat/gigafrost/simulator/start").json()["free_running"] is True
    assert rest.post("/api/test/tomcat/gigafrost/simulator/stop").json()["free_running"] is False
    assert rest.post("/api/test/tomcat/pco/simulator/start").status_code == 404
    with pytest.raises(NotFoundError):
        rest.client.simulator("another", "start")
    assert rest.post(f"/api/test/{name}/simulator/explode").status_code == 422


@pytest.mark.slow
def test_connection_without_a_header_is_closed(rest: RestService) -> None:
    """One that sends a byte now and then would keep its place for ever."""
    address = ("127.0.0.1", urlsplit(rest.url).port or 0)
    request = b"GET /api/absent HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with socket.create_connection(address) as silent, socket.create_connection(address) as slow:
        slow.settimeout(HEADER_TIMEOUT_S + 20)
        slow.sendall(request)
        answer = b""
        while not answer.endswith(b'{"detail":"Not Found"}'):
            part = slow.recv(10_000)
            assert part
            answer += part
        slow.sendall(request[:10])
        silent.settimeout(HEADER_TIMEOUT_S + 20)
        for connection in (silent, slow):
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
    assert rest.client.get() == rest.deployment.config


def test_client_that_does_not_read_its_answer_is_given_up() -> None:
    with service._listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            option = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert option == service.UNREAD_TIMEOUT_S * 1000
