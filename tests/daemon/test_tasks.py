"""Tasks that fail while nothing awaits them."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest

from stddaq.daemon.forced_exit import CRASHED
from stddaq.daemon.tasks import start_logged_task

SERVICE = """
import asyncio
from stddaq.daemon import log
from stddaq.daemon.tasks import start_lasting_task

async def calculate():
    int("x")

async def cancelled():
    await asyncio.Event().wait()

async def serve():
    start_lasting_task(cancelled()).cancel()
    await asyncio.sleep(0)
    print("served", flush=True)
    # As an attribute of the service would.
    task = start_lasting_task(calculate())
    await asyncio.Event().wait()

log.set_up("service", "info")
asyncio.run(asyncio.wait_for(serve(), 50))
"""


def test_a_service_exits_when_a_task_fails_that_lasts_as_long() -> None:
    service = subprocess.run(
        [sys.executable, "-c", SERVICE], capture_output=True, text=True, timeout=60, check=False
    )
    assert service.returncode == CRASHED, service
    assert service.stdout.startswith("served\n")
    assert "[error] the task calculate failed unexpectedly: the service exits" in service.stdout
    assert "ValueError: invalid literal for int() with base 10: 'x'" in service.stdout


def test_a_task_that_fails_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def calculate() -> None:
        int("x")

    async def serve() -> None:
        task = start_logged_task(calculate())
        await asyncio.wait([task])
        await asyncio.sleep(0)
        (record,) = caplog.records
        assert "calculate failed unexpectedly" in record.message
        assert record.exc_info
        assert record.exc_info[1] is task.exception()

    with caplog.at_level(logging.ERROR):
        asyncio.run(serve())
