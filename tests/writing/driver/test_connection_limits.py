"""The limit of connections to the driver."""

from __future__ import annotations

import socket

import pytest
from support.processes.deployment import Deployment, console_script
from websockets.sync.client import connect


@pytest.mark.fault(
    fault="600 connections without a handshake, more than the driver has descriptors",
    state="idle",
    promise="driver and writers keep running; a client can connect and start a run",
)
def test_half_open_connections_do_not_use_up_the_descriptors(deployment: Deployment) -> None:
    command = f"ulimit -n 300; exec {console_script('std_det_driver')} {deployment.config_path} -p 0"
    driver = deployment.run("/bin/sh", "-c", command)
    url = driver.wait_for_line(r"ready: listening on (ws://\S+)")[1]
    host, _, text = url.removeprefix("ws://").rpartition(":")
    port = int(text)
    connections = []
    try:
        for _ in range(600):
            connection = socket.create_connection((host, port), 5)
            connections.append(connection)
        writers = deployment.start_writers()
        for i in range(len(writers)):
            driver.wait_for_line(f"writer {i} connected")
        with connect(url, open_timeout=8) as client:
            assert "status" in str(client.recv(5))
    finally:
        for connection in connections:
            connection.close()
    assert driver.returncode is None
    assert any("connections were closed because there are too many" in line for line in driver.stdout)
