"""The driver without sockets: all courses of a run, with a distributor that the test controls."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from support.peers.driver_bench import Bench, OnBench, Watching
from support.processes.recording import RUN_STATES

from stddaq.writing.driver import driver as driver_module

SAVED = [*RUN_STATES, "idle"]


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
        checked.wait(60)

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


def test_a_retiring_driver_finishes_its_run_refuses_another_and_keeps_the_result_for_a_while(
    on_bench: OnBench, monkeypatch: pytest.MonkeyPatch
):
    # Longer than the loop of a busy machine stands still between the end of the run and the check.
    monkeypatch.setattr(driver_module, "RESULT_TIMEOUT_S", 1.0)

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


def test_a_driver_with_overwrite_replaces_files_in_every_run(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        (bench.directory / "file0.h5").write_text("old")
        assert (await bench.start(n_image=0))["error"] == "file_exists"
        bench.driver._overwrite = True
        assert (await bench.start(n_image=0))["status"] == "started"

    on_bench(test)


def test_a_dry_run_replies_and_changes_nothing(on_bench: OnBench):
    async def test(bench: Bench) -> None:
        wanted = {"path": str(bench.directory), "n_image": 3}
        reply = await bench.send(command="check", **wanted)
        assert (reply["command"], reply["status"], reply["run_id"]) == ("check", "idle", None)
        assert reply["needed_bytes"] > 0
        assert reply["planned_files"]["master"] == f"{bench.directory}/fileMaster.h5"
        refused = await bench.send(command="check", **wanted | {"path": "/absent"})
        assert (refused["command"], refused["error"]) == ("check", "path_not_usable")
        assert bench.client.states in ([], ["idle"])
        assert (bench.distributor.requests, bench.driver.n_refused) == ([], {})

    on_bench(test)


def test_dry_runs_at_a_time_are_limited(on_bench: OnBench, monkeypatch: pytest.MonkeyPatch):
    """A file system that hangs holds a thread for each."""
    checking = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        checking.wait(60)
        return []

    monkeypatch.setattr(driver_module, "check_start", hang)

    async def test(bench: Bench) -> None:
        clients = [Watching() for _ in range(driver_module.MAX_DRY_RUNS + 1)]
        frame = f'{{"command": "check", "path": "{bench.directory}"}}'
        waiting = [asyncio.create_task(bench.driver.receive(client, frame)) for client in clients]
        await waiting[-1]
        (refused,) = clients[-1].messages
        assert (refused["command"], refused["error"]) == ("check", "busy")
        checking.set()
        await asyncio.gather(*waiting)
        assert all(client.messages[0]["status"] == "idle" for client in clients[:-1])

    on_bench(test)
