"""Services as forks of a process that has imported everything: ready after 30 ms instead of a second.

Imports took half the time of the tests. A fork runs the same `main` of the same console script, with an
environment and an exit code of its own, and so do the services that `stddaq up` starts. Other tests start the
commands themselves (`house/test_house.py`, `daemon/test_refusals.py`), and so does `stddaq demo`.

In these services `isolation.run_in_process`, which the requests for files and the repair use, forks as well.
Its interpreters are started by `daemon/test_isolation.py`, and by services that are not `preloaded`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import EntryPoints, distribution
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NoReturn, TextIO

from stddaq.daemon import isolation
from stddaq.dataplane import connections

# The slow imports. With OPENBLAS_NUM_THREADS=1 none of them starts a thread, which a fork would lose.
IMPORTS = (
    "stddaq.cli.supervisor.supervisor",
    "stddaq.cli.up",
    "stddaq.files.info",
    "stddaq.processing.gf_filter",
    "stddaq.sources.bsread.camera_server",
    "stddaq.sources.bsread.receiver",
    "stddaq.sources.replay",
    "stddaq.sources.simulated.service",
    "stddaq.cli.record",
    "stddaq.streaming.service",
    "stddaq.udp.conversion",
    "stddaq.web.app",
    "stddaq.web.service",
    "stddaq.writing.driver.service",
    "stddaq.writing.writer.meta_service",
    "stddaq.writing.writer.service",
    "support.processes.compiled_code",
    "support.processes.preloaded",
    "uvicorn",
)
# In the environment of a driver: it keeps writers that stand still on a busy machine. Otherwise it drops them
# after 1.4 s.
PATIENT = "DRIVER_OF_TESTS_IS_PATIENT"
PATIENCE_MS = 60_000
# Of the interpreter that `isolation.run_in_process` starts.
INTERPRETER_CODE = "from stddaq.daemon.isolation import main; main()"
assert INTERPRETER_CODE in Path(isolation.__file__).read_text(), "isolation.py: expected INTERPRETER_CODE"


class PreloadedProcess:
    """The part of `subprocess.Popen` that `Service` needs, for a command that `is_forkable`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> None:
        self._command = command
        context = _context()
        (stdout, child_stdout), (stderr, child_stderr) = context.Pipe(False), context.Pipe(False)
        self._process = context.Process(
            target=_carry_out, args=(list(command), dict(env), cwd, child_stdout, child_stderr)
        )
        self._process.start()
        child_stdout.close()
        child_stderr.close()
        self.stdout, self.stderr = _reader(stdout), _reader(stderr)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(list(self._command), timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def is_forkable(command: Sequence[str]) -> bool:
    """Return whether a command is a console script of stddaq, or `python -P FILE ...` with this Python."""
    return list(command[:2]) == [sys.executable, "-P"] or is_console_script(command[0])


def is_console_script(command: str) -> bool:
    """Return whether a command is a console script of stddaq."""
    path = Path(command)
    return path.parent == Path(sys.executable).parent and path.name in _scripts().names


@cache
def _scripts() -> EntryPoints:
    return distribution("stddaq").entry_points.select(group="console_scripts")


@cache
def _context() -> ForkServerContext:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTS))
    return context


def _reader(connection: Connection) -> TextIO:
    file = os.fdopen(os.dup(connection.fileno()), errors="replace")
    connection.close()
    return file


def _carry_out(
    command: list[str], env: dict[str, str], cwd: Path | None, stdout: Connection, stderr: Connection
) -> None:
    """Run the command in the fork."""
    os.environ.clear()
    os.environ.update(env)
    if cwd:
        os.chdir(cwd)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (stdout.fileno(), 1), (stderr.fileno(), 2)):
        os.dup2(source, target)
    os.close(nothing)
    stdout.close()
    stderr.close()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    _start_services_as_forks()
    if is_console_script(command[0]):
        # Programs of the tests change modules in their process only.
        subprocess.Popen = _PopenOfForks  # pyright: ignore[reportAttributeAccessIssue]
    # At its exit the interpreter would visit every object of numba, which takes 0.5 s.
    gc.freeze()
    sys.exit(_run(command))


def _run(command: list[str]) -> int | None:
    _show_command(command)
    if command[0] == sys.executable:
        sys.argv, sys.orig_argv = command[2:], command
        runpy.run_path(command[2], run_name="__main__")
        return 0
    if Path(command[0]).name == "std_det_driver" and PATIENT in os.environ:
        connections.HEARTBEAT_TIMEOUT_MS = PATIENCE_MS
    sys.argv = command
    # The command with which the service replaces its process.
    sys.orig_argv = [sys.executable, *command]
    return _scripts()[Path(command[0]).name].load()()


def _show_command(command: Sequence[str]) -> None:
    """Let /proc show `command` as this process's command line, as far as there is room."""
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    text = b"\0".join(map(os.fsencode, command))[: end - begin - 1]
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


def _start_services_as_forks() -> None:
    """Let `stddaq up`, in this process, start console scripts as forks of this process."""
    start = asyncio.create_subprocess_exec

    async def start_as_fork(
        *command: str, preexec_fn: Callable[[], None], **how: Any
    ) -> asyncio.subprocess.Process:
        words = list(command)
        if words[:3] == [sys.executable, "-m", "stddaq"]:
            words = [str(Path(sys.executable).with_name("stddaq")), *words[3:]]
        if is_console_script(words[0]):
            preexec_fn = partial(_become, words, preexec_fn)
        return await start(*command, preexec_fn=preexec_fn, **how)

    asyncio.create_subprocess_exec = start_as_fork


class _PopenOfForks(subprocess.Popen):
    """Lets `isolation.run_in_process`, in this process, carry out functions in forks of this process.

    A request for a small file takes 0.03 s then; its interpreter would import modules for 0.7 s.
    """

    def __init__(self, args: Any, *more: Any, **how: Any) -> None:
        if isinstance(args, list) and args[-1] == INTERPRETER_CODE:
            how["preexec_fn"] = partial(_become, args, lambda: None, isolation.main)
        super().__init__(args, *more, **how)


def _become(
    command: list[str], preexec_fn: Callable[[], None], run: Callable[[], object] | None = None
) -> NoReturn:
    """Run `command`, or `run` in its place, between fork and exec, and exit."""
    code: object = 1
    try:
        preexec_fn()
        # Among them the pipe whose end tells `subprocess.Popen` that the command runs.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # As Python does at its start; `subprocess` has restored the default for a program.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        # The descriptor outlives the object, which a fork of this process replaces.
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        code = run() if run else _run(command)
    except SystemExit as exited:
        code = exited.code
    except BaseException:  # noqa: BLE001  (what an interpreter does)
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
