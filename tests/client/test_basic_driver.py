"""The clients with a std_daq driver (C++), and with servers that are not drivers."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.peers.basic_driver import BasicDriver
from support.processes.deployment import free_port
from support.processes.machine import assert_within

from stddaq.client import (
    AsyncDriverClient,
    CommandRefusedError,
    ConnectionLostError,
    DriverBusyError,
    DriverClient,
    DriverError,
    DriverTimeoutError,
    DriverUnreachableError,
    RunFailedError,
    UnsupportedError,
)
from stddaq.client.ownership import Ownership
from stddaq.client.status import BUSY_STATES

# Statuses arrive at 10 Hz; `file_saved` may be so short that none shows it.
ENDED = ("file_saved", "idle")
TIMEOUT_S = 60.0
# Unless another thread keeps it from closing.
ENOUGH_TO_CLOSE_S = 0.5


def test_a_run_is_recorded_and_followed_to_its_end(basic_driver: BasicDriver, directory: Path):
    with DriverClient(basic_driver.url) as driver:
        first = driver.start(directory, n_image=200, file_prefix="scan")
        assert first.is_busy
        states = [status.status for status in driver.watch_run()]
        assert states[-1] in ENDED
        last = driver.wait_until_saved(timeout=1)
        assert last.count == (200 if last.status == "file_saved" else None)
    assert basic_driver.commands == [
        {"command": "start", "path": str(directory), "n_image": 200, "file_prefix": "scan"}
    ]


def test_states_that_were_missed_do_not_hold_up_a_wait(directory: Path):
    with BasicDriver(image_rate=1e6, preparation_s=0.001) as peer, DriverClient(peer.url) as driver:
        driver.start(directory, n_image=1)
        driver.wait_until_ready(timeout=60)
        # No state between `started` and `idle` was sent.
        assert driver.wait_until_saved(timeout=60).status in ENDED


def test_runs_follow_each_other(basic_driver: BasicDriver, directory: Path):
    with DriverClient(basic_driver.url) as driver:
        for n_image in (1, 50, 10):
            driver.start(directory, n_image=n_image)
            assert driver.wait_until_saved(timeout=60).status in ENDED


def test_stop_ends_a_run_without_limit(basic_driver: BasicDriver, directory: Path):
    with DriverClient(basic_driver.url) as driver:
        driver.start(directory)
        driver.wait_for(lambda status: bool(status.count), timeout=60)
        driver.stop()
        assert driver.wait_until_saved(timeout=60).status in ENDED


def test_a_failing_run_raises_with_the_reason(basic_driver: BasicDriver, directory: Path):
    basic_driver.fails_with = "disk full"
    with DriverClient(basic_driver.url) as driver:
        driver.start(directory)
        with pytest.raises(RunFailedError, match="disk full") as failure:
            driver.wait_until_saved(timeout=60)
    assert failure.value.result is None


def test_a_directory_that_the_driver_refuses_fails_the_run_at_once(basic_driver: BasicDriver, tmp_path: Path):
    with DriverClient(basic_driver.url) as driver:
        driver.start(tmp_path / "absent")
        with pytest.raises(RunFailedError, match="not a directory"):
            driver.wait_until_ready(timeout=60)


def test_a_second_start_is_busy(basic_driver: BasicDriver, directory: Path):
    with DriverClient(basic_driver.url) as driver, DriverClient(basic_driver.url) as other:
        driver.start(directory)
        other.wait(["recording"], timeout=60)
        with pytest.raises(DriverBusyError, match="busy"):
            other.start(directory)
        driver.stop()
        assert driver.wait_until_saved(timeout=60).status in ENDED


def test_a_bad_start_is_refused_before_it_is_sent(basic_driver: BasicDriver, directory: Path):
    with DriverClient(basic_driver.url) as driver:
        with pytest.raises(CommandRefusedError, match="n_image") as refused:
            driver.start(directory, n_image="10")
        assert refused.value.error_type == "invalid_field"
        with pytest.raises(CommandRefusedError, match="n_images") as refused:
            driver.start(directory, n_images=10)
        assert refused.value.error_type == "unknown_field"
    assert basic_driver.commands == []


def test_an_account_is_unsupported(basic_driver: BasicDriver):
    with DriverClient(basic_driver.url) as driver, pytest.raises(UnsupportedError):
        driver.last_result()


def test_there_is_nothing_to_wait_for_without_a_run(basic_driver: BasicDriver):
    with DriverClient(basic_driver.url) as driver, pytest.raises(DriverError, match="no run is in progress"):
        driver.wait_until_saved(timeout=1)


def test_a_run_of_another_client_can_be_followed_and_stopped(basic_driver: BasicDriver, directory: Path):
    with DriverClient(basic_driver.url) as starter:
        starter.start(directory)
    with DriverClient(basic_driver.url) as driver:
        driver.stop()
        assert driver.wait_until_saved(timeout=60).status in ENDED


def test_a_wait_ends_at_its_timeout_and_the_client_stays_usable(basic_driver: BasicDriver):
    with DriverClient(basic_driver.url) as driver:
        with pytest.raises(DriverTimeoutError, match=r"0\.2 s.*recording"):
            driver.wait(["recording"], timeout=0.2)
        assert driver.status().status == "idle"


def test_an_error_in_a_condition_is_raised_to_the_caller(basic_driver: BasicDriver):
    with DriverClient(basic_driver.url) as driver:
        with pytest.raises(ZeroDivisionError):
            driver.wait_for(lambda status: 1 // 0 == 1, timeout=1)
        assert driver.status().status == "idle"


def test_the_loss_of_the_driver_ends_watching_and_waiting(directory: Path):
    with BasicDriver() as peer:
        driver = DriverClient(peer.url).connect()
        driver.start(directory)
        statuses = driver.watch()
        outcome: list[BaseException] = []

        def wait() -> None:
            try:
                driver.wait_until_saved(timeout=60)
            except DriverError as error:
                outcome.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
    waiting.join(20)
    assert isinstance(outcome[0], ConnectionLostError)
    with pytest.raises(ConnectionLostError):
        list(statuses)
    with pytest.raises(ConnectionLostError):
        driver.start(directory)
    with pytest.raises(ConnectionLostError):
        _ = driver.latest
    driver.close()


def test_watching_and_waiting_can_survive_a_restart_of_the_driver(directory: Path):
    with BasicDriver() as peer:
        driver = DriverClient(peer.url, reconnect=True).connect()
        statuses = driver.watch()
        assert next(statuses).status == "idle"
    with pytest.raises(ConnectionLostError):
        driver.start(directory)
    with BasicDriver(port=peer.port) as peer:
        driver.wait(["idle"], timeout=60)
        driver.start(directory)
        assert next(status for status in statuses if status.status == "recording")
    driver.close()


def test_a_sync_client_works_inside_a_running_event_loop(basic_driver: BasicDriver, directory: Path):
    async def record() -> int | None:
        with DriverClient(basic_driver.url) as driver:
            driver.start(directory, n_image=150)
            *_, last = driver.watch_run()
            return last.count

    assert asyncio.run(record()) in (150, None)


def test_a_client_is_shared_by_threads(basic_driver: BasicDriver):
    with DriverClient(basic_driver.url) as driver:
        seen: list[str] = []
        threads = [
            threading.Thread(target=lambda: seen.append(driver.status(timeout=60).status)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert seen == ["idle"] * 8


def test_async_client_watches_while_it_waits(basic_driver: BasicDriver, directory: Path):
    async def record() -> list[str]:
        async with AsyncDriverClient(basic_driver.url) as driver:
            await driver.start(directory, n_image=300)
            saved = asyncio.create_task(driver.wait_until_saved(timeout=60))
            states = [status.status async for status in driver.watch_run()]
            await saved
            return states

    states = asyncio.run(record())
    assert states[0] in BUSY_STATES
    assert states[-1] in ENDED


def test_a_task_that_watches_goes_on_without_a_reference(basic_driver: BasicDriver):
    async def watch() -> int:
        n, over = 0, asyncio.Event()

        async def count() -> None:
            nonlocal n
            async with AsyncDriverClient(basic_driver.url) as driver:
                async for _ in driver.watch():
                    n += 1
                    if n == 5:
                        break
            over.set()

        asyncio.create_task(count())  # noqa: RUF006  (that is the test)
        async with asyncio.timeout(20):
            while not over.is_set():
                gc.collect()
                await asyncio.sleep(0.01)
        return n

    assert asyncio.run(watch()) == 5


def test_a_url_without_a_server_is_unreachable():
    with pytest.raises(DriverUnreachableError, match="is it started"):
        DriverClient(f"ws://127.0.0.1:{free_port()}").connect()


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1", "ws://"])
def test_a_bad_url_is_unreachable(url: str):
    with pytest.raises(DriverUnreachableError):
        DriverClient(url).connect()


def test_a_url_without_its_scheme_is_refused_with_the_form_that_it_must_have():
    with pytest.raises(DriverUnreachableError, match=r"expected ws://HOST:PORT, got '127\.0\.0\.1:8080'"):
        DriverClient("127.0.0.1:8080").connect()


def test_a_web_server_is_reported_as_no_driver():
    with _web_server() as port, pytest.raises(DriverUnreachableError, match="is not a std_daq driver"):
        DriverClient(f"ws://127.0.0.1:{port}").connect()


def test_a_silent_server_is_reported_as_no_driver():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        with pytest.raises(DriverUnreachableError, match=r"0\.3 s"):
            DriverClient(f"ws://127.0.0.1:{silent.getsockname()[1]}").connect(timeout=0.3)
        assert_within(time.monotonic() - begin, 3)


def test_a_client_that_is_closed_by_another_thread_does_not_connect_for_ever():
    errors: list[Exception] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(TIMEOUT_S)
        client = DriverClient(f"ws://127.0.0.1:{silent.getsockname()[1]}")

        def connect() -> None:
            try:
                client.connect(timeout=1000)
            except ConnectionLostError as error:
                errors.append(error)

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        with silent.accept()[0]:
            client.close()
            thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert "was closed" in str(errors[0])


def test_a_command_that_comes_as_the_client_is_closed_loses_the_connection(
    basic_driver: BasicDriver, monkeypatch: pytest.MonkeyPatch
):
    client = DriverClient(basic_driver.url).connect()
    closing, check = threading.Thread(target=client.close), Ownership.check

    def close_between(ownership: Ownership) -> None:
        # Another thread closes the client while this one submits the command.
        closing.start()
        closing.join(ENOUGH_TO_CLOSE_S)
        check(ownership)

    monkeypatch.setattr(Ownership, "check", close_between)
    # It is carried out before, or not at all.
    with suppress(ConnectionLostError):
        client.status()
    closing.join(TIMEOUT_S)
    assert not closing.is_alive()


@contextmanager
def _web_server() -> Iterator[int]:
    class Quiet(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
