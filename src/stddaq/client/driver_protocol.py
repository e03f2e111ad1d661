"""The client's side of the driver's WebSocket messages, without I/O.

`DriverProtocol` receives statuses and fulfils `Expectation`s; a subclass per kind of driver finds the answer
to a command. stddaq's driver replies to each command and names its runs; other drivers send only `status`,
`count` and `reason`, and may skip states between two statuses.
"""

from __future__ import annotations

import contextlib
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator

from stddaq.client.errors import (
    CommandRefusedError,
    ConnectionLostError,
    DriverBusyError,
    DriverError,
    UnsupportedError,
)
from stddaq.client.status import BUSY_STATES, DriverStatus, StatusQueue


class Expectation:
    """A status that is waited for: the first that fulfils a condition, or the error that ends the wait."""

    def __init__(self, condition: Callable[[DriverStatus], bool]) -> None:
        self._condition = condition
        self.status: DriverStatus | None = None
        self.error: Exception | None = None
        self.notify: Callable[[], None] | None = None
        """Called once, when `status` or `error` is set."""

    @property
    def is_over(self) -> bool:
        """Whether `status` or `error` is set."""
        return self.status is not None or self.error is not None

    def observe(self, status: DriverStatus) -> None:
        """Take `status` if it fulfils the condition."""
        if self.is_over:
            return
        try:
            fulfilled = self._condition(status)
        except Exception as error:  # noqa: BLE001 - the caller's error; it must not end the reading task
            self.fail(error)
            return
        if fulfilled:
            self.fulfil(status)

    def fulfil(self, status: DriverStatus) -> None:
        """End the wait with `status`."""
        if not self.is_over:
            self.status = status
            self._end()

    def fail(self, error: Exception) -> None:
        """End the wait with `error`."""
        if not self.is_over:
            self.error = error
            self._end()

    def _end(self) -> None:
        if self.notify is not None:
            self.notify()


class FollowedRun:
    """The course of one run, as observed by this client."""

    def __init__(self, run_id: str | None, is_own: bool = True) -> None:
        """`is_own`: this client started the run."""
        self.run_id = run_id
        self.is_own = is_own
        self.ready: DriverStatus | None = None
        """The first status that says that images are recorded, or that the run is over."""
        self.ended: DriverStatus | None = None
        """The last status of the run, or the first one after it."""

    def covers(self, status: DriverStatus) -> bool:
        """Return whether `status` is about this run."""
        return status.run_id == self.run_id and status.status != "idle"

    def observe(self, status: DriverStatus) -> None:
        """Take the next status into account."""
        if self.ended is not None:
            return
        if not self.covers(status) or status.is_end:
            # `idle` or another run: the driver did not send the end itself.
            self.ended = status
            self.ready = self.ready or status
        elif status.has_reached("waiting_for_first_image"):
            self.ready = self.ready or status


class StatusFeed:
    """The statuses that one watcher has not read yet, with all changes of state, until the run ends."""

    def __init__(self, first: DriverStatus, run: FollowedRun | None = None) -> None:
        """Without `run` the feed has no end."""
        self._queue = StatusQueue()
        self._queue.put(first)
        self._run = run
        self.is_over = False
        self.error: ConnectionLostError | None = None
        self.notify: Callable[[], None] | None = None
        """Called for every status and for the error."""

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, status: DriverStatus) -> None:
        """Add a status."""
        self._queue.put(status)
        if self.notify is not None:
            self.notify()

    def fail(self, error: ConnectionLostError) -> None:
        """End the feed with `error`, after the statuses that it still holds."""
        self.error = error
        if self.notify is not None:
            self.notify()

    def get(self) -> DriverStatus:
        """Return the oldest status. Raise IndexError when there is none."""
        status = self._queue.get()
        if self._run is not None and (status.is_end or not self._run.covers(status)):
            self.is_over = True
            return self._run.ended or status
        return status


class DriverHistory:
    """What is known about a driver across connections: its latest status, the followed run, all waits."""

    def __init__(self) -> None:
        self.latest: DriverStatus | None = None
        self.run: FollowedRun | None = None
        self._expectations: set[Expectation] = set()
        self._feeds: weakref.WeakSet[StatusFeed] = weakref.WeakSet()
        self._awaited: set[StatusFeed] = set()

    def expect(self, condition: Callable[[DriverStatus], bool]) -> Expectation:
        """Return an expectation that sees every status from now on, until `forget`."""
        expectation = Expectation(condition)
        self._expectations.add(expectation)
        return expectation

    def forget(self, expectation: Expectation) -> None:
        """Drop an expectation that nothing waits for any more."""
        expectation.notify = None
        self._expectations.discard(expectation)

    def feed(self, run: FollowedRun | None = None) -> StatusFeed:
        """Return a feed of statuses, from the latest on. It is fed while it is referenced."""
        assert self.latest is not None
        feed = StatusFeed(self.latest, run)
        self._feeds.add(feed)
        return feed

    @contextlib.contextmanager
    def kept(self, feed: StatusFeed) -> Iterator[None]:
        """Keep alive the feed, and the task that waits for it, which the event loop does not."""
        self._awaited.add(feed)
        try:
            yield
        finally:
            self._awaited.discard(feed)

    def current_run(self) -> FollowedRun | None:
        """Return the run that this client started last, or else the run in progress; None without either."""
        if self.run is not None and (self.run.is_own or self.run.ended is None):
            return self.run
        if self.latest is not None and self.latest.is_busy:
            self.run = FollowedRun(self.latest.run_id, is_own=False)
            self.run.observe(self.latest)
        return self.run

    def receive_state(self, status: DriverStatus) -> None:
        """Receive a status that says what the driver is doing."""
        self.latest = status
        if self.run is not None:
            self.run.observe(status)
        for feed in tuple(self._feeds):
            feed.put(status)

    def receive_answer(self, status: DriverStatus) -> None:
        """Give a status to everything that is expected."""
        for expectation in tuple(self._expectations):
            expectation.observe(status)

    def fail(self, lost: ConnectionLostError) -> None:
        """End every wait and feed with `lost`."""
        for expectation in tuple(self._expectations):
            expectation.fail(lost)
        for feed in tuple(self._feeds):
            feed.fail(lost)


class DriverProtocol(ABC):
    """Commands to one driver, over one connection. Each returns what answers it; the caller sends them."""

    def __init__(self, history: DriverHistory) -> None:
        self.history = history

    @abstractmethod
    def receive(self, status: DriverStatus) -> None:
        """Receive the next status of the connection."""

    @abstractmethod
    def connection_lost(self, lost: ConnectionLostError) -> None:
        """End the commands that wait for an answer over this connection."""

    @abstractmethod
    def settled(self) -> Expectation | None:
        """Return what to wait for before `start`, so that its answer is recognised; None: nothing."""

    @abstractmethod
    def start(self) -> Expectation:
        """Expect the answer to `start`; from its admission on the new run is followed."""

    @abstractmethod
    def stop(self) -> Expectation:
        """Expect the answer to `stop`."""

    @abstractmethod
    def status(self) -> tuple[Expectation, bool]:
        """Expect a status newer than this call, and return whether the command `status` has to be sent."""

    @abstractmethod
    def request(self, command: str) -> Expectation:
        """Expect the answer to a command of stddaq's driver. Raise `UnsupportedError` with another driver."""

    @property
    @abstractmethod
    def keeps_accounts(self) -> bool:
        """Whether the driver keeps the account of its last run."""


class ReplyingDriver(DriverProtocol):
    """stddaq's driver: a reply names its command, and replies come in the order of the commands."""

    def __init__(self, history: DriverHistory) -> None:
        super().__init__(history)
        # An abandoned answer keeps its place, so that its late reply is not mistaken for
        # that of a later command.
        self._unanswered: dict[str, deque[Expectation]] = {}

    def receive(self, status: DriverStatus) -> None:
        is_refusal = "error" in status.raw
        command = status.raw.get("command")
        if is_refusal or command is not None:
            self._receive_reply(command, status, is_refusal)
        # A refusal says nothing about the state of the driver.
        if not is_refusal and status.status != "rejected":
            self.history.receive_state(status)
        if not is_refusal:
            self.history.receive_answer(status)

    def _receive_reply(self, command: object, status: DriverStatus, is_refusal: bool) -> None:
        if not isinstance(command, str):
            # The driver could not read the command. If only one waits, it is that one.
            waiting = [name for name, answers in self._unanswered.items() if answers]
            command = waiting[0] if len(waiting) == 1 else ""
        answers = self._unanswered.get(command)
        if not answers:
            return
        answers.popleft().fulfil(status)
        if command == "start" and not is_refusal:
            # Before the next status is received, so that the end of the run cannot be missed.
            self.history.run = FollowedRun(status.run_id)

    def connection_lost(self, lost: ConnectionLostError) -> None:
        for answers in self._unanswered.values():
            for answer in answers:
                answer.fail(lost)
        self._unanswered.clear()

    def settled(self) -> None:
        return None

    def start(self) -> Expectation:
        return self.request("start")

    def stop(self) -> Expectation:
        return self.request("stop")

    def status(self) -> tuple[Expectation, bool]:
        return self.request("status"), True

    def request(self, command: str) -> Expectation:
        answer = Expectation(lambda _: False)
        self._unanswered.setdefault(command, deque()).append(answer)
        return answer

    @property
    def keeps_accounts(self) -> bool:
        return True


class BasicDriver(DriverProtocol):
    """A driver that does not mark its answers: they are recognised by the states that they can have."""

    def receive(self, status: DriverStatus) -> None:
        if status.status != "rejected":  # A rejection says nothing about the state of the driver.
            self.history.receive_state(status)
        self.history.receive_answer(status)

    def connection_lost(self, lost: ConnectionLostError) -> None:
        """Do nothing: the next connection's statuses answer as well."""

    def settled(self) -> Expectation | None:
        latest = self.history.latest
        if latest is None or latest.is_busy or latest.status == "idle":
            return None
        # It leaves `file_saved` and `error` by itself.
        return self.history.expect(lambda status: status.status == "idle")

    def start(self) -> Expectation:
        was_busy = self.history.latest is not None and self.history.latest.is_busy
        begins = {"started", "creating_file"} if was_busy else BUSY_STATES
        answers = {"rejected", "error", "file_saved", *begins}
        # The run is followed from its first status on, so that none is missed.
        run = FollowedRun(None)

        def is_answer(status: DriverStatus) -> bool:
            if status.status not in answers:
                return False
            if status.status not in ("rejected", "error"):
                run.observe(status)
                self.history.run = run
            return True

        return self.history.expect(is_answer)

    def stop(self) -> Expectation:
        return self.history.expect(lambda _: True)

    def status(self) -> tuple[Expectation, bool]:
        return self.history.expect(lambda _: True), False

    def request(self, command: str) -> Expectation:
        raise UnsupportedError(f"the driver does not know the command {command}: it is not stddaq's")

    @property
    def keeps_accounts(self) -> bool:
        return False


def protocol_for(first: DriverStatus, history: DriverHistory) -> DriverProtocol:
    """Return the protocol of the driver that sent `first` when it was connected to."""
    return ReplyingDriver(history) if first.is_stddaq else BasicDriver(history)


def refusal(status: DriverStatus) -> DriverError | None:
    """Return the error that an answer to a command means; None when the command was carried out."""
    if status.status == "rejected" or status.raw.get("error") == "busy":
        detail = status.raw.get("detail")
        return DriverBusyError("busy", str(detail or status.reason or "the driver is busy"))
    if status.status == "error" and ("error" in status.raw or "command" not in status.raw):
        reason = status.reason or "the driver gives no reason"
        return CommandRefusedError(str(status.raw.get("error", "unknown")), reason)
    return None
