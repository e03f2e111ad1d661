"""Services whose output is not read, paused or closed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes.deployment import Deployment, console_script, free_port
from support.processes.machine import assert_within
from support.processes.recording import MakeRig, Rig, assert_saved, images_of

from stddaq.client import DriverClient
from stddaq.daemon.output import LineOutput


def report(n_dropped: int) -> str:
    return f"dropped {n_dropped}"


def test_lines_that_are_not_read_are_dropped_and_counted() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream, os.fdopen(read, "rb", buffering=0) as pipe:
        output = LineOutput(stream)
        for i in range(20_000):
            output.write(f"line {i}", report)
        assert output.n_dropped > 0
        assert not fcntl.fcntl(write, fcntl.F_GETFL) & os.O_NONBLOCK, (
            "the flag is shared with other processes"
        )
        lines = pipe.read(2**20)
        output.write("last", report)
        lines += pipe.read(2**20)
    found = lines.decode().splitlines()
    n_dropped = output.n_dropped
    assert found == [*(f"line {i}" for i in range(20_000 - n_dropped)), f"dropped {n_dropped}", "last"]


def test_line_longer_than_a_pipe_is_completed_before_the_next() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream, os.fdopen(read, "rb", buffering=0) as pipe:
        output = LineOutput(stream)
        output.write("x" * 100_000, report)
        begin = pipe.read(2**20)
        output.write("next", report)
        assert (begin + pipe.read(2**20)).decode() == "x" * 100_000 + "\nnext\n"


def test_socket_as_output_does_not_block() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, os.fdopen(os.dup(ours.fileno()), "w") as stream:
        output = LineOutput(stream)
        for _ in range(20_000):
            output.write("x" * 50, report)
        assert output.n_dropped > 0
        assert theirs.recv(51) == b"x" * 50 + b"\n"


@pytest.mark.fault(
    fault="log lines of the driver, a writer or `stddaq up` are not read any more",
    state="idle",
    promise="the service keeps running; dropped lines are counted and reported; SIGTERM ends it within 2 s",
)
@pytest.mark.parametrize("service", ["driver", "writer", "up"])
def test_full_log_pipe_stops_no_service(
    make_deployment: Callable[..., Deployment], directory: Path, service: str
) -> None:
    deployment, port = make_deployment(number_of_writers=1), free_port()
    driver = ["std_det_driver", str(deployment.config_path), "-p", str(port)]
    writer = ["std_det_writer", str(deployment.config_path), "0"]
    up = ["stddaq", "up", str(deployment.config_path), "--port", str(port)]
    command, *others = {"driver": (driver, writer), "writer": (writer, driver), "up": (up,)}[service]
    command[0] = console_script(command[0])
    for name, *args in others:
        deployment.run(console_script(name), *args, ready="ready")
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    with subprocess.Popen(command, env=deployment.env, stdout=write, stderr=write) as process:
        try:
            ready = b""
            while (b"ready" if service == "writer" else b"listening on ws://") not in ready:
                ready += os.read(read, 4096)
            # Another process fills the shared pipe.
            full = os.open(f"/proc/self/fd/{write}", os.O_WRONLY | os.O_NONBLOCK)
            with contextlib.suppress(BlockingIOError):
                while os.write(full, b"\n"):
                    pass
            os.close(full)
            # Every run is logged.
            with Rig(deployment, directory) as rig:
                rig.client = rig.enter(DriverClient(f"ws://127.0.0.1:{port}"))
                for i in range(3):
                    images = images_of(range(20))
                    assert_saved(rig.record(images, file_prefix=f"run{i}_"), images)
            if service != "up":
                lines = b""
                while b"log lines were dropped" not in lines:
                    lines += os.read(read, 4096)
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert_within(time.monotonic() - begin, 8.0 if service == "up" else 2.0)
        finally:
            process.kill()
            os.close(read)
            os.close(write)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_service_with_closed_streams_works(make_rig: MakeRig, closed: str) -> None:
    rig = make_rig(writers=False, number_of_writers=1)
    deployment = rig.deployment
    command = f"exec {console_script('std_det_writer')} {deployment.config_path} 0 {closed}"
    with subprocess.Popen(
        ["/bin/sh", "-c", command], env=deployment.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        rig.driver.wait_for_line("writer 0 connected")
        images = images_of(range(20))
        assert_saved(rig.record(images), images)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
