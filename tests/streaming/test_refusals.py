"""Arguments and settings with which `std_live_stream` refuses to start."""

from __future__ import annotations

import socket

import pytest
from support.processes.deployment import Deployment
from support.processes.live_streams import FORWARD
from support.processes.sources import refusal

from stddaq.streaming.service import main

ADDRESS = "tcp://127.0.0.1:20000"


@pytest.fixture
def configured(deployment: Deployment) -> Deployment:
    deployment.write_config(live_stream_configs={ADDRESS: FORWARD})
    return deployment


def test_address_that_is_not_in_the_configuration_is_refused(
    configured: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, main, configured.config_path, "tcp://127.0.0.1:20001")
    assert str(configured.config_path) in said
    assert '"tcp://127.0.0.1:20001"' in said
    assert ADDRESS in said


def test_unknown_type_is_refused(configured: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, main, configured.config_path, ADDRESS, "-t", "jpeg")
    assert "jpeg" in said
    assert "array-1.0" in said
    assert "bsread" in said


def test_impossible_setting_is_refused(configured: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    configured.write_config(live_stream_configs={ADDRESS: {"type": "batch", "config": [3, 2]}})
    assert "1 <= Y <= N" in refusal(capsys, main, configured.config_path, ADDRESS)


@pytest.mark.parametrize(
    "address",
    ["ipc:///tmp/x", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "tcp://:1", "tcp://127.0.0.1:70000", "", "x"],
)
def test_address_that_is_not_tcp_host_port_is_refused(
    configured: Deployment, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configured.write_config(live_stream_configs={address: FORWARD})
    assert "expected tcp://HOST:PORT, got" in refusal(capsys, main, configured.config_path, address)


def test_address_in_use_is_refused(configured: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        configured.write_config(live_stream_configs={address: FORWARD})
        said = refusal(capsys, main, configured.config_path, address)
    assert "cannot be bound" in said
    assert address in said
