"""The driver's status messages: their content, their recipients, and their frequency."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from stddaq.wire.driver_messages import STATUS_PERIOD_S
from stddaq.writing.driver.requester import ANYONE, Requester
from stddaq.writing.driver.state import State, StateMachine
from stddaq.writing.driver.writers import Writers

# A status that says that all images so far are readable takes 0.1 ms for each client.
PROGRESS_SPACING_S = 0.002
# The delay of the C++ driver. Clients that send a command within it expect the reply as first message.
GREETING_DELAY_S = 0.1
_STATES_WITH_COUNT = frozenset(
    {State.RECORDING, State.STOP, State.SAVING_FILE, State.FILE_SAVED, State.ERROR}
)


class Client(Protocol):
    """A connected client.

    Attributes:
        requester: the client as a user of this machine.
    """

    requester: Requester = ANYONE

    def send(self, message: str, state: object = None) -> None:
        """Send one JSON object without waiting.

        `state` marks a status: of the statuses that the client has not taken yet, only the newest of each
        state is kept.
        """
        ...


class Scheduler(Protocol):
    """The part of an asyncio loop that paces messages."""

    def time(self) -> float:
        """Return the time in seconds."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> object:
        """Call `callback` after `delay` seconds."""
        ...


class Watchers:
    """The clients that are connected, each of which receives every status message."""

    def __init__(self, compose: Callable[[], dict[str, Any]], scheduler: Scheduler) -> None:
        """`compose` returns the current status message."""
        self._compose, self._scheduler = compose, scheduler
        self._clients: set[Client] = set()
        self._new: set[Client] = set()
        self._notified_at = self._sent_at = -math.inf
        self._is_scheduled = False
        self._is_periodic = False
        # The last message that all clients received, also encoded.
        self._message: dict[str, Any] = {}
        self._frame = ""

    def __len__(self) -> int:
        return len(self._clients) + len(self._new)

    def add(self, client: Client, *, at_once: bool) -> None:
        """Send the status to a new client, at once or after 0.1 s, and all further ones."""
        self._new.add(client)
        if at_once:
            self._greet(client)
        else:
            self._scheduler.call_later(GREETING_DELAY_S, lambda: self._greet(client))

    def _greet(self, client: Client) -> None:
        if client in self._new:
            self._new.remove(client)
            self._watch(client)
            message = self._compose()
            client.send(encode(message), _state_of(message))

    @contextlib.contextmanager
    def replying_to(self, client: Client) -> Iterator[None]:
        """Let a reply be the first message of a client that is new. It replaces the greeting."""
        is_new = client in self._new
        self._new.discard(client)
        try:
            yield
        finally:
            if is_new:
                self._watch(client)

    def _watch(self, client: Client) -> None:
        self._clients.add(client)
        if not self._is_periodic:
            self._is_periodic = True
            self._scheduler.call_later(STATUS_PERIOD_S, self._notify_periodically)

    def remove(self, client: Client) -> None:
        """Send nothing more to `client`."""
        self._clients.discard(client)
        self._new.discard(client)

    def notify(self, except_for: Client | None = None) -> None:
        """Send the status to every client, except for one that receives it as a reply."""
        if not self._clients:
            return
        self._sent_at = self._scheduler.time()
        message = self._compose()
        if message != self._message:  # An idle driver sends the same ten times a second.
            self._message, self._frame = message, encode(message)
        state, frame = _state_of(message), self._frame
        for client in self._clients:
            if client is not except_for:
                client.send(frame, state)

    def notify_progress(self) -> None:
        """Report that all images so far are readable, but not more often than clients can use it.

        A client that waits for the images of one point of a scan need not wait for the next periodic status.
        """
        if self._is_scheduled:
            return
        wait = self._notified_at + PROGRESS_SPACING_S - self._scheduler.time()
        if wait > 0:
            self._is_scheduled = True
            self._scheduler.call_later(wait, self._notify_progress_now)
        else:
            self._notify_progress_now()

    def _notify_progress_now(self) -> None:
        self._is_scheduled = False
        self._notified_at = self._scheduler.time()
        self.notify()

    def _notify_periodically(self) -> None:
        """Send the status at 10 Hz while there are clients: without, the driver need not wake up.

        Not soon after another one, such as that of each image of a slow stream.
        """
        self._is_periodic = bool(self._clients)
        if not self._clients:
            return
        wait = self._sent_at + STATUS_PERIOD_S - self._scheduler.time()
        is_recent = wait > STATUS_PERIOD_S / 2
        # A task would take twice the time.
        self._scheduler.call_later(wait if is_recent else STATUS_PERIOD_S, self._notify_periodically)
        if not is_recent:
            self.notify()


def status_message(machine: StateMachine, writers: Writers) -> dict[str, Any]:
    """Compose the status of the driver and of its run."""
    # `run_id` is present even without a run, because it shows clients that this driver marks its replies.
    message: dict[str, Any] = {"status": machine.state.status, "run_id": None}
    if machine.state in _STATES_WITH_COUNT:
        message["count"] = writers.n_recorded()
    if machine.reason:
        message["reason"] = machine.reason
    if run := machine.shown_run:
        # Read after the count and before the other numbers, because images keep arriving.
        forwarded = writers.n_forwarded()
        message |= {
            "run_id": run.id,
            "source": writers.source,
            "n_image": run.start.n_image,
            "start_id": run.start.start_id,
            "first_id": run.account.first_recorded_id,
            "n_received": run.account.n_images,
            "n_damaged": len(run.account.damaged_ids),
            "n_overwritten": writers.n_overwritten(),
            "n_failed": writers.n_failed(),
            "n_skipped": run.account.n_skipped,
            "n_restarts": run.account.n_restarts,
            "n_dropped": run.account.n_dropped if run.account.is_numbered else None,
            "writers": [
                {"writer": i, "n_forwarded": n_forwarded, "n_written": n_written}
                for i, (n_forwarded, n_written) in enumerate(zip(forwarded, writers.n_written(), strict=True))
            ],
            "files": run.files.as_json(),
        }
    return message


def _state_of(message: dict[str, Any]) -> object:
    return message["status"], message["run_id"]


def encode(message: dict[str, Any]) -> str:
    """Return the text frame of a message."""
    return json.dumps(message)
