"""Notifications to systemd, received by a socket in the place of its own."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.processes.deployment import (
    Deployment,
    Service,
    console_script,
    free_port,
    make_config,
    wait_until,
)

from stddaq.daemon.service_manager import MAX_STATUS, ServiceManager

WATCHDOG_S = 2.0


class Systemd:
    """systemd's side: a datagram socket that collects the notifications.

    Attributes:
        messages: each with the process id of its sender.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[tuple[int, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.setblocking(False)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a service with a watchdog."""
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}

    def receive(self) -> list[tuple[int, str]]:
        """Return all messages so far."""
        while True:
            try:
                message, ancillary, _, _ = self._socket.recvmsg(4096, 256)
            except BlockingIOError:
                return self.messages
            pid = int.from_bytes(ancillary[0][2][:4], sys.byteorder)
            self.messages.append((pid, message.decode()))

    def fill(self) -> None:
        """Send messages until the socket takes no more. The buffer of one sender may be full before that."""
        n_sent = 1
        while n_sent:
            n_sent = 0
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(BlockingIOError):
                sender.setblocking(False)
                while True:
                    sender.sendto(b"full", self.address)
                    n_sent += 1

    def assignments(self) -> list[str]:
        """Return the lines of all messages so far."""
        return [line for _, message in self.receive() for line in message.split("\n")]

    def wait_for(self, assignment: str, times: int = 1) -> None:
        def is_there() -> bool:
            return self.assignments().count(assignment) >= times

        wait_until(is_there, 30, f"{times} x {assignment}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    with tempfile.TemporaryDirectory(prefix="sd-", dir="/tmp") as directory:
        receiver = Systemd(f"{directory}/notify")
        yield receiver
        receiver.close()


# Each kind of main loop, with the arguments after the configuration.
LOOPS: dict[str, list[object]] = {
    "std_bsread_recv": ["tcp://127.0.0.1:9"],
    "std_data_compress_blosc2": ["-t", 1],
    "std_data_sync_module": [],
    "std_delay_filter": [],
    "std_det_driver": ["--port", 0],
    "std_det_meta_writer_pco": [],
    "std_det_writer": [0],
    "std_live_stream": ["tcp://127.0.0.1:0"],
    "std_data_sync_metadata": ["tcp://127.0.0.1:9"],
    "std_data_sync_stream": [],
    "std_metadata_stream": ["tcp://127.0.0.1:0"],
    "std_stream_receive": ["tcp://127.0.0.1:9", 0],
    "std_stream_send": ["tcp://127.0.0.1:0", 0],
    "std_udp_recv_gf": [0],
    "std_udp_tools_dump": [],
    "stddaq-rest": ["--port", 0],
    "stddaq simulate": ["--trigger"],
    # Before it publishes, its loop waits for subscribers.
    "stddaq simulate-udp": ["--wait-for-subscribers", 1, "--wait-timeout", 1000],
}
DETECTOR_TYPES = {"std_bsread_recv": "pco", "std_det_meta_writer_pco": "pco"}


@pytest.fixture
def start(
    make_deployment: Callable[..., Deployment], systemd: Systemd, tmp_path: Path
) -> Callable[[str], Service]:
    """Return a function that starts a service with the variables that systemd sets."""

    def start_service(name: str) -> Service:
        deployment = make_deployment(
            detector_type=DETECTOR_TYPES.get(name, "gigafrost"),
            n_modules=8,
            sender_sends_full_images=name == "std_data_sync_metadata",
            start_udp_port=free_port(),
            live_stream_configs={"tcp://127.0.0.1:0": {"type": "forward", "config": []}},
        )
        deployment.env.update(systemd.variables)
        program, *command = name.split()
        words = [*command, deployment.config_path, *LOOPS[name]]
        return deployment.run(console_script(program), *words, ready="ready", cwd=tmp_path)

    return start_service


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_every_service_notifies_systemd_of_its_start_its_loop_and_its_end(
    name: str, start: Callable[[str], Service], systemd: Systemd
) -> None:
    service = start(name)
    systemd.wait_for("WATCHDOG=1", times=4)
    assert systemd.messages[0][1].startswith("READY=1\nSTATUS=")
    assert "STOPPING=1" not in systemd.assignments()
    assert service.end() == 0
    assert systemd.assignments().count("READY=1") == systemd.assignments().count("STOPPING=1") == 1
    assert {pid for pid, _ in systemd.messages} == {service.pid}


def test_a_service_that_has_nothing_to_do_is_ready_before_it_ends(
    make_deployment: Callable[..., Deployment], systemd: Systemd
) -> None:
    deployment = make_deployment()
    deployment.env.update(systemd.variables)
    # The image has no part of this number.
    service = deployment.start("std_stream_send", "tcp://127.0.0.1:0", 100, ready=None)
    assert service.wait() == 0
    notified = [line for line in systemd.assignments() if line != "WATCHDOG=1"]
    assert notified == ["READY=1", "STATUS=nothing to do with this configuration", "STOPPING=1"]


@pytest.mark.fault(
    fault="a service: its main loop hangs while its other threads run",
    state="under systemd",
    promise="systemd's watchdog is fed no more, so that it restarts the service",
)
def test_loop_that_hangs_does_not_feed_the_watchdog(systemd: Systemd, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(make_config()))
    command = [sys.executable, "-c", HANGING_SERVICE, str(config)]
    service = Service(command, os.environ | systemd.variables, preloaded=False)
    service.wait_for_line("its loop hangs")
    n_messages = len(systemd.receive())
    service.wait_for_line("its thread works")
    assert len(systemd.receive()) == n_messages
    service.kill()


# Its thread runs for twice the time of the watchdog after its loop has hung.
HANGING_SERVICE = """
import sys, threading, time
from stddaq.daemon import log
from stddaq.daemon.arguments import ArgumentParser
from stddaq.daemon.main import run
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import StatisticsLine

def work():
    time.sleep(4)
    print("its thread works", flush=True)

def serve(config, args, stop):
    statistics = StatisticsLine(config, Registry(config.detector_name, "hanging"), lambda period: {})
    log.ready("at %s", "once")
    for _ in range(10):
        statistics.write_if_due()
    threading.Thread(target=work, daemon=True).start()
    print("its loop hangs", flush=True)
    time.sleep(60)

parser = ArgumentParser("hanging", "Hangs.")
parser.add_config()
sys.exit(run(parser, serve))
"""


@pytest.mark.slow
def test_supervisor_notifies_systemd_and_its_services_do_not(
    deployment: Deployment, systemd: Systemd
) -> None:
    deployment.env.update(systemd.variables)
    command = (deployment.stddaq, "up", deployment.config_path, "--port", free_port())
    supervisor = Service([str(word) for word in command], deployment.env, preloaded=False)
    try:
        systemd.wait_for("WATCHDOG=1", times=3)
    finally:
        assert supervisor.end() == 0
    assert systemd.assignments().count("READY=1") == systemd.assignments().count("STOPPING=1") == 1
    assert {pid for pid, _ in systemd.messages} == {supervisor.pid}


def test_refused_service_is_not_ready(deployment: Deployment, systemd: Systemd) -> None:
    deployment.env.update(systemd.variables)
    service = deployment.start("std_det_meta_writer_pco", ready=None)
    assert service.wait() == 2
    assert systemd.receive() == []


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_watchdog_is_fed_four_times_in_its_period(systemd: Systemd) -> None:
    clock = Clock()
    manager = ServiceManager(systemd.variables, clock)
    manager.alive()
    assert systemd.receive() == []
    manager.ready("now")
    for _ in range(128):
        clock.now += WATCHDOG_S / 128
        manager.alive()
    assert systemd.assignments().count("WATCHDOG=1") == 1 + 4


def test_notification_that_systemd_does_not_take_is_sent_later_without_waiting(systemd: Systemd) -> None:
    clock = Clock()
    manager = ServiceManager({"NOTIFY_SOCKET": systemd.address}, clock)
    systemd.fill()
    manager.ready("full")
    assert "READY=1" not in systemd.assignments()
    clock.now += 1.0
    manager.alive()
    manager.alive()
    assert systemd.assignments().count("READY=1") == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"WATCHDOG_USEC": ""}, ["READY=1", "STATUS=now"]),
        ({"WATCHDOG_USEC": "0"}, ["READY=1", "STATUS=now"]),
        ({"WATCHDOG_USEC": "soon"}, ["READY=1", "STATUS=now"]),
        ({"WATCHDOG_PID": "1"}, ["READY=1", "STATUS=now"]),
        ({"WATCHDOG_PID": str(os.getpid())}, ["READY=1", "STATUS=now", "WATCHDOG=1"]),
        ({"NOTIFY_SOCKET": ""}, []),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, []),
        ({"NOTIFY_SOCKET": "/nowhere/notify"}, []),
    ],
)
def test_variables_of_systemd(changes: dict[str, str], expected: list[str], systemd: Systemd) -> None:
    manager = ServiceManager(systemd.variables | changes, Clock())
    manager.ready("now")
    manager.alive()
    assert systemd.assignments() == expected


def test_abstract_address() -> None:
    systemd = Systemd(f"@stddaq-{uuid.uuid4().hex}")
    ServiceManager({"NOTIFY_SOCKET": systemd.address}).ready("now")
    assert systemd.assignments() == ["READY=1", "STATUS=now"]
    systemd.close()


def test_status_is_one_short_line(systemd: Systemd) -> None:
    ServiceManager({"NOTIFY_SOCKET": systemd.address}).ready("one\nSTOPPING=1" + 1000 * "x")
    ready, status = systemd.assignments()
    assert (ready, len(status)) == ("READY=1", len("STATUS=") + MAX_STATUS)
