"""The limit of connections to the driver."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys
from pathlib import Path

import pytest
from support.processes.deployment import Deployment, Service, console_script, wait_until
from websockets.sync.client import connect

# In /proc/net/tcp, the timer of an idle connection.
KEEPALIVE_TIMER = "02"
# That of a connection whose receiver does not read.
ZERO_WINDOW_TIMER = "04"


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
        # The first reach the limit; the others arrive at once, so that many wait to be accepted.
        for _ in range(70):
            connections.append(socket.create_connection((host, port), timeout=20))
        for _ in range(530):
            connection = socket.socket()
            connections.append(connection)
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                connection.connect((host, port))
        writers = deployment.start_writers()
        for i in range(len(writers)):
            driver.wait_for_line(f"writer {i} connected")
        with connect(url, open_timeout=60) as client:
            assert "status" in str(client.recv(60))
    finally:
        for connection in connections:
            connection.close()
    assert driver.returncode is None
    assert driver.stderr == []
    driver.wait_for_line("connections were closed because there are too many")


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


# The driver, with times of seconds instead of minutes.
IMPATIENT_DRIVER = """
import sys
from stddaq.writing.driver import connection_limits as limits
limits.KEEPALIVE_S, limits.KEEPALIVE_PERIOD_S, limits.KEEPALIVE_PROBES = 1, 1, 1
limits.UNCONFIRMED_S, limits.UNCONFIRMED_PERIOD_S = 2, 0.2
from stddaq.writing.driver.service import main
sys.exit(main())
"""
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SO_ATTACH_FILTER = 26


def vanish(connection: socket.socket) -> None:
    """Let the kernel drop all packets to a connection unconfirmed, as when its host is switched off."""
    # A filter of one instruction, which returns that no byte of a packet is accepted.
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    fprog = struct.pack("@HP", 1, ctypes.addressof(program))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def open_client(driver: Service, port: int) -> tuple[socket.socket, str]:
    """Connect a client with a small buffer. Return its socket, and its name in the driver's log."""
    n_lines = len(driver.stdout)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(HANDSHAKE)
    return client, driver.wait_for_line(r"client (\S+) connected", start=n_lines)[1]


@pytest.mark.slow
def test_a_client_whose_host_has_vanished_is_disconnected_and_one_that_does_not_read_is_not(
    deployment: Deployment,
) -> None:
    """Statuses are sent ten times a second, and without an answer the kernel sends no keepalive probes."""
    driver = deployment.run(sys.executable, "-c", IMPATIENT_DRIVER, deployment.config_path, "-p", 0)
    port = int(driver.wait_for_line(r"ready: listening on ws://\S+:(\d+)")[1])
    silent, silent_name = open_client(driver, port)
    lost, lost_name = open_client(driver, port)
    with silent, lost:
        silent_port = silent.getsockname()[1]
        wait_until(lambda: timer_of(port, silent_port) == ZERO_WINDOW_TIMER, 60.0, "a full buffer")
        vanish(lost)
        # This takes longer than the limit.
        driver.wait_for_line(f"client {lost_name} disconnected", timeout=60.0)
        assert not [line for line in driver.stdout if f"client {silent_name} disconnected" in line]
        silent.settimeout(10.0)
        received = b""
        while received.count(b'"idle"') < 100:
            received += silent.recv(65536)
