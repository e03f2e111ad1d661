"""The clients with the driver of stddaq, its writers and a simulator, all as real processes."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes.deployment import Deployment
from support.processes.machine import assert_within
from support.processes.real_driver import RealDriver
from support.processes.recording import RUN_STATES

from stddaq.client import (
    AsyncDriverClient,
    CommandRefusedError,
    ConnectionLostError,
    DriverBusyError,
    DriverClient,
    DriverTimeoutError,
    RunFailedError,
    async_driver,
)


def test_a_run_is_recorded_and_accounted_for(real_driver: RealDriver, directory: Path):
    real_driver.publish_continuously()
    with DriverClient(real_driver.url) as driver:
        first = driver.start(directory, n_image=101, file_prefix="scan")
        assert (first.status, first.n_image) == ("started", 101)
        last = driver.wait_until_saved(timeout=60)
        account = driver.last_result()
    assert (last.status, last.count, last.run_id) == ("file_saved", 101, first.run_id)
    assert last.n_written.keys() == {0, 1}
    assert sum(last.n_written.values()) == 101
    assert account is not None
    assert (account["run_id"], account["outcome"], account["n_good"]) == (first.run_id, "file_saved", 101)
    assert sorted(path.name for path in directory.iterdir()) == ["scan0.h5", "scan1.h5", "scanMaster.h5"]


def test_all_watchers_see_every_state_of_a_run_once_in_order(real_driver: RealDriver, directory: Path):
    real_driver.publish_continuously()
    with DriverClient(real_driver.url) as driver, DriverClient(real_driver.url) as other:
        own, others = driver.watch(), other.watch()
        run = driver.start(directory, n_image=20)
        driver.wait_until_saved(timeout=60)
        for statuses in (own, others):
            seen = itertools.takewhile(lambda status: status.status != "file_saved", statuses)
            states = [status.status for status in seen if status.run_id == run.run_id]
            assert [state for state, _ in itertools.groupby(states)] == RUN_STATES[:-1]


def test_there_is_no_result_before_the_first_run(real_driver: RealDriver):
    with DriverClient(real_driver.url) as driver:
        assert driver.last_result() is None


def test_a_refusal_is_raised_at_once_with_the_drivers_reason(real_driver: RealDriver, directory: Path):
    begin = time.monotonic()
    with DriverClient(real_driver.url) as driver:
        with pytest.raises(CommandRefusedError, match="absent") as refused:
            driver.start(directory / "absent")
        assert refused.value.error_type == "path_not_usable"
        (directory / "file1.h5").touch()
        with pytest.raises(CommandRefusedError, match=r"file1\.h5") as refused:
            driver.start(directory)
        assert refused.value.error_type == "file_exists"
        assert driver.latest.status == "idle"
    assert_within(time.monotonic() - begin, 3)


def test_of_two_starts_one_is_busy(real_driver: RealDriver, directory: Path):
    with DriverClient(real_driver.url) as driver, DriverClient(real_driver.url) as other:
        own = driver.start(directory)
        with pytest.raises(DriverBusyError, match="busy"):
            other.start(directory, file_prefix="other")
        other.stop()
        assert other.wait_until_saved(timeout=60).run_id == own.run_id
        assert driver.wait_until_saved(timeout=60).count == 0


@pytest.mark.slow
def test_simultaneous_starts_are_distinguished(real_driver: RealDriver, directory: Path):
    async def compete() -> list[str | None]:
        async with AsyncDriverClient(real_driver.url) as a, AsyncDriverClient(real_driver.url) as b:
            outcomes = await asyncio.gather(
                a.start(directory, file_prefix="a"),
                b.start(directory, file_prefix="b"),
                return_exceptions=True,
            )
            await a.stop()
            return [getattr(outcome, "status", type(outcome).__name__) for outcome in outcomes]

    assert sorted(map(str, asyncio.run(compete()))) == ["DriverBusyError", "started"]


def test_stop_while_waiting_for_the_first_image_saves_empty_files(real_driver: RealDriver, directory: Path):
    with DriverClient(real_driver.url) as driver:
        driver.start(directory)
        assert driver.wait_until_ready(timeout=60).status == "waiting_for_first_image"
        driver.stop()
        assert driver.wait_until_saved(timeout=60).count == 0


@pytest.mark.slow
def test_a_run_without_its_writers_fails_and_names_them(deployment: Deployment, directory: Path):
    _, url = deployment.start_driver()
    with DriverClient(url) as driver:
        driver.start(directory)
        with pytest.raises(RunFailedError, match="writer 0, writer 1") as failure:
            driver.wait_until_ready(timeout=60)
    assert failure.value.result is not None
    assert failure.value.result["outcome"] == "error"


def test_a_killed_writer_fails_the_run_and_is_named(real_driver: RealDriver, directory: Path):
    real_driver.publish_continuously()
    with DriverClient(real_driver.url) as driver:
        driver.start(directory)
        driver.wait_for(lambda status: (status.count or 0) > 20, timeout=60)
        real_driver.writers[1].kill()
        with pytest.raises(RunFailedError, match="writer 1") as failure:
            driver.wait_until_saved(timeout=60)
        assert failure.value.result is not None
        assert failure.value.result["count"] > 20
        driver.wait(["idle"], timeout=60)


def test_a_killed_driver_is_a_lost_connection(real_driver: RealDriver, directory: Path):
    with DriverClient(real_driver.url) as driver:
        driver.start(directory)
        driver.wait_until_ready(timeout=60)
        killer = threading.Timer(0.2, real_driver.process.kill)
        killer.start()
        begin = time.monotonic()
        with pytest.raises(ConnectionLostError):
            driver.wait_until_saved(timeout=60)
        assert_within(time.monotonic() - begin, 3)
        killer.join()


@pytest.mark.slow
def test_a_hung_driver_is_a_lost_connection(real_driver: RealDriver):
    with DriverClient(real_driver.url) as driver:
        real_driver.process.send(signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(ConnectionLostError, match="no status from the driver for 5 s"):
            driver.wait(["recording"], timeout=30)
        assert_within(time.monotonic() - begin, 10)


@pytest.mark.slow
def test_a_client_that_was_held_up_sees_what_the_driver_has_sent_meanwhile(
    real_driver: RealDriver, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(async_driver, "SILENCE_TIMEOUT_S", 3.0)
    real_driver.publish_continuously()

    async def record() -> None:
        async with AsyncDriverClient(real_driver.url) as driver:
            await driver.start(directory, n_image=20)
            saved = asyncio.create_task(driver.wait_until_saved(timeout=3.5))
            await driver.wait_until_ready(timeout=60)
            # As a callback of a plan does that is slow, in the event loop of the RunEngine.
            time.sleep(4)
            assert (await saved).status == "file_saved"
            # It is still connected.
            assert await driver.last_result()

    asyncio.run(record())


def test_a_client_that_is_held_up_while_it_connects_sees_that_the_driver_has_accepted(
    real_driver: RealDriver,
):
    async def connect() -> None:
        driver = AsyncDriverClient(real_driver.url)
        connected = asyncio.create_task(driver.connect(timeout=0.5))
        await asyncio.sleep(0)
        time.sleep(1)
        await connected
        await driver.close()

    asyncio.run(connect())


def test_a_run_that_the_restarted_driver_does_not_know_is_not_reported_as_saved(
    real_driver: RealDriver, directory: Path
):
    with DriverClient(real_driver.url, reconnect=True) as driver:
        driver.start(directory)
        real_driver.process.kill()
        with pytest.raises(ConnectionLostError):
            driver.stop()
        real_driver.deployment.start_driver("--port", real_driver.port)
        with pytest.raises(RunFailedError, match="does not know this run"):
            driver.wait_until_saved(timeout=60)


def test_a_late_reply_never_counts_for_a_later_command(real_driver: RealDriver, directory: Path):
    with DriverClient(real_driver.url) as driver:
        real_driver.process.send(signal.SIGSTOP)
        with pytest.raises(DriverTimeoutError, match=r"timeout of .* waiting for the answer to start"):
            driver.start(directory, file_prefix="a", timeout=0.3)
        real_driver.process.send(signal.SIGCONT)
        # The driver did carry out the first start; its reply must not answer the second.
        with pytest.raises(DriverBusyError):
            driver.start(directory, file_prefix="b")
        driver.stop()
        driver.wait(["idle"], timeout=60)


def test_metadata_writer_of_each_detector_takes_part(
    make_deployment: Callable[..., Deployment], directory: Path
):
    deployment = make_deployment(number_of_writers=1)
    deployment.start("std_det_meta_writer_gf")
    _, url = deployment.start_driver("-m")
    deployment.start_writers()
    with DriverClient(url) as driver:
        run = driver.start(directory, n_image=0)
        assert run.files["metadata"] == str(directory / "fileMeta.h5")
        assert driver.wait_until_saved(timeout=60).count == 0
