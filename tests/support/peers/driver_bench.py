"""A driver without sockets, on a distributor that the test controls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, cast

from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.wire.std_daq import image_metadata_pb2
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.writing.driver.distributor import Distributor, RecordingJob
from stddaq.writing.driver.driver import Driver
from stddaq.writing.driver.status import Client
from stddaq.writing.driver.writer_peer import Answer, WriterPeer

T = TypeVar("T")


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
