"""Clients in a reference cycle that is collected, or used after a fork, each in its own process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.processes.deployment import free_port
from support.processes.real_driver import RealDriver

IN_A_CYCLE = """
import gc
{make}

class Holder:
    pass

for _ in range(3):
    holder = Holder()
    holder.client, holder.itself = client(), holder
    del holder
    gc.collect()
print("end")
"""
AFTER_A_FORK = """
import os
from stddaq.client import ForkedClientError
{make}
made = client()
pid = os.fork()
if pid == 0:
    try:
        {use}
    except ForkedClientError:
        made.close()
        os._exit(0)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
made.close()
"""
SIMULATOR = """
from stddaq.client.simulator import SimulatorClient, SimulatorError
def client():
    made = SimulatorClient("nothing", timeout=0.05)
    try:
        made.status()
    except SimulatorError:
        pass
    return made
"""
CAMERA = """
from stddaq_ophyd.camera import SimulatedCamera
def client():
    made = SimulatedCamera("nothing", name="camera")
    made._simulator._connected()
    return made
"""
LIVE_STREAM = """
from stddaq.client import LiveStreamClient
def client():
    return LiveStreamClient("tcp://127.0.0.1:{port}").connect()
"""
DRIVER = """
from stddaq.client import DriverClient
def client():
    return DriverClient("{url}").connect()
"""

ASYNC_AFTER_A_FORK = """
import asyncio, os
from stddaq.client import AsyncDriverClient, ForkedClientError

loop = asyncio.new_event_loop()
driver = loop.run_until_complete(AsyncDriverClient("{url}").connect())

async def uses():
    failed = 0
    for use in (driver.status, driver.stop, driver.last_result, driver.connect):
        try:
            await use()
            failed += 1
        except ForkedClientError:
            pass
    for use in (driver.watch, driver.watch_run, lambda: driver.latest):
        try:
            use()
            failed += 1
        except ForkedClientError:
            pass
    await driver.close()
    return failed

pid = os.fork()
if pid == 0:
    os._exit(asyncio.run(uses()))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(loop.run_until_complete(driver.status()).status)
loop.run_until_complete(driver.close())
loop.close()
"""


def run(program: str) -> str:
    """Run a program and return what it prints. Fail when it hangs."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.parametrize("make", [SIMULATOR, CAMERA, LIVE_STREAM], ids=["simulator", "camera", "live stream"])
def test_client_in_a_reference_cycle_does_not_hang(make: str) -> None:
    assert run(IN_A_CYCLE.format(make=make.format(port=free_port()))) == "end\n"


def test_driver_client_in_a_reference_cycle_does_not_hang(real_driver: RealDriver) -> None:
    assert run(IN_A_CYCLE.format(make=DRIVER.format(url=real_driver.url))) == "end\n"


@pytest.mark.parametrize(
    ("make", "use"),
    [(SIMULATOR, "made.status()"), (LIVE_STREAM, "made.receive()")],
    ids=["simulator", "live stream"],
)
def test_client_refuses_to_be_used_after_a_fork(make: str, use: str) -> None:
    assert run(AFTER_A_FORK.format(make=make.format(port=free_port()), use=use)) == "0\n"


def test_driver_client_refuses_to_be_used_after_a_fork(real_driver: RealDriver) -> None:
    program = AFTER_A_FORK.format(make=DRIVER.format(url=real_driver.url), use="made.status()")
    assert run(program + "print('closed')") == "0\nclosed\n"


def test_async_driver_client_refuses_to_be_used_after_a_fork(real_driver: RealDriver) -> None:
    assert run(ASYNC_AFTER_A_FORK.format(url=real_driver.url)) == "0\nidle\n"
