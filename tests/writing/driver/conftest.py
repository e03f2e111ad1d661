"""Fixtures of the driver's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
from support.peers.driver_bench import Bench, OnBench


@pytest.fixture
def on_bench(tmp_path: Path) -> OnBench:
    """Return a function that runs a coroutine function on a bench."""

    def run(test: Callable[[Bench], Awaitable[None]]) -> None:
        async def limited() -> None:
            await asyncio.wait_for(cast(Coroutine[Any, Any, None], test(Bench(tmp_path))), 60)

        asyncio.run(limited())

    return run
