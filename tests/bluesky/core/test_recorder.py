"""The count of images that documents may announce, which ophyd-async waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from stddaq_ophyd.async_mock import MockAcquisition
from stddaq_ophyd.core.driver_run import OnProgress
from stddaq_ophyd.core.errors import AcquisitionError, AcquisitionStoppedError
from stddaq_ophyd.core.paths import PathInfo
from stddaq_ophyd.core.recorder import Recorder
from stddaq_ophyd.core.run_counts import RunCounts
from stddaq_ophyd.core.settings import Settings

SETTINGS = Settings(images_per_event=4, timeout=10.0)


class SlowAcquisition(MockAcquisition):
    """Reports each number of images twice, and completes a point when the test says so."""

    def __init__(self) -> None:
        super().__init__("ws://127.0.0.1:1", "det", PathInfo(Path("/"), "", Path("/")), 1)
        self.go = asyncio.Event()
        self.error_to_raise: Exception | None = None

    async def take_point(
        self,
        settings: Settings,
        on_progress: OnProgress = lambda n, counts: None,
        on_fired: Callable[[], None] = lambda: None,
    ) -> RunCounts:
        if self.error_to_raise is not None:
            raise self.error_to_raise
        counts = await super().take_point(settings, on_progress, on_fired)
        for n in (1, 1, 2, 2, 4):
            on_progress(n, counts)
        await self.go.wait()
        return counts


def run(test: Callable[[SlowAcquisition, Recorder, list[int]], Coroutine[Any, Any, None]]) -> None:
    """Run `test` with a recorder and the counts that it reports."""

    async def main() -> None:
        acquisition, seen = SlowAcquisition(), list[int]()
        recorder = Recorder(acquisition, seen.append)
        await test(acquisition, recorder, seen)
        await recorder.close()

    asyncio.run(main())


def test_an_image_counts_once_and_the_last_one_when_all_are_readable():
    async def test(acquisition: SlowAcquisition, recorder: Recorder, seen: list[int]) -> None:
        await recorder.start(1, SETTINGS)
        recorder.release(1)
        assert seen[-1] == 3
        acquisition.go.set()
        await recorder.finish()
        assert seen == [3, 4]

    run(test)


def test_images_that_come_before_they_are_asked_for_count_then():
    async def test(acquisition: SlowAcquisition, recorder: Recorder, seen: list[int]) -> None:
        acquisition.go.set()
        await recorder.start(6, SETTINGS)
        await recorder.finish()
        assert seen == []
        recorder.release(2)
        recorder.release(4)
        assert seen == [8, 24]

    run(test)


def test_a_point_that_ended_counts_no_more():
    async def test(acquisition: SlowAcquisition, recorder: Recorder, seen: list[int]) -> None:
        await recorder.start(1, SETTINGS)
        recorder.release(1)
        task = recorder.task
        await recorder.end()
        assert task is not None
        assert task.cancelled()
        acquisition.go.set()
        await recorder.start(1, SETTINGS)
        recorder.release(1)
        await recorder.finish()
        assert seen == [3, 0, 4]

    run(test)


def test_what_cannot_start_is_raised_and_what_is_ended_is_called_stopped():
    async def test(acquisition: SlowAcquisition, recorder: Recorder, seen: list[int]) -> None:
        acquisition.error_to_raise = AcquisitionError("no camera")
        with pytest.raises(AcquisitionError, match="no camera"):
            await recorder.start(1, SETTINGS)
        acquisition.error_to_raise = None
        await recorder.start(1, SETTINGS)
        waiting = asyncio.create_task(recorder.finish())
        await asyncio.sleep(0)
        await recorder.end()
        with pytest.raises(AcquisitionStoppedError):
            await waiting

    run(test)
