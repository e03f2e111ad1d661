"""The ophyd-async device in mock mode: plans work without a driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import preprocessors as bpp
from bluesky.plans import count
from ophyd_async.core import TriggerInfo, init_devices, soft_command, soft_signal_rw
from ophyd_async.testing import assert_emitted
from support.assertions.plans import Documents

from stddaq_ophyd.async_detector import AsyncStdDaqDetector
from stddaq_ophyd.plans import fly


@pytest.fixture
def det(engine: RunEngine, tmp_path: Path) -> AsyncStdDaqDetector:
    """Return a device in mock mode, whose camera must not be triggered."""

    async def fire() -> None:
        raise AssertionError

    with init_devices(mock=True):
        det = AsyncStdDaqDetector("ws://127.0.0.1:1", tmp_path, trigger=soft_command(fire))
    return det


def test_a_count_emits_its_documents(engine: RunEngine, documents: Documents, det: AsyncStdDaqDetector):
    engine(count([det], 3))
    assert_emitted(
        documents.by_name, start=1, descriptor=1, stream_resource=1, stream_datum=3, event=3, stop=1
    )
    assert documents["descriptor"][0]["data_keys"]["det"]["shape"] == [1, 16, 24]


def test_points_of_several_images_and_streams_count_from_zero(
    engine: RunEngine, documents: Documents, det: AsyncStdDaqDetector
):
    @bpp.stage_decorator([det])
    @bpp.run_decorator()
    def plan() -> Any:
        yield from bps.prepare(det, TriggerInfo(collections_per_event=4), wait=True)
        for stream in "aab":
            yield from bps.trigger_and_read([det], name=stream)

    engine(plan())
    assert [doc["indices"]["stop"] for doc in documents["stream_datum"]] == [1, 2, 1]


def test_a_flight_emits_its_documents(engine: RunEngine, documents: Documents, det: AsyncStdDaqDetector):
    engine(fly([det], 50, period=0.1))
    assert documents["stream_datum"][-1]["indices"]["stop"] == 50
    assert documents["stop"][0]["exit_status"] == "success"


def test_stock_plans_may_take_what_the_signals_of_the_camera_say(
    engine: RunEngine, documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPHYD_ASYNC_PRESERVE_DETECTOR_STATE", "YES")
    with init_devices(mock=True):
        exposure_time, n_frames = soft_signal_rw(float, 0.5), soft_signal_rw(int, 3)
        det = AsyncStdDaqDetector(
            "ws://127.0.0.1:1", tmp_path, exposure_time=exposure_time, n_frames=n_frames
        )
    engine(count([det], 2))
    assert documents["descriptor"][0]["data_keys"]["det"]["shape"] == [3, 16, 24]
    assert [doc["indices"]["stop"] for doc in documents["stream_datum"]] == [1, 2]
