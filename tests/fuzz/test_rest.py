"""No request makes the HTTP service fail."""

from __future__ import annotations

import copy
import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from support.processes.deployment import Deployment
from support.processes.sources import start_source
from support.processes.web import RestService
from support.tools.fuzzing import JSON_VALUES, Health, deeply_nested, examples, mutated

from stddaq.config import DetectorConfig
from stddaq.config.model import KEYS

# Its answer lasts as long as the connection.
ENDLESS = {"/api/run/events"}


@pytest.mark.slow
def test_no_request_makes_the_service_fail_whether_it_fits_the_schema_or_not(
    deployment: Deployment, tmp_path: Path
) -> None:
    rest = RestService.start(deployment, tmp_path / "files")
    start_source(deployment, "simulate", "--trigger")
    schema = schemathesis.openapi.from_url(f"{rest.url}/openapi.json")
    n_operations = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        n_operations += 1
        if operation.path in ENDLESS:
            continue
        modes = [schemathesis.GenerationMode.POSITIVE]
        if operation.body or list(operation.iter_parameters()):
            modes.append(schemathesis.GenerationMode.NEGATIVE)
        for mode in modes:
            _try_all(operation.as_strategy(generation_mode=mode))
    assert n_operations >= 30
    assert not any("unexpected" in line for line in rest.process.stdout)
    assert rest.client.get()


def _try_all(cases: Any) -> None:
    @examples(10)
    @given(case=cases)
    def answered(case: Any) -> None:
        answer = case.call()
        # Neither the driver nor std_preview is running.
        assert answer.status_code < 500 or answer.status_code in (502, 503), (
            case.as_curl_command(),
            answer.text,
        )
        metrics_text = answer.status_code == 200 and case.operation.path == "/metrics"
        expected = "text/plain" if metrics_text else "application/json"
        assert answer.headers["content-type"][0].partition(";")[0] == expected
        if answer.status_code >= 400:
            assert isinstance(answer.json()["detail"], str | list)

    answered()


def bodies(config: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Generate configurations with arbitrary values, almost JSON, and arbitrary bytes."""

    @st.composite
    def almost_valid(draw: st.DrawFn) -> bytes:
        content = copy.deepcopy(config)
        for _ in range(draw(st.integers(1, 3))):
            key = draw(st.sampled_from([*KEYS, "services"]) | st.text(max_size=10))
            content[key] = draw(JSON_VALUES)
        return json.dumps(content).encode()

    return st.one_of(
        almost_valid(),
        mutated(almost_valid()),
        st.binary(max_size=40),
        st.sampled_from([90, 110, 990, 100_000]).map(lambda n: deeply_nested(n).encode()),
    )


def test_posted_configuration_is_stored_whole_or_refused_with_all_its_mistakes(
    deployment: Deployment, tmp_path: Path
) -> None:
    rest = RestService.start(deployment, tmp_path / "files")
    health = Health([rest.process])

    @examples(60)
    @given(bodies(deployment.config))
    def set_or_refused(body: bytes) -> None:
        before = deployment.config_path.read_bytes()
        answer = rest.set(None, data=body, headers={"Content-Type": "application/json"})
        # 403: `services` that differ from those of the file.
        assert answer.status_code in (200, 400, 403, 422), (body, answer.text)
        if answer.status_code == 200:
            assert DetectorConfig.load(deployment.config_path) == DetectorConfig.parse(json.loads(body))
        else:
            detail = answer.json()["detail"]
            mistakes = [detail] if isinstance(detail, str) else detail
            assert mistakes
            assert all(isinstance(mistake, str) for mistake in mistakes)
            assert deployment.config_path.read_bytes() == before
        health.check()

    set_or_refused()


REQUESTS = st.sampled_from(
    [
        b"GET /api/config/get?user=me HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /api/config/set?user=me HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}",
        b"POST /api/config/set?user=me HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ]
)


def test_bytes_that_are_almost_http_are_answered_or_the_connection_is_closed(
    deployment: Deployment, tmp_path: Path
) -> None:
    rest = RestService.start(deployment, tmp_path / "files")
    health = Health([rest.process])
    address = ("127.0.0.1", urlsplit(rest.url).port or 0)

    @examples(60)
    @given(mutated(REQUESTS) | st.binary(max_size=100))
    def answered_or_closed(content: bytes) -> None:
        with socket.create_connection(address, timeout=60) as connection:
            with suppress(OSError):
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
            try:
                answer = connection.recv(1000)
            except ConnectionResetError:
                answer = b""
            assert not answer.startswith(b"HTTP/1.1 5"), answer
        health.check()

    answered_or_closed()
    assert rest.client.get() == deployment.config
