"""What a driver does when a writer, a file system, a request or its own code fails."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from support.peers.driver_bench import Bench, OnBench

from stddaq.writing.driver import driver as driver_module
from stddaq.writing.driver import writers as writers_module


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
    monkeypatch.setattr(driver_module, "check_start", lambda *_, **__: responds.wait(60))
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
