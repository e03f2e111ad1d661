"""The order in which the supervisor starts, signals and kills services, with fake processes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from stddaq.cli.supervisor import child
from stddaq.cli.supervisor.spec import ServiceSpec
from stddaq.cli.supervisor.supervisor import Supervisor


class FakeProcess:
    """A process that exits on a signal in `obeys`, or when the test calls `exit`."""

    def __init__(self, name: str, log: list[str], obeys: Sequence[int], on_kill: Callable[[], None]) -> None:
        self.name, self.returncode, self.stdout = name, None, asyncio.StreamReader()
        self._log, self._obeys, self._on_kill = log, obeys, on_kill
        self._ended = asyncio.Event()

    def send_signal(self, signal: int) -> None:
        self._log.append(f"{_signal_name(signal)} {self.name}")
        if signal == _SIGKILL:
            self._on_kill()
        if signal in self._obeys:
            self.exit(0 if signal != _SIGKILL else -signal)

    def exit(self, code: int) -> None:
        self.returncode = code
        self.stdout.feed_eof()
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode


_SIGKILL = signal.SIGKILL


def _signal_name(number: int) -> str:
    return signal.Signals(number).name


class Machine:
    """Starts fake processes; the name of a service is its command."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.processes: dict[str, FakeProcess] = {}
        self.stubborn: set[str] = set()
        """Services that obey only SIGKILL."""
        self.on_kill: Callable[[], None] = lambda: None
        """Called at each SIGKILL."""

    async def start(self, command: Sequence[str]) -> FakeProcess:
        name = command[0]
        self.log.append(f"start {name}")
        obeys = {signal.SIGKILL, *(() if name in self.stubborn else (signal.SIGTERM, signal.SIGUSR1))}
        self.processes[name] = FakeProcess(name, self.log, tuple(obeys), self.on_kill)
        return self.processes[name]

    async def started(self, name: str, n: int = 1) -> FakeProcess:
        """Return the process after its `n`th start."""
        await until(lambda: self.log.count(f"start {name}") >= n)
        return self.processes[name]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


def spec(name: str, records: bool = False, conducts: bool = False) -> ServiceSpec:
    return ServiceSpec(name, (name,), "", records=records, conducts=conducts)


SOURCE, DRIVER = spec("simulate", records=True), spec("driver", conducts=True)
WRITERS = [spec("writer 0", records=True), spec("writer 1", records=True)]


@pytest.fixture
def machine() -> Machine:
    return Machine()


def run(
    machine: Machine,
    specs: Sequence[ServiceSpec],
    follow: Callable[[Supervisor], object] | None,
    delays: Sequence[float] = (0.0, 0.0),
) -> int:
    """Run a supervisor on `machine` until `follow` returns."""
    return asyncio.run(Supervisor(specs, delays, machine.start).run(lambda: "ready", follow))  # pyright: ignore


async def at_once(_: Supervisor) -> None:
    """End when all services are ready."""


def test_receivers_start_first_and_sources_end_first(machine: Machine):
    assert run(machine, [SOURCE, DRIVER, *WRITERS], at_once) == 0
    assert machine.log == [
        *("start writer 1", "start writer 0", "start driver", "start simulate"),
        *("SIGTERM simulate", "SIGTERM driver", "SIGTERM writer 0", "SIGTERM writer 1"),
    ]


def test_a_service_that_keeps_crashing_ends_all(machine: Machine, capsys: pytest.CaptureFixture[str]):
    async def crash(_: Supervisor) -> None:
        for n in range(1, 4):
            (await machine.started("driver", n)).exit(1)
        await asyncio.Event().wait()

    assert run(machine, [SOURCE, DRIVER], crash) == 1
    assert machine.log.count("start driver") == 3
    assert machine.log[-1] == "SIGTERM simulate"
    assert "driver ended with exit code 1, 3 times within 60 s; ending" in capsys.readouterr().out


def test_a_service_that_does_not_exit_is_killed_and_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(child, "END_TIMEOUT_S", 0.01)
    machine.stubborn.add("driver")
    # The others end at once, but not always within 10 ms.
    machine.on_kill = lambda: monkeypatch.setattr(child, "END_TIMEOUT_S", 60.0)
    assert run(machine, [DRIVER, *WRITERS], at_once) == 0
    assert machine.log[3:] == ["SIGTERM driver", "SIGKILL driver", "SIGTERM writer 0", "SIGTERM writer 1"]
    assert "driver does not end within 0.01 s of SIGTERM; killing it" in capsys.readouterr().out


def test_the_second_sigint_kills_without_waiting(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child, "END_TIMEOUT_S", 60.0)
    machine.stubborn.add("driver")

    async def interrupt_twice(_: Supervisor) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await until(lambda: "SIGTERM driver" in machine.log)

    async def interrupt_again() -> int:
        supervisor = Supervisor([DRIVER, *WRITERS], (), machine.start)
        running = asyncio.create_task(supervisor.run(lambda: "ready", interrupt_twice))
        await until(lambda: "SIGTERM driver" in machine.log)
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(60):
            return await running

    assert asyncio.run(interrupt_again()) == 0
    assert machine.log[3:] == ["SIGTERM driver", "SIGKILL driver", "SIGKILL writer 0", "SIGKILL writer 1"]


def test_a_change_waits_for_the_driver_and_starts_it_with_the_changed_writer(machine: Machine):
    changed = [WRITERS[0], replace(WRITERS[1], start_up="other")]

    async def change(supervisor: Supervisor) -> None:
        await supervisor.change_to([SOURCE, DRIVER, *changed])

    assert run(machine, [SOURCE, DRIVER, *WRITERS], change) == 0
    assert machine.log[4:8] == ["SIGUSR1 driver", "SIGTERM writer 1", "start writer 1", "start driver"]


def test_ending_while_a_change_waits_for_a_run_ends_the_driver_too(machine: Machine):
    async def run_and_end() -> int:
        supervisor = Supervisor([DRIVER, *WRITERS], (), machine.start)
        machine.stubborn.add("driver")
        running = asyncio.create_task(
            supervisor.run(lambda: "ready", lambda s: s.change_to([DRIVER, WRITERS[0]]))
        )
        await until(lambda: "SIGUSR1 driver" in machine.log)
        machine.processes["driver"]._obeys = (signal.SIGTERM,)
        os.kill(os.getpid(), signal.SIGTERM)
        return await running

    assert asyncio.run(run_and_end()) == 0
    assert machine.log[3:] == ["SIGUSR1 driver", "SIGTERM driver", "SIGTERM writer 0", "SIGTERM writer 1"]


def test_lines_of_services_follow_their_names(machine: Machine, capsys: pytest.CaptureFixture[str]):
    async def write(_: Supervisor) -> None:
        (await machine.started("driver")).stdout.feed_data(b"one\ntwo \xff\n")
        await until(lambda: "two" in seen())

    text = ""

    def seen() -> str:
        nonlocal text
        text += capsys.readouterr().out
        return text

    assert run(machine, [DRIVER, WRITERS[0]], write) == 0
    assert "driver   | one\n" in text
    assert "driver   | two \N{REPLACEMENT CHARACTER}\n" in text


def test_a_service_whose_start_is_pending_is_ended_as_soon_as_it_has_started(machine: Machine):
    started = asyncio.Event()

    async def start_slowly(command: Sequence[str]) -> FakeProcess:
        await started.wait()
        return await machine.start(command)

    async def end_before_the_start() -> int:
        supervisor = Supervisor([DRIVER], (), start_slowly)
        running = asyncio.create_task(supervisor.run(lambda: "ready", at_once))
        await until(lambda: supervisor._children[0].is_ending)
        started.set()
        return await running

    assert asyncio.run(end_before_the_start()) == 0
    assert machine.log == ["start driver", "SIGTERM driver"]


def test_a_service_that_the_system_cannot_start_is_tried_again(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    failures = [BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))]

    async def start(command: Sequence[str]) -> FakeProcess:
        if command[0] == "driver" and failures:
            raise failures.pop()
        return await machine.start(command)

    async def wait_for_the_driver(_: Supervisor) -> None:
        await machine.started("driver")

    supervisor = Supervisor([DRIVER, *WRITERS], (0.0,), start)
    assert asyncio.run(supervisor.run(lambda: "ready", wait_for_the_driver)) == 0
    assert machine.log.count("start driver") == 1
    assert "driver cannot be started: Resource temporarily unavailable" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["_publish", "_send_events", "_write"])
def test_a_defect_ends_all_services_and_is_raised(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, part: str
):
    def fail(*_: object) -> None:
        raise KeyError("defect")

    async def fail_later(_: Supervisor) -> None:
        fail()

    async def print_a_line(_: Supervisor) -> None:
        (await machine.started("driver")).stdout.feed_data(b"a line\n")
        await asyncio.Event().wait()

    monkeypatch.setattr(Supervisor, part, fail if part == "_write" else fail_later)

    async def limited() -> None:
        async with asyncio.timeout(60):
            await Supervisor([DRIVER, *WRITERS], (0.0,), machine.start).run(lambda: "ready", print_a_line)

    with pytest.raises(KeyError, match="defect"):
        asyncio.run(limited())
    assert "SIGTERM driver" in machine.log
