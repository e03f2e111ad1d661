"""The driver without sockets: all courses of a run, with a distributor that the test controls."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from support.processes.deployment import make_config
from support.processes.recording import RUN_STATES

from stddaq.config import DetectorConfig
from stddaq.wire.std_daq import image_metadata_pb2
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.driver import driver as driver_module
from stddaq.writing.driver import writers as writers_module
from stddaq.writing.driver.distributor import Distributor, RecordingJob
from stddaq.writing.driver.driver import Driver
from stddaq.writing.driver.status import Client
from stddaq.writing.driver.writer_peer import Answer, WriterPeer

T = TypeVar("T")
SAVED = [*RUN_STATES, "idle"]


class FakeDistributor:
    """Runs calls at once. Its writers confirm every request unless it is held or refused.

    Attributes:
        requests: kinds of the requests, in order.
        held: kinds that are answered only after `release`.
        refused: reasons by kind.
    """

    def __init__(self, n_writers: int = 2) -> None:
        self.writers = [WriterPeer(str(i)) for i in range(n_writers)]
        self.peers = list(self.writers)
        for peer in self.peers:
            peer.connections_changed(1)
            peer.has_extensions = True
        self.requests: list[str] = []
        self.held: set[str] = set()
        self.refused: dict[str, str] = {}
        self.job: RecordingJob | None = None
        self.discarded = False
        self._held: list[Callable[[], None]] = []

    def call(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001  (the caller raises it)
            future.set_exception(error)
        return future

    def ask(
        self, actions: Mapping[str, pb.WriterAction], timeout: float | None = None
    ) -> Future[dict[str, Answer]]:
        future: Future[dict[str, Answer]] = Future()
        kinds = {str(action.WhichOneof("action")) for action in actions.values()}
        kind = kinds.pop() if kinds else "nothing"
        self.requests.append(kind)
        self.discarded |= any(action.close_file.discard_if_empty for action in actions.values())
        answers = {name: Answer(self.refused.get(kind, "")) for name in actions}
        if kind in self.held:
            self._held.append(lambda: future.set_result(answers))
        else:
            future.set_result(answers)
        return future

    def release(self) -> None:
        self.held.clear()
        for answer in self._held:
            answer()

    def begin_run(self, run_id: str) -> None:
        for peer in self.peers:
            peer.begin_run(run_id)

    def is_subscribed(self) -> bool:
        return True

    def subscription_problem(self) -> str:
        return ""

    def record(self, job: RecordingJob) -> None:
        self.job = job
        if job.n_image == 0:
            self.end_recording()

    def end_recording(self, reason: str = "") -> None:
        job, self.job = self.job, None
        if job:
            job.on_end(reason)

    def publish(self, *image_ids: int) -> None:
        """Forward images, which are written at once."""
        for image_id in image_ids:
            job = self.job
            assert job
            job.account.record(image_metadata_pb2.ImageMetadata(image_id=image_id))
            writer = self.writers[image_id % len(self.writers)]
            writer.n_forwarded += 1
            writer.reported.n_written += 1
            if job.account.n_images == 1:
                job.on_first_image()
            if job.account.n_images >= job.n_image:
                self.end_recording()


class Watching(Client):
    """A client that notes the messages that it receives."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, message: str, state: object = None) -> None:
        self.messages.append(json.loads(message))

    @property
    def states(self) -> list[str]:
        """Return the states in the order in which they were entered."""
        states = [message["status"] for message in self.messages if "command" not in message]
        return [state for i, state in enumerate(states) if i == 0 or states[i - 1] != state]


class Bench:
    """A driver, its fake distributor, and one client that watches."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config_path = directory.with_suffix(".json")
        self.change_config()
        config = DetectorConfig.load(self.config_path)
        self.distributor = FakeDistributor()
        self.driver = Driver(config, "image", cast(Distributor, self.distributor), [], self.config_path)
        self.client = Watching()
        self.driver.watchers.add(self.client, at_once=True)
        self.client.messages.clear()

    def change_config(self, **changes: Any) -> None:
        """Write the configuration file."""
        self.config_path.write_text(
            json.dumps(make_config(detector_name="t") | {"number_of_writers": 2} | changes)
        )

    async def send(self, **command: Any) -> dict[str, Any]:
        """Send a command as another client. Return the reply."""
        sender = Watching()
        await self.driver.receive(sender, json.dumps(command))
        return sender.messages[-1]

    async def start(self, **fields: Any) -> dict[str, Any]:
        return await self.send(command="start", path=str(self.directory), **fields)

    async def reach(self, state: str) -> None:
        """Wait until clients have received `state`."""
        while state not in self.client.states:
            await asyncio.sleep(0.001)

    async def publish(self, *ids: int) -> None:
        """Wait until the run records, then forward images that are written at once."""
        await self.reach("waiting_for_first_image")
        self.distributor.publish(*ids)

    async def last_result(self) -> dict[str, Any]:
        await self.reach("idle")
        return (await self.send(command="last_result"))["result"]


OnBench = Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def on_bench(tmp_path: Path) -> OnBench:
    """Return a function that runs a coroutine function on a bench."""

    def run(test: Callable[[Bench], Awaitable[None]]) -> None:
        async def limited() -> None:
            await asyncio.wait_for(cast(Coroutine[Any, Any, None], test(Bench(tmp_path))), 5)

        asyncio.run(limited())

    return run


def test_a_run_passes_all_states_and_its_result_is_kept(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        reply = await bench.start(n_image=3)
        assert (reply["command"], reply["status"]) == ("start", "started")
        await bench.publish(4, 5)
        await bench.reach("recording")
        bench.distributor.publish(6)
        await bench.reach("idle")
        assert bench.client.states == SAVED
        requests = ["create_file", "confirm_last_image", "close_file", "create_master_file"]
        assert bench.distributor.requests == requests
        result = await bench.last_result()
        assert (result["outcome"], result["count"], result["first_id"]) == ("file_saved", 3, 4)
        assert result["run_id"] == reply["run_id"]

    on_bench(test)


def test_a_run_of_no_images_ends_without_a_source(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        await bench.start(n_image=0)
        await bench.reach("idle")
        assert bench.client.states == [state for state in SAVED if state != "recording"]

    on_bench(test)


@pytest.mark.parametrize(
    ("held", "state"), [("create_file", "creating_file"), ("close_file", "saving_file")], ids=lambda v: v
)
def test_a_stop_while_writers_are_busy_ends_the_run(on_bench: OnBench, held: str, state: str):
    async def test(bench: Bench) -> None:
        bench.distributor.held = {held}
        await bench.start(n_image=1)
        if held == "close_file":
            await bench.publish(0)
        await bench.reach(state)
        assert (await bench.send(command="stop"))["status"] == state
        bench.distributor.release()
        assert (await bench.last_result())["outcome"] == "file_saved"
        assert ("stop" in bench.client.states) == (held == "create_file")

    on_bench(test)


@pytest.mark.parametrize("n_images", [0, 2])
def test_a_stop_ends_the_wait_for_images(on_bench: OnBench, n_images: int):
    async def test(bench: Bench) -> None:
        await bench.start()
        await bench.publish(*range(n_images))
        if n_images:
            await bench.reach("recording")
        await bench.send(command="stop")
        result = await bench.last_result()
        assert (result["outcome"], result["count"]) == ("file_saved", n_images)
        assert bench.client.states[-4:] == ["stop", "saving_file", "file_saved", "idle"]

    on_bench(test)


def test_a_stop_while_a_start_is_checked_stops_that_run(on_bench: OnBench, monkeypatch: pytest.MonkeyPatch):
    checking, checked = threading.Event(), threading.Event()

    def check_start(*_: object, **__: object) -> None:
        checking.set()
        checked.wait(5)

    monkeypatch.setattr(driver_module, "check_start", check_start)

    async def test(bench: Bench) -> None:
        start = asyncio.create_task(bench.start())
        while not checking.is_set():
            await asyncio.sleep(0.001)
        assert (await bench.send(command="stop"))["status"] == "idle"
        assert (await bench.start(file_prefix="second"))["error"] == "busy"
        checked.set()
        assert (await start)["status"] == "started"
        assert (await bench.last_result())["outcome"] == "file_saved"
        assert "waiting_for_first_image" not in bench.client.states

    on_bench(test)


def test_a_stop_without_a_run_does_not_stop_the_next_one(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        assert (await bench.send(command="stop"))["status"] == "idle"
        await bench.start(n_image=1)
        await bench.publish(0)
        await bench.reach("idle")
        assert bench.client.states == SAVED

    on_bench(test)


def test_of_two_starts_at_once_one_is_admitted(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        replies = await asyncio.gather(bench.start(), bench.start(file_prefix="other"))
        assert [reply["status"] for reply in replies] == ["started", "rejected"]
        assert (replies[1]["error"], replies[1]["command"]) == ("busy", "start")

    on_bench(test)


@pytest.mark.parametrize(
    ("change", "pending"),
    [
        ({"image_pixel_width": 64}, "image_pixel_width"),
        ({"number_of_writers": 3}, "number_of_writers"),
        ({"log_level": "debug"}, ""),
        ({"number_of_writers": 0}, ""),
    ],
    ids=str,
)
def test_a_start_is_rejected_until_the_driver_has_the_configuration_of_its_file(
    on_bench: OnBench, change: dict[str, Any], pending: str
):
    async def test(bench: Bench) -> None:
        bench.change_config(**change)
        reply = await bench.start(n_image=0)
        if not pending:
            assert reply["status"] == "started"
            return
        assert (reply["status"], reply["reason"], reply["error"]) == ("rejected", "driver is busy!", "busy")
        assert (
            f"configuration: expected that of the running services, got {pending} changed in"
            in reply["detail"]
        )
        bench.change_config()
        assert (await bench.start(n_image=0))["status"] == "started"

    on_bench(test)


def test_a_configuration_file_that_services_ignore_refuses_no_start(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        bench.config_path.write_text("{")
        assert (await bench.start(n_image=0))["status"] == "started"

    on_bench(test)


def test_a_refused_start_leaves_the_driver_idle_and_no_client_notices(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        reply = await bench.start(n_image=2**62)
        assert (reply["status"], reply["error"], reply["command"]) == ("error", "disk_full", "start")
        assert bench.client.messages == []
        assert (await bench.start(n_image=1))["status"] == "started"

    on_bench(test)


def test_a_file_system_that_does_not_respond_refuses_the_start(
    on_bench: OnBench, monkeypatch: pytest.MonkeyPatch
):
    responds = threading.Event()
    monkeypatch.setattr(driver_module, "check_start", lambda *_, **__: responds.wait(5))
    monkeypatch.setattr(driver_module, "CHECK_TIMEOUT_S", 0.02)

    async def test(bench: Bench) -> None:
        reply = await bench.start()
        responds.set()
        assert (reply["error"], reply["status"]) == ("path_not_usable", "error")
        assert "within 0.02 s" in reply["reason"]

    on_bench(test)


@pytest.mark.parametrize("kind", ["create_file", "confirm_last_image", "close_file", "create_master_file"])
def test_a_failed_request_is_an_error_and_the_next_run_is_admitted(on_bench: OnBench, kind: str):
    async def test(bench: Bench) -> None:
        bench.distributor.refused = {kind: "writer 1: no room"}
        await bench.start(n_image=1)
        if kind != "create_file":
            await bench.publish(0)
        result = await bench.last_result()
        assert result["outcome"] == "error"
        assert result["reason"].startswith("writer 1: no room")
        assert bench.client.states[-2:] == ["error", "idle"]
        assert bench.distributor.requests[-1] == "close_file"
        bench.distributor.refused = {}
        assert (await bench.start(n_image=0, file_prefix="next"))["status"] == "started"

    on_bench(test)


def test_an_error_before_the_first_image_discards_the_empty_files(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        await bench.start(first_image_timeout=0.01)
        result = await bench.last_result()
        assert result["reason"] == "no image arrived within 0.01 s"
        assert bench.distributor.discarded

    on_bench(test)


def test_a_failure_of_the_data_path_is_the_reason_even_after_a_stop(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        await bench.start()
        await bench.publish(0)
        await bench.reach("recording")
        bench.distributor.end_recording("writer 1 exited or hangs")
        await bench.send(command="stop")
        assert (await bench.last_result())["reason"] == "writer 1 exited or hangs"
        assert "stop" not in bench.client.states
        assert not bench.distributor.discarded

    on_bench(test)


def test_files_that_were_not_closed_are_named_with_the_command_that_repairs_them(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        bench.distributor.refused = {"close_file": "writer 0 exited or hangs"}
        await bench.start(n_image=0)
        reason = (await bench.last_result())["reason"]
        paths = [str(bench.directory / f"file{i}.h5") for i in range(2)]
        assert reason.endswith(f"`stddaq repair {' '.join(paths)}` makes its file readable")

    on_bench(test)


def test_images_missing_in_the_writers_reports_are_an_error(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        await bench.start(n_image=2)
        await bench.reach("waiting_for_first_image")
        bench.distributor.writers[1].n_forwarded += 1
        bench.distributor.publish(0, 1)
        result = await bench.last_result()
        assert result["reason"] == "writer 1: expected 2 images, got 1 written, 0 failed"

    on_bench(test)


@pytest.mark.parametrize("strict", [False, True])
def test_overwritten_images_are_an_error_only_of_a_strict_run(on_bench: OnBench, strict: bool):
    async def test(bench: Bench) -> None:
        await bench.start(n_image=1, strict=strict)
        await bench.reach("waiting_for_first_image")
        bench.distributor.writers[0].reported.n_overwritten = 1
        bench.distributor.writers[0].reported.overwritten_ids = [0]
        bench.distributor.publish(0)
        result = await bench.last_result()
        assert (result["outcome"], result["overwritten_ids"]) == ("error" if strict else "file_saved", [0])

    on_bench(test)


def test_an_absent_writer_is_an_error_that_names_it(on_bench: OnBench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writers_module, "CONNECT_TIMEOUT_S", 0.02)

    async def test(bench: Bench) -> None:
        bench.distributor.writers[1].connections_changed(0)
        await bench.start()
        assert (await bench.last_result())["reason"] == "not connected: writer 1; nothing was created"
        assert "file_created" not in bench.client.states

    on_bench(test)


@pytest.mark.parametrize("method", ["is_subscribed", "record"])
def test_a_defect_ends_the_run_as_an_error(on_bench: OnBench, monkeypatch: pytest.MonkeyPatch, method: str):
    async def test(bench: Bench) -> None:
        def fail(*_: object) -> None:
            raise KeyError("defect")

        monkeypatch.setattr(bench.distributor, method, fail)
        await bench.start()
        assert "unexpected KeyError" in (await bench.last_result())["reason"]

    on_bench(test)


def test_a_data_path_that_hangs_ends_the_run_as_an_error(on_bench: OnBench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writers_module, "CALL_TIMEOUT_S", 0.02)

    async def test(bench: Bench) -> None:
        bench.distributor.held = {"create_file"}
        monkeypatch.setattr(bench.distributor, "begin_run", lambda run_id: hang(bench))
        await bench.start()
        assert "the driver's data path did not answer within 0.02 s" in (await bench.last_result())["reason"]

    def hang(bench: Bench) -> None:
        monkeypatch.setattr(bench.distributor, "call", lambda function: Future())

    on_bench(test)


@pytest.mark.parametrize("command", ["start", "repair"])
def test_no_other_command_is_admitted_during_a_run(on_bench: OnBench, command: str):
    async def test(bench: Bench) -> None:
        await bench.start()
        await bench.reach("waiting_for_first_image")
        reply = await (bench.start() if command == "start" else bench.send(command="repair"))
        assert (reply["status"], reply["error"], reply["command"]) == ("rejected", "busy", command)
        assert reply["reason"] == "driver is busy!"  # The reply of the C++ driver.
        assert reply["detail"].endswith("expected state idle, got state waiting_for_first_image")

    on_bench(test)


def test_a_repair_without_unclosed_files_does_nothing(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        reply = await bench.send(command="repair")
        assert (reply["status"], reply["repaired"]) == ("idle", [])

    on_bench(test)


def test_a_repair_that_fails_is_an_error_and_the_driver_is_idle_again(
    on_bench: OnBench, monkeypatch: pytest.MonkeyPatch
):
    async def repair_as(*_: object, **__: object) -> None:
        raise TimeoutError("no answer within 60 s")

    monkeypatch.setattr(driver_module, "repair_as", repair_as)

    async def test(bench: Bench) -> None:
        bench.distributor.refused = {"close_file": "writer 0 exited or hangs"}
        await bench.start(n_image=0)
        await bench.last_result()
        reply = await bench.send(command="repair")
        assert (reply["status"], reply["error"], reply["command"]) == ("error", "path_not_usable", "repair")
        assert "no answer within 60 s" in reply["reason"]
        assert (await bench.start(n_image=0, file_prefix="next"))["status"] == "started"

    on_bench(test)


def test_a_retiring_driver_finishes_its_run_refuses_another_and_keeps_the_result_for_a_while(
    on_bench: OnBench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(driver_module, "RESULT_TIMEOUT_S", 0.05)

    async def test(bench: Bench) -> None:
        await bench.start(n_image=1)
        await bench.reach("waiting_for_first_image")
        retiring = asyncio.create_task(bench.driver.retire())
        await asyncio.sleep(0)
        assert "about to restart" in (await bench.start())["detail"]
        bench.distributor.publish(0)
        assert (await bench.last_result())["outcome"] == "file_saved"
        assert not retiring.done()
        assert (await bench.start())["error"] == "busy"
        await retiring

    on_bench(test)


def test_an_idle_driver_retires_at_once(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        await bench.driver.retire()
        assert (await bench.start())["error"] == "busy"
        assert (await bench.send(command="status"))["status"] == "idle"

    on_bench(test)


def test_shutting_down_saves_the_files_of_the_run(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        await bench.start()
        await bench.publish(0)
        await bench.driver.shut_down(timeout=2.0)
        assert bench.client.states[-3:] == ["saving_file", "file_saved", "idle"]

    on_bench(test)


def test_shutting_down_does_not_wait_longer_than_its_timeout(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        bench.distributor.held = {"close_file"}
        await bench.start(n_image=0)
        await bench.reach("saving_file")
        await bench.driver.shut_down(timeout=0.02)
        assert bench.client.states[-1] == "saving_file"

    on_bench(test)


def test_progress_is_reported_to_clients(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        await bench.start()
        await bench.publish(0)
        await bench.reach("recording")
        before = len(bench.client.messages)
        assert bench.distributor.job
        bench.distributor.job.on_caught_up()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        (message,) = bench.client.messages[before:]
        assert (message["count"], message["n_received"], message["n_skipped"]) == (1, 1, 0)
        assert message["writers"][0] == {"writer": 0, "n_forwarded": 1, "n_written": 1}

    on_bench(test)


def test_a_frame_that_is_not_a_command_changes_nothing(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        sender = Watching()
        await bench.driver.receive(sender, "nonsense")
        assert sender.messages[0]["error"] == "invalid_json"
        assert bench.client.messages == []

    on_bench(test)


def test_the_last_status_before_saving_has_the_complete_count(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        await bench.start(n_image=3)
        await bench.publish(0, 1, 2)
        await bench.reach("saving_file")
        statuses = [message["status"] for message in bench.client.messages]
        last = bench.client.messages[statuses.index("saving_file") - 1]
        assert (last["status"], last["count"]) == ("recording", 3)

    on_bench(test)


def test_a_new_run_shows_no_numbers_of_the_last_one(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        await bench.start(n_image=3)
        await bench.publish(0, 1, 2)
        bench.distributor.writers[0].reported.n_overwritten = 1
        await bench.reach("idle")
        bench.client.messages.clear()
        bench.distributor.held = {"create_file"}
        reply = await bench.start(file_prefix="next")
        await bench.reach("creating_file")
        for message in (reply, *bench.client.messages):
            assert (message["n_received"], message["n_overwritten"], message["n_failed"]) == (0, 0, 0)
            assert [writer["n_forwarded"] + writer["n_written"] for writer in message["writers"]] == [0, 0]
        bench.distributor.release()

    on_bench(test)


def test_a_run_that_fails_without_writers_has_no_images_of_the_last_one(
    on_bench: OnBench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writers_module, "CONNECT_TIMEOUT_S", 0.01)

    async def test(bench: Bench) -> None:
        await bench.start(n_image=3)
        await bench.publish(0, 1, 2)
        bench.distributor.writers[0].reported.overwritten_ids.append(0)
        await bench.reach("idle")
        bench.client.messages.clear()
        bench.distributor.writers[1].connections_changed(0)
        await bench.start(file_prefix="next")
        result = await bench.last_result()
        assert result["outcome"] == "error"
        assert [result[key] for key in ("count", "n_good", "n_overwritten", "n_failed")] == [0, 0, 0, 0]
        assert next(m for m in bench.client.messages if m["status"] == "error")["count"] == 0

    on_bench(test)


def test_a_failed_run_lists_only_files_that_were_created(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        bench.distributor.refused = {"create_file": "writer 1: no room"}
        await bench.start()
        assert (await bench.last_result())["files"] == {"raw": [], "metadata": None, "master": None}
        bench.client.messages.clear()
        bench.distributor.refused = {"create_master_file": "no room"}
        await bench.start(n_image=1)
        await bench.publish(0)
        files = (await bench.last_result())["files"]
        assert [Path(path).name for path in files["raw"]] == ["file0.h5", "file1.h5"]
        assert files["master"] is None

    on_bench(test)


def test_a_driver_with_overwrite_replaces_files_in_every_run(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        (bench.directory / "file0.h5").write_text("old")
        assert (await bench.start(n_image=0))["error"] == "file_exists"
        bench.driver._overwrite = True
        assert (await bench.start(n_image=0))["status"] == "started"

    on_bench(test)
