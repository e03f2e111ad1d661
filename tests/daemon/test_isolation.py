"""Functions that hang, crash or return too much, in a thread, a fork and a new interpreter."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from stddaq.daemon import isolation
from stddaq.daemon.isolation import (
    CrashError,
    run_in_fork,
    run_in_process,
    run_in_process_async,
    run_in_thread,
)
from stddaq.daemon.user_switch import UserSwitchError
from stddaq.errors import ConfigError, FileLayoutError

LONG_S = 30.0

IN_PROCESS = pytest.mark.parametrize("run", [run_in_fork, run_in_process], ids=["fork", "process"])
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop rights")


def raise_error(error: Exception) -> None:
    raise error


@IN_PROCESS
def test_result_comes_back(run: Callable[..., object]) -> None:
    assert run(partial(divmod, 7, 3), LONG_S, "seven") == (2, 1)


@IN_PROCESS
def test_function_runs_in_another_process(run: Callable[..., object]) -> None:
    assert run(os.getpid, LONG_S, "pid") != os.getpid()


@IN_PROCESS
def test_exception_of_the_function_comes_back(run: Callable[..., object]) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        run(partial(os.stat, "/no/such/file"), LONG_S, "file")
    assert caught.value.filename == "/no/such/file"


@pytest.mark.parametrize("error", [FileLayoutError("a.h5: short"), ConfigError("two", ["one", "two"])])
def test_errors_of_stddaq_keep_their_type_and_attributes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        run_in_fork(lambda: raise_error(error), LONG_S, "file")
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)


def test_exceptions_of_other_packages_become_runtime_errors_that_name_them() -> None:
    class OddError(Exception):
        pass

    with pytest.raises(RuntimeError, match=r"^OddError: strange\b") as caught:
        run_in_fork(lambda: raise_error(OddError("strange")), LONG_S, "file")
    assert "raise_error" in "".join(caught.value.__notes__)


@IN_PROCESS
def test_crash_is_named_by_its_signal(run: Callable[..., object]) -> None:
    with pytest.raises(CrashError, match=r"^a\.h5: expected an answer, got none: .* was ended by SIGSEGV$"):
        run(partial(signal.raise_signal, signal.SIGSEGV), LONG_S, "a.h5")


@IN_PROCESS
def test_early_exit_is_named_by_its_code(run: Callable[..., object]) -> None:
    with pytest.raises(CrashError, match=r"ended with exit code 3$"):
        # Not `os._exit` itself, which coverage replaces by a function that cannot be pickled.
        run(partial(exec, "import os; os._exit(3)"), LONG_S, "a.h5")


@IN_PROCESS
def test_process_that_hangs_is_ended_at_the_timeout(run: Callable[..., object]) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^a\.h5: expected an answer within 0\.5 s, got none$"):
        run(partial(time.sleep, LONG_S), 0.5, "a.h5")
    assert time.monotonic() - started < LONG_S / 2


def test_fork_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    def hang() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(LONG_S)

    # On a busy machine a fork may be ended before it ignores the signal.
    pid, timeout = tmp_path / "pid", 0.5
    while not (pid.exists() and pid.read_text()):
        with pytest.raises(TimeoutError):
            run_in_fork(hang, timeout, "a.h5")
        timeout *= 4
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_timeout_error_of_the_function_itself_comes_back() -> None:
    with pytest.raises(TimeoutError, match=r"^its own$"):
        run_in_fork(lambda: raise_error(TimeoutError("its own")), LONG_S, "a.h5")


def test_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "MAX_ANSWER_BYTES", 1000)
    with pytest.raises(CrashError, match="expected an answer of up to 1000 bytes, got more"):
        run_in_fork(lambda: b"x" * 2000, LONG_S, "a.h5")


@pytest.mark.parametrize("name", ["system", "getpid"])
def test_answer_cannot_run_code_of_the_caller(name: str) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
            return getattr(os, name), ("true",)[: name == "system"]

    with pytest.raises(CrashError, match="is not allowed in an answer"):
        run_in_fork(Hostile, LONG_S, "a.h5")


def test_output_of_the_function_does_not_get_into_the_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_in_process(partial(os.system, "echo printed"), LONG_S, "a.h5") == 0
    assert capfd.readouterr().err == "printed\n"


def test_new_interpreter_inherits_no_sockets() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        run_in_process(partial(os.fstat, write), LONG_S, "a.h5")
    os.close(read)
    os.close(write)


def test_request_may_be_larger_than_a_pipe() -> None:
    assert run_in_process(partial(len, b"x" * 10**6), LONG_S, "a.h5") == 10**6


def test_memory_limit_holds_for_the_function() -> None:
    limit = 2 * 2**30
    limits = run_in_process(
        partial(resource.getrlimit, resource.RLIMIT_AS), LONG_S, "a.h5", memory_limit=limit
    )
    assert limits == (limit, limit)
    with pytest.raises(MemoryError):
        run_in_process(partial(bytearray, 2 * limit), LONG_S, "a.h5", memory_limit=limit)


@needs_root
def test_rights_are_dropped_for_good(tmp_path: Path) -> None:
    assert run_in_process(os.getresuid, LONG_S, "a.h5", uid=12345) == (12345,) * 3
    assert run_in_process(os.getresgid, LONG_S, "a.h5", uid=12345) == (12345,) * 3
    with pytest.raises(PermissionError):
        run_in_process(partial(os.setuid, 0), LONG_S, "a.h5", uid=12345)
    tmp_path.chmod(0o755)
    with pytest.raises(PermissionError):
        run_in_process(partial(os.mkdir, tmp_path / "new"), LONG_S, "a.h5", uid=12345)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can drop rights")
def test_rights_that_cannot_be_dropped_are_refused() -> None:
    with pytest.raises(PermissionError):
        run_in_process(os.getuid, LONG_S, "a.h5", uid=os.geteuid() + 1)


def test_thread_gives_result_and_exception() -> None:
    async def use() -> None:
        assert await run_in_thread(threading.get_ident, LONG_S, "x") != threading.get_ident()
        with pytest.raises(UserSwitchError, match=r"^refused$"):
            await run_in_thread(lambda: raise_error(UserSwitchError("refused")), LONG_S, "x")
        with pytest.raises(TimeoutError, match=r"^its own$"):
            await run_in_thread(lambda: raise_error(TimeoutError("its own")), LONG_S, "x")

    asyncio.run(use())


def test_thread_that_hangs_is_abandoned_at_the_timeout() -> None:
    release = threading.Event()

    async def use() -> None:
        with pytest.raises(TimeoutError, match=r"^/data: expected an answer within 0\.05 s, got none$"):
            await run_in_thread(release.wait, 0.05, "/data")

    asyncio.run(use())
    release.set()


def test_the_exception_of_an_abandoned_thread_is_not_reported() -> None:
    started, release = threading.Event(), threading.Event()
    threads, reported = [], []

    def fail() -> None:
        threads.append(threading.current_thread())
        started.set()
        release.wait()
        raise_error(UserSwitchError("too late"))

    async def use() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
        with pytest.raises(TimeoutError):
            await run_in_thread(fail, 0.05, "/data")
        await asyncio.to_thread(started.wait, LONG_S)
        release.set()
        await asyncio.to_thread(threads[0].join, LONG_S)
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(use())
    assert reported == []


def test_process_of_an_asyncio_caller_gives_result_timeout_and_crash() -> None:
    async def use() -> None:
        assert await run_in_process_async(partial(divmod, 7, 3), LONG_S, "x") == (2, 1)
        with pytest.raises(TimeoutError, match=r"within 0\.5 s"):
            await run_in_process_async(partial(time.sleep, LONG_S), 0.5, "x")
        with pytest.raises(CrashError, match="SIGKILL"):
            await run_in_process_async(partial(signal.raise_signal, signal.SIGKILL), LONG_S, "x")

    asyncio.run(use())


def test_cancelled_process_is_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"import os, time; open({str(pid_file)!r}, 'w').write(f'{{os.getpid()}} '); time.sleep({LONG_S})"

    async def use() -> int:
        task = asyncio.create_task(run_in_process_async(partial(exec, script), LONG_S, "x"))
        while not (pid_file.exists() and pid_file.read_text().endswith(" ")):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pid = int(pid_file.read_text())
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)
        return pid

    assert asyncio.run(asyncio.wait_for(use(), LONG_S / 2)) != os.getpid()
