"""Run a function where it may hang or crash without harm: in a thread, a forked or a spawned process.

A caller passes a function without arguments (`functools.partial` binds them) and a `timeout` in seconds.
It gets the function's result or its exception, `TimeoutError` after the timeout, or `CrashError` when the
process ended without an answer. Each call has its own thread or process, so one in which HDF5 failed is
never used again.

* `run_in_thread` keeps an asyncio loop responsive, and `start_in_thread` any other loop, which polls the
  result. A thread that hangs cannot be ended, only abandoned.
* `run_in_fork` starts within milliseconds and takes any function; for programs without threads.
* `run_in_process` starts a new Python interpreter (40 ms), which inherits no sockets and can act as another
  user. It takes functions that can be pickled; paths must be absolute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from stddaq.daemon.parent_death import end_with
from stddaq.daemon.service_manager import SIGN_OF_LIFE_PERIOD_S, service_manager
from stddaq.daemon.user_switch import drop_rights
from stddaq.errors import StdDaqError
from stddaq.text import mismatch

if TYPE_CHECKING:
    import subprocess
    from concurrent.futures import Future

    from stddaq.daemon.main import StopRequest

T = TypeVar("T")

MAX_ANSWER_BYTES = 64 * 2**20
# Time from SIGTERM, on which a function may remove incomplete files, to SIGKILL.
TERMINATION_TIMEOUT_S = 0.5
# Time from a signal to end the daemon to that SIGTERM: a daemon ends within 2 s.
STOP_TIMEOUT_S = 0.3


class CrashError(StdDaqError, RuntimeError):
    """The process of a function ended without an answer, usually by a crash inside HDF5."""


async def run_in_thread(function: Callable[[], T], timeout: float, where: str) -> T:
    """Run `function` in its own thread. `where` opens the message of the `TimeoutError`.

    After a timeout the thread continues and its result is dropped. The thread is a daemon: it delays neither
    the end of the loop nor that of the process.
    """
    # A spawned process imports this module and does not need it.
    import asyncio

    future = start_in_thread(function)
    result = asyncio.wrap_future(future)
    # asyncio would report the exception of a function that nobody waits for any more.
    result.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.shield(result)
    except TimeoutError:
        if future.done():
            raise  # The function itself raised it.
        raise TimeoutError(mismatch(where, f"an answer within {timeout:g} s", "none")) from None


def start_in_thread(function: Callable[[], T]) -> Future[T]:
    """Start `function` in its own thread, which does not delay the end of the process."""
    # A spawned process imports this module and needs neither.
    import threading
    from concurrent.futures import Future

    future: Future[T] = Future()
    threading.Thread(target=_fulfil, args=(future, function), daemon=True).start()
    return future


def run_in_fork(function: Callable[[], T], timeout: float, where: str, stop: StopRequest | None = None) -> T:
    """Run `function` in a fork of this process, which must have no threads that hold locks.

    After a signal to end this daemon (`stop`) the timeout is `STOP_TIMEOUT_S`.
    """
    read, write = os.pipe()
    caller = os.getpid()
    with warnings.catch_warnings():
        # Python warns of the idle threads of numerical libraries, which hold no locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            end_with(caller, signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _unblock_signals()
            os.close(read)
            _answer(function, write, timeout)
        finally:
            os._exit(1)
    os.close(write)
    return _Child(pid, read, timeout, where, stop=stop).result()


def run_in_process(
    function: Callable[[], T], timeout: float, where: str, *, uid: int = 0, memory_limit: int | None = None
) -> T:
    """Run `function` in a new interpreter, as user `uid` (0: as this process).

    The function is imported before the rights are dropped, because `uid` may be unable to read the
    installation. Callers check with `UserSwitch.check` whether `uid` is allowed. `memory_limit` is in bytes
    of address space.
    """
    return _spawn(function, timeout, where, uid, memory_limit).result()


async def run_in_process_async(
    function: Callable[[], T], timeout: float, where: str, *, uid: int = 0, memory_limit: int | None = None
) -> T:
    """Do the same as `run_in_process` for an asyncio loop. Cancelling it ends the process."""
    child = _spawn(function, timeout, where, uid, memory_limit)
    try:
        # The child's own timeout comes first.
        return await run_in_thread(child.result, timeout + 2 * TERMINATION_TIMEOUT_S + 1.0, where)
    finally:
        child.terminate()


def main() -> None:
    """Run the function that `run_in_process` sends on standard input: the entry point of the new process."""
    # Ctrl-C in a terminal reaches all its processes; the caller decides what happens to this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _unblock_signals()
    write = os.dup(1)
    os.dup2(2, 1)  # The output of libraries must not get into the answer.
    setup: _Setup = pickle.load(sys.stdin.buffer)
    if setup.memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (setup.memory_limit, setup.memory_limit))
    sys.path[:] = setup.path
    function = pickle.load(sys.stdin.buffer)
    if setup.uid:
        drop_rights(setup.uid)
    _answer(function, write, setup.timeout)


def _unblock_signals() -> None:
    # A daemon blocks its stop signals in the main thread, and a child inherits that.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


@dataclasses.dataclass(frozen=True, slots=True)
class _Setup:
    path: list[str]
    timeout: float
    uid: int
    memory_limit: int | None


def _spawn(
    function: Callable[[], T], timeout: float, where: str, uid: int, memory_limit: int | None
) -> _Child[T]:
    # Not at the top: many services never start another interpreter.
    import subprocess

    read, write = os.pipe()
    # A file in memory, unlike a pipe, takes a request of any size without blocking.
    with os.fdopen(os.memfd_create("request"), "w+b") as request:
        pickle.dump(_Setup(list(sys.path), timeout, uid, memory_limit), request)
        pickle.dump(function, request)
        request.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", "from stddaq.daemon.isolation import main; main()"],
                stdin=request,
                stdout=write,
                cwd="/",
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
    return _Child(process.pid, read, timeout, where, process)


class _Child(Generic[T]):
    """A process that runs one function, and the pipe on which its answer comes."""

    def __init__(
        self,
        pid: int,
        pipe: int,
        timeout: float,
        where: str,
        process: subprocess.Popen[bytes] | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self._pid, self._pipe, self._where, self._process, self._stop = pid, pipe, where, process, stop
        self._limit = f"an answer within {timeout:g} s"
        self._deadline = time.monotonic() + timeout
        self._exit_code: int | None = None

    def result(self) -> T:
        """Wait for the answer and end the process. Return the function's result or raise its exception."""
        try:
            answer = self._read()
        except BaseException:
            self.terminate()
            raise
        finally:
            os.close(self._pipe)
            self._end()
        if not answer:
            raise CrashError(mismatch(self._where, "an answer", f"none: its process {self._end_in_words()}"))
        try:
            succeeded, value = _AnswerUnpickler(io.BytesIO(answer)).load()
        except Exception as error:
            raise CrashError(mismatch(self._where, "an answer", f"one that is damaged: {error}")) from error
        if not succeeded:
            raise value
        return value

    def terminate(self) -> None:
        """Terminate the process, if it still runs; any thread may call it."""
        if self._exit_code is None:
            self._kill(signal.SIGTERM)

    def _read(self) -> bytes:
        answer = bytearray()
        poller = select.poll()  # select() refuses descriptors beyond 1023.
        poller.register(self._pipe, select.POLLIN)
        if self._stop:
            poller.register(self._stop, select.POLLIN)
        while ready := self._wait(poller):
            if self._stop and any(descriptor != self._pipe for descriptor, _ in ready):
                if self._stop.poll():
                    poller.unregister(self._stop)
                    self._shorten()
                continue
            part = os.read(self._pipe, 65536)
            if not part:
                return bytes(answer)
            answer += part
            if len(answer) > MAX_ANSWER_BYTES:
                raise CrashError(
                    mismatch(self._where, f"an answer of up to {MAX_ANSWER_BYTES} bytes", "more")
                )
        raise TimeoutError(mismatch(self._where, self._limit, "none"))

    def _wait(self, poller: select.poll) -> list[tuple[int, int]]:
        """Return what is readable; nothing after the deadline."""
        while (left := self._deadline - time.monotonic()) > 0:
            if ready := poller.poll(min(left, SIGN_OF_LIFE_PERIOD_S) * 1000):
                return ready
            if self._stop:  # The caller is the main loop of a service.
                service_manager.alive()
        return poller.poll(0)

    def _shorten(self) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        if deadline < self._deadline:
            self._deadline = deadline
            self._limit = f"an answer within {STOP_TIMEOUT_S:g} s of the signal to end this service"

    def _end(self) -> None:
        """Wait for the end of the process. Give up if a file system delays it beyond SIGKILL."""
        for _ in range(2):
            deadline = time.monotonic() + TERMINATION_TIMEOUT_S
            while time.monotonic() < deadline:
                if self._has_ended():
                    return
                time.sleep(0.002)
            self._kill(signal.SIGKILL)

    def _has_ended(self) -> bool:
        if self._process:
            self._exit_code = self._process.poll()
        elif self._exit_code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._exit_code = os.waitstatus_to_exitcode(status) if pid else None
        return self._exit_code is not None

    def _kill(self, with_signal: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process:
                self._process.send_signal(with_signal)
            else:
                os.kill(self._pid, with_signal)

    def _end_in_words(self) -> str:
        if self._exit_code is None:
            return "does not end"
        if self._exit_code >= 0:
            return f"ended with exit code {self._exit_code}"
        return f"was ended by {signal.Signals(-self._exit_code).name}"


def _fulfil(future: Future[T], function: Callable[[], T]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001  (it belongs to the caller)
        future.set_exception(error)


def _answer(function: Callable[[], object], pipe: int, timeout: float) -> NoReturn:
    """Send the function's result or exception, and exit without any clean-up of the parent's."""
    # This process ends at the timeout even if its caller was killed.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout + TERMINATION_TIMEOUT_S)
    try:
        answer = pickle.dumps((True, function()))
    except Exception as error:  # noqa: BLE001  (it belongs to the caller)
        answer = _pickled_exception(error)
    with open(pipe, "wb") as file:
        file.write(answer)
    os._exit(0)


def _pickled_exception(error: Exception) -> bytes:
    """Return the answer that raises `error`, or a RuntimeError in its place if that cannot be pickled."""
    try:
        answer = pickle.dumps((False, error))
        _AnswerUnpickler(io.BytesIO(answer)).load()
    except Exception:  # noqa: BLE001  (an exception's own methods run)
        substitute = RuntimeError(f"{type(error).__name__}: {error}")
        substitute.add_note("".join(traceback.format_exception(error)))
        return pickle.dumps((False, substitute))
    return answer


class _AnswerUnpickler(pickle.Unpickler):
    """Accepts only data, exceptions and dataclasses of stddaq, so that a hostile answer can run no code."""

    def find_class(self, module_name: str, name: str) -> Any:
        """Return the class `name`, unless an answer must not contain it."""
        if (module_name, name) in _PLAIN_CLASSES:
            return super().find_class(module_name, name)
        if "." not in name and (module_name == "builtins" or module_name.split(".")[0] == "stddaq"):
            found = super().find_class(module_name, name)
            if isinstance(found, type) and (issubclass(found, Exception) or dataclasses.is_dataclass(found)):
                return found
        raise pickle.UnpicklingError(f"{module_name}.{name} is not allowed in an answer")


_PLAIN_CLASSES = {
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
    ("numpy", "dtype"),
}
