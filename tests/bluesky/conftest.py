"""Fixtures of a RunEngine and of detector devices over real daemons."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bluesky import RunEngine
from ophyd_async.core import init_devices
from support.assertions.plans import Documents, PointCamera
from support.processes.recording import MakeRig

from stddaq_ophyd import StdDaqDetector
from stddaq_ophyd.async_detector import AsyncStdDaqDetector


@pytest.fixture
def engine() -> Iterator[RunEngine]:
    """Return a RunEngine without signal handlers."""
    made = RunEngine({}, context_managers=[])
    yield made
    if made.state != "idle":
        made.halt()
    made.loop.call_soon_threadsafe(made.loop.stop)
    made._th.join()
    made.loop.close()


@pytest.fixture
def documents(engine: RunEngine) -> Documents:
    """Return the documents that `engine` emits."""
    found = Documents()
    engine.subscribe(found)
    return found


@pytest.fixture
def make_detector(make_rig: MakeRig) -> Iterator[Callable[..., tuple[StdDaqDetector, PointCamera]]]:
    """Return a function that makes a detector with its camera, over a new rig with the options `rig`."""
    made: list[StdDaqDetector] = []

    def make(rig: dict[str, Any] | None = None, **options: Any) -> tuple[StdDaqDetector, PointCamera]:
        daemons = make_rig(**(rig or {}))
        daemons.wait_for_subscription()
        camera = PointCamera(daemons)
        options = {"name": "det", "paths": daemons.directory, "trigger": camera} | options
        made.append(StdDaqDetector(daemons.url, **options))
        return made[-1], camera

    yield make
    for detector in made:
        detector.unstage().wait(60)


@pytest.fixture
def make_async_detector(
    make_rig: MakeRig, engine: RunEngine
) -> Iterator[Callable[..., tuple[AsyncStdDaqDetector, PointCamera]]]:
    """Return what `make_detector` returns, for ophyd-async."""
    made: list[AsyncStdDaqDetector] = []

    def make(rig: dict[str, Any] | None = None, **options: Any) -> tuple[AsyncStdDaqDetector, PointCamera]:
        daemons = make_rig(**(rig or {}))
        daemons.wait_for_subscription()
        camera = PointCamera(daemons)
        options = {"paths": daemons.directory, "trigger": camera} | options
        with init_devices():
            det = AsyncStdDaqDetector(daemons.url, **options)
        made.append(det)
        return det, camera

    yield make
    for detector in made:
        asyncio.run_coroutine_threadsafe(detector.disconnect(), engine.loop).result(30)
