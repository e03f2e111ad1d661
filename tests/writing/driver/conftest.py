"""Fixtures of the driver's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
from support.peers.driver_bench import Bench, OnBench

from stddaq.writing.driver import status


@pytest.fixture
def on_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnBench:
    """Return a function that runs a coroutine function on a bench.

    Its clients receive every change, and nothing is repeated: on a busy machine a start takes so long that
    they would receive `idle` once more before it.
    """
    monkeypatch.setattr(status, "STATUS_PERIOD_S", 1000.0)

    def run(test: Callable[[Bench], Awaitable[None]]) -> None:
        async def limited() -> None:
            await asyncio.wait_for(cast(Coroutine[Any, Any, None], test(Bench(tmp_path))), 60)

        asyncio.run(limited())

    return run
