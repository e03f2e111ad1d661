"""The ends of a daemon that cannot end in order, in processes of their own."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes.deployment import make_config, wait_until

DAEMON = """
import os, sys, threading, time
from stddaq.daemon.arguments import ArgumentParser
from stddaq.daemon.log import ready
from stddaq.daemon.main import run

def serve(config, args, stop):
    ready("")
    {begin}
    while not stop.poll():
        time.sleep(0.01)
    {end}
    print("closed", flush=True)

parser = ArgumentParser("waiting", "Waits.")
parser.add_config()
sys.exit(run(parser, serve, closes_nothing={closes_nothing}))
"""
BLOCKED = "os.read(os.pipe()[0], 1)"
# As a parent after vfork: this thread cannot handle signals.
CLONE, CLONE_VFORK = {"x86_64": 56, "aarch64": 220}[platform.machine()], 0x4000
UNINTERRUPTIBLE = f"""import ctypes
    if ctypes.CDLL(None).syscall({CLONE}, {CLONE_VFORK | signal.SIGCHLD}, 0, 0, 0, 0) == 0:
        os.closerange(0, 1000)
        time.sleep(10)
        os._exit(0)"""
SLOW = """for _ in range(100):
        time.sleep(0.025)"""
BUSY = """end = time.monotonic() + 2.5
    while time.monotonic() < end:
        pass"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config()))
    return path


def lines_after_sigterm(
    config: Path,
    end: str,
    suspend_s: float = 0.0,
    begin: str = "",
    state: str = "",
    *,
    closes_nothing: bool = False,
) -> list[str]:
    """Run a daemon that begins and ends with this code, and return what it prints after SIGTERM.

    The signal is sent when the main thread is in `state`.
    """
    program = DAEMON.format(begin=begin, end=end, closes_nothing=closes_nothing)
    command = [sys.executable, "-c", program, str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert "ready" in daemon.stdout.readline()
        wait_until(lambda: state in Path(f"/proc/{daemon.pid}/stat").read_text().split()[2], what=state)
        daemon.send_signal(signal.SIGTERM)
        if suspend_s:
            daemon.send_signal(signal.SIGSTOP)
            time.sleep(suspend_s)
            daemon.send_signal(signal.SIGCONT)
        output, _ = daemon.communicate(timeout=30)
        assert daemon.returncode == 0
        return output.splitlines()


@pytest.mark.slow
def test_a_blocked_daemon_is_ended_and_says_so(config: Path) -> None:
    (line,) = lines_after_sigterm(config, BLOCKED)
    assert line.endswith("[warning] blocked for 1.4 s after a signal to end: exiting; files may be unclosed")


@pytest.mark.slow
def test_a_daemon_that_waits_uninterruptibly_is_ended_and_says_so(config: Path) -> None:
    (line,) = lines_after_sigterm(config, "", begin=UNINTERRUPTIBLE, state="D")
    assert "blocked for 1.4 s after a signal to end" in line


@pytest.mark.slow
@pytest.mark.parametrize("end", [SLOW, BUSY], ids=["slow", "busy"])
def test_a_daemon_that_takes_its_time_is_left_alone(config: Path, end: str) -> None:
    assert lines_after_sigterm(config, end) == ["closed"]


@pytest.mark.parametrize("end", [SLOW, BUSY], ids=["slow", "busy"])
def test_a_daemon_that_closes_nothing_has_a_limit(config: Path, end: str) -> None:
    (line,) = lines_after_sigterm(config, end, closes_nothing=True)
    assert line.endswith("[warning] not ended for 1.4 s after a signal to end: exiting")


def test_a_daemon_exits_when_one_of_its_threads_fails(config: Path) -> None:
    fail = 'threading.Thread(target=int, args=("x",), name="calculator", daemon=True).start()'
    program = DAEMON.format(begin=fail, end="", closes_nothing=False)
    daemon = subprocess.run(
        [sys.executable, "-c", program, str(config)], capture_output=True, text=True, timeout=60, check=False
    )
    assert daemon.returncode == 70, daemon
    assert "[error] the thread calculator failed unexpectedly: the service exits" in daemon.stdout
    assert "ValueError: invalid literal for int() with base 10: 'x'" in daemon.stdout
    assert "closed" not in daemon.stdout


@pytest.mark.slow
def test_a_daemon_that_was_suspended_has_the_same_time(config: Path) -> None:
    assert lines_after_sigterm(config, "time.sleep(0.5)", suspend_s=2.0) == ["closed"]
