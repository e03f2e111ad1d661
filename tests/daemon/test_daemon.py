"""The end of daemons: signals and exit code; the fixture `deployment` checks for files left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes.deployment import Deployment, make_config
from support.processes.machine import assert_within


@pytest.mark.fault(
    fault="every daemon: {signal_number}",
    state="idle",
    promise="exit code 0 within 2 s; sockets and segments removed",
)
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_every_daemon_with_exit_code_0_within_2_s(
    deployment: Deployment, signal_number: signal.Signals
) -> None:
    driver, _ = deployment.start_driver("-m")
    services = [
        driver,
        *deployment.start_writers(),
        deployment.start("std_det_meta_writer_gf"),
        deployment.run(deployment.stddaq, "simulate", deployment.config_path, "--trigger", ready="ready"),
    ]
    assert deployment.segments()
    assert deployment.sockets()

    begin = time.monotonic()
    for service in services:
        service.send(signal_number)
    assert [service.wait() for service in services] == [0] * len(services)
    assert_within(time.monotonic() - begin, 2.0)
    assert deployment.segments() == []
    assert deployment.sockets() == []
    assert [service.stderr for service in services] == [[]] * len(services)


def test_second_signal_changes_nothing(deployment: Deployment) -> None:
    driver, _ = deployment.start_driver()
    driver.send(signal.SIGTERM)
    driver.send(signal.SIGINT)
    assert driver.wait() == 0
    assert driver.stderr == []


# A helper thread receives the signal, so that it does not interrupt the wait of the main thread. That is what
# a signal does that arrives just before the wait, after Python has checked for signals. The helper gets the
# GIL when that wait starts.
WAITING_DAEMON = """
import signal, sys, threading, zmq
from stddaq.daemon.arguments import ArgumentParser
from stddaq.daemon.main import run

def serve(config, args, stop):
    poller = zmq.Poller()
    poller.register(stop.fileno(), zmq.POLLIN)
    main = threading.get_ident()

    def send(number):
        while not sys._current_frames()[main].f_code.co_filename.endswith("zmq/sugar/poll.py"):
            pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))
        signal.pthread_kill(threading.get_ident(), number)

    signal.signal(signal.SIGUSR2, lambda *_: None)
    for number in (signal.SIGUSR2, signal.SIGTERM):
        threading.Thread(target=send, args=(number,), daemon=True).start()
        assert not stop.poll()
        assert poller.poll(60_000), "the signal did not end the wait"
        assert stop.poll() == (number == signal.SIGTERM)

parser = ArgumentParser("waiting", "Waits.")
parser.add_config()
sys.exit(run(parser, serve))
"""


def test_signal_that_arrives_when_a_wait_starts_ends_the_wait(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(make_config()))
    done = subprocess.run(
        [sys.executable, "-c", WAITING_DAEMON, config],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
