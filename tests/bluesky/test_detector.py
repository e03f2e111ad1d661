"""The device without services: callers, refusals, and what a RunEngine may do with its documents."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.protocols import WritesStreamAssets

from stddaq_ophyd import AcquisitionError, SettingError, StdDaqDetector

Make = Callable[..., StdDaqDetector]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a detector that is not connected."""
    return lambda **options: StdDaqDetector("ws://127.0.0.1:9", name="det", paths=tmp_path, **options)


async def described(det: StdDaqDetector) -> dict[str, Any]:
    return dict(det.describe())


def test_a_run_engine_that_reads_an_unstaged_device_gets_scalars_only(engine: RunEngine, make: Make):
    future = asyncio.run_coroutine_threadsafe(described(make()), engine.loop)
    assert "det_image" not in future.result(10)


def test_an_asyncio_loop_in_a_worker_thread_is_not_a_run_engine(engine: RunEngine, make: Make):
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(lambda: (threading.current_thread(), asyncio.run(described(make()))))
    caller, description = found.result(10)
    assert caller is not threading.main_thread()
    assert "det_image" not in description


@pytest.mark.parametrize(
    ("documents", "is_stream"),
    [("stream", True), ("AD_HDF5", False), ("STDDAQ_PUBLISHED", False), ("STDDAQ_RAW", False)],
)
def test_only_stream_documents_make_a_stream_device(make: Make, documents: str, is_stream: bool):
    det = make(documents=documents)
    assert isinstance(det, WritesStreamAssets) is is_stream
    assert hasattr(det, "get_index") is is_stream


def test_no_event_of_a_flight_is_ready_before_the_first(make: Make):
    assert make().get_index() == 0


def test_kinds_of_documents_are_chosen_by_name(make: Make):
    with pytest.raises(AcquisitionError, match="det: documents: expected 'stream' or"):
        make(documents="hdf5")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("images_per_event", value) for value in (0, -1, 1.5, "x", True, None)),
        *((name, value) for name in ("margin", "exposure_time") for value in (math.nan, math.inf, -1, "1")),
        *(("allow_bad", value) for value in (2, "yes", None)),
    ],
)
def test_settings_are_refused_where_they_are_set(make: Make, name: str, value: Any):
    det = make()
    signal = getattr(det, name)
    before = signal.get()
    with pytest.raises(SettingError, match=f"det_{name}: expected "):
        signal.put(value)
    assert signal.get() == before


def test_numbers_of_numpy_are_numbers(make: Make):
    det: Any = make(exposure_time=np.float32(0.25))
    det.images_per_event.put(np.int64(3))
    det.margin.put(np.int16(2))
    det.prepare(np.int32(5)).wait(1)
    assert (det.exposure_time.get(), det.images_per_event.get(), det.margin.get()) == (0.25, 3, 2)


@pytest.mark.parametrize("options", [{"exposure_time": -1}, {"exposure_time": "1"}, {"paths": 5}])
def test_wrong_arguments_are_refused(options: dict[str, Any], tmp_path: Path):
    arguments: dict[str, Any] = {"paths": tmp_path} | options
    with pytest.raises(SettingError):
        StdDaqDetector("ws://127.0.0.1:9", name="det", **arguments)


@pytest.mark.parametrize("region", [(0, 2), (3, 3, 0, 1), (0, 1, -2, 3), (0, 1, 2, 2.5)])
def test_regions_are_rows_and_columns(make: Make, region: Any):
    with pytest.raises(SettingError, match="det: region spot: expected"):
        make(regions={"spot": region})


def test_a_directory_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    det = StdDaqDetector("ws://127.0.0.1:9", name="det", paths="~/run1")
    assert det.paths("det").directory == tmp_path / "run1"


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3"])
def test_a_flight_takes_a_whole_number_of_events(make: Make, value: Any):
    with pytest.raises(AcquisitionError, match="det: prepare: expected a number of events from 1, got"):
        make().prepare(value)


def test_methods_that_need_staging_say_so(make: Make):
    det = make()
    with pytest.raises(AcquisitionError, match=r"not staged; det\.stage\(\) comes first"):
        det.trigger()
    with pytest.raises(AcquisitionError, match=r"expected det\.stage\(\) and det\.prepare\(n\) before it"):
        det.kickoff()


def test_completing_without_a_flight_is_done(make: Make):
    # Some schedulers complete every device.
    make().complete().wait(1)
