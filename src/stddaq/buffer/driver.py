"""The driver of replays: carries out commands of clients, admits one replay at a time.

One asyncio loop owns everything: the state, the requests to the reader, and the images on their way.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from typing import Any

from stddaq.buffer.replay import Consumers, ReaderLink, Replay, ReplayAccount
from stddaq.daemon import log
from stddaq.daemon.tasks import start_logged_task
from stddaq.dataplane.ring_reader import RingReader
from stddaq.errors import StdDaqError
from stddaq.text import mismatch
from stddaq.wire.driver_messages import BUSY_REASON, CommandError, ErrorType
from stddaq.wire.fields import shown_message
from stddaq.wire.replay_messages import PlainReplayCommand, ReplayStatus, StartReplay, parse_replay_command
from stddaq.writing.driver.status import Client, Watchers, encode


class ReplayDriver:
    """The driver belongs to the asyncio loop in which it is created.

    Attributes:
        watchers: the connected clients.
        n_refused: commands refused, by kind of error.
        n_sent: images sent in all replays.
    """

    def __init__(self, link: ReaderLink, ring: RingReader, consumers: Consumers) -> None:
        self._link, self._ring, self._consumers = link, ring, consumers
        self._status: ReplayStatus = "idle"
        self._reason = ""
        self._replay: Replay | None = None
        self._n_replays = self._n_sent_before = 0
        self._last_result: dict[str, Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self.watchers = Watchers(self._message, asyncio.get_running_loop())
        self.n_refused: Counter[ErrorType] = Counter()

    @property
    def is_replaying(self) -> bool:
        """Whether a replay runs."""
        return self._status != "idle"

    @property
    def n_sent(self) -> int:
        return self._n_sent_before + (self._replay.account.n_sent if self._replay else 0)

    async def receive(self, client: Client, frame: str | bytes) -> None:
        """Carry out the command in a client's frame and reply."""
        try:
            command = parse_replay_command(frame)
            if command.command != "status":
                log.event("received %s", shown_message(command))
            reply = self._start(client, command) if isinstance(command, StartReplay) else self._plain(command)
        except CommandError as error:
            self.n_refused[error.error] += 1
            reply = {"status": "error", "run_id": None, "reason": str(error), "error": error.error}
            if error.error == "busy":
                reply |= {"status": "rejected", "reason": BUSY_REASON, "detail": str(error)}
            client.send(encode(reply))
            return
        client.send(encode(reply))

    def _start(self, client: Client, start: StartReplay) -> dict[str, Any]:
        # No other code runs between this check and the change of state: of two starts one is admitted.
        if self._status != "idle":
            raise CommandError("busy", mismatch("the driver is busy", "state idle", f"state {self._status}"))
        self._replay = Replay(start, self._link, self._ring, self._consumers)
        self._n_replays += 1
        self._enter("replaying", replied_to=client)
        self._task = start_logged_task(self._carry_out(self._replay))
        return self._message() | {"command": "start"}

    def _plain(self, command: PlainReplayCommand) -> dict[str, Any]:
        replay = self._replay
        if replay is not None:
            if command.command == "stop":
                self.request_stop()
            elif command.command == "pause":
                replay.running.clear()
            elif command.command == "resume":
                replay.running.set()
        reply = self._message() | {"command": command.command}
        if command.command == "last_result":
            reply["result"] = self._last_result
        return reply

    def request_stop(self) -> None:
        """End the replay, if there is one."""
        if self._replay is not None and not self._replay.stopped.is_set():
            self._replay.stopped.set()
            self._enter("stop")

    async def shut_down(self, timeout: float) -> None:
        """Stop the replay, if there is one, and wait up to `timeout` seconds for its end."""
        self.request_stop()
        if self._task:
            await asyncio.wait([self._task], timeout=timeout)

    async def _carry_out(self, replay: Replay) -> None:
        """Carry out a replay. The driver is idle and usable afterwards in any case."""
        reason = "the replay failed, see the log of std_buffer_driver"
        try:
            try:
                await replay.carry_out()
                reason = ""
            except StdDaqError as error:
                reason = str(error)
            if not reason:
                self._enter("finishing")
        finally:
            result = _result(replay, reason)
            self._last_result = result
            self._enter("error" if reason else "finished", reason)
            log.event(
                "replay %d: %s, %d images", self._n_replays, reason or "finished", replay.account.n_sent
            )
            self._n_sent_before += replay.account.n_sent
            self._replay = None
            self._enter("idle")

    def _enter(self, status: ReplayStatus, reason: str = "", replied_to: Client | None = None) -> None:
        self._status, self._reason = status, reason
        self.watchers.notify(except_for=replied_to)

    def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"status": self._status, "run_id": None}
        if self._reason:
            message["reason"] = self._reason
        if replay := self._replay:
            account = asdict(replay.account)
            message |= {"run_id": self._n_replays, "count": replay.account.n_sent, **account}
            message["paused"] = not replay.running.is_set()
        return message


def _result(replay: Replay, reason: str) -> dict[str, Any]:
    """Return the account of a replay that has ended."""
    account: ReplayAccount = replay.account
    return {
        "status": "error" if reason else "finished",
        "reason": reason or None,
        "is_stopped": replay.stopped.is_set(),
        "start_image_id": replay.start.start_image_id,
        "end_image_id": replay.start.end_image_id,
        **asdict(account),
    }
