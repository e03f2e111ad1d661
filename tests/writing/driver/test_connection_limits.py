"""The limit of connections to the driver."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.processes.deployment import Deployment, console_script, wait_until
from websockets.sync.client import connect

# In /proc/net/tcp, the timer of an idle connection.
KEEPALIVE_TIMER = "02"


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


def timer_of(port: int, peer_port: int) -> str:
    """Return the timer of the local connection between these ports, as /proc/net/tcp shows it."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, _, _, timer = line.split()[1:6]
        if (local, remote) == (f"0100007F:{port:04X}", f"0100007F:{peer_port:04X}"):
            return timer.partition(":")[0]
    return ""


def test_the_keepalive_of_tcp_watches_a_client_that_sends_nothing(deployment: Deployment) -> None:
    _, url = deployment.start_driver()
    port = int(url.rpartition(":")[2])
    with connect(url, ping_interval=None) as client:
        peer_port = client.socket.getsockname()[1]
        wait_until(lambda: timer_of(port, peer_port) == KEEPALIVE_TIMER, what="the keepalive timer")
