"""An image buffer with its services: store images, and replay them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from support.peers.redis_server import RedisServer
from support.processes.deployment import Deployment, Service, wait_until
from support.processes.recording import Image
from websockets.sync.client import connect

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.wire import array10
from stddaq.wire.array10 import ArrayMessage
from stddaq.wire.image_buffer import BufferedMetadata, ids_key, image_key

MakeDeployment = Callable[..., Deployment]


@dataclass
class Replayed:
    """What a replay sent: its images, the statuses in their order, and the account."""

    images: list[ArrayMessage]
    statuses: list[str]
    result: dict[str, Any]

    @property
    def ids(self) -> list[int]:
        return [image.image_id for image in self.images]


class ReplayClient(Closing):
    """A consumer of replayed images, and a client of `std_buffer_driver`."""

    def __init__(self, url: str, stream: str) -> None:
        self._close = ExitStack()
        self._socket = self._close.enter_context(connect(f"{url}/now"))
        context = self._close.enter_context(zmq.Context())
        self._pull = self._close.enter_context(context.socket(zmq.PULL))
        self._pull.connect(stream)

    def command(self, command: str, **fields: Any) -> dict[str, Any]:
        """Send a command, and return its reply."""
        self._socket.send(json.dumps({"command": command, **fields}))
        while True:
            message = self.message()
            if message.get("command") == command or "error" in message:
                return message

    def message(self) -> dict[str, Any]:
        return json.loads(self._socket.recv(timeout=60))

    def wait_for(self, status: str) -> list[str]:
        """Return the different statuses up to `status`, each once."""
        seen: list[str] = []
        while not seen or seen[-1] != status:
            now = self.message()["status"]
            if not seen or seen[-1] != now:
                seen.append(now)
        return seen

    def receive(self, n_images: int) -> list[ArrayMessage]:
        """Return the next images."""
        images: list[ArrayMessage] = []
        while len(images) < n_images:
            assert self._pull.poll(60_000), f"{len(images)} of {n_images} images"
            images.append(array10.decode(self._pull.recv_multipart()))
        return images

    def has_image(self) -> bool:
        return bool(self._pull.poll(0))

    def replay(self, **fields: Any) -> Replayed:
        """Carry out a replay up to its end."""
        reply = self.command("start", **fields)
        assert reply["status"] == "replaying", reply
        statuses = [reply["status"], *self.wait_for("idle")]
        result = self.command("last_result")["result"]
        return Replayed(self.receive(result["n_sent"]), list(dict.fromkeys(statuses)), result)

    def close(self) -> None:
        self._close.close()


class ImageBufferRig(Closing):
    """A camera, its image buffer, and the services of both directions.

    Attributes:
        redis: the database.
        root: the directory of the buffer.
        camera, replayed: deployments of the camera, and of the detector `REPLAY-<name>`.
        source: publishes the images of the camera.
    """

    def __init__(self, make_deployment: MakeDeployment, root: Path, **overrides: Any) -> None:
        self._close = ExitStack()
        self.root = root
        try:
            self.redis = self._close.enter_context(RedisServer())
            self.camera = make_deployment(**overrides)
            name = f"REPLAY-{self.camera.detector_name}"
            # The last one made: this process uses its directory of sockets.
            shared = {"ipc_directory": self.camera.ipc_directory}
            self.replayed = make_deployment(detector_name=name, **shared, **overrides)
            self.config = DetectorConfig.parse(self.camera.config)
            self.source = self._close.enter_context(ImagePublisher(self.config))
        except BaseException:
            self._close.close()
            raise

    @property
    def files(self) -> Path:
        """The directory of the files of the camera."""
        return self.root / self.camera.detector_name

    @property
    def _options(self) -> tuple[str, str, str, str]:
        return "--root_dir", str(self.root), "--db_address", self.redis.address

    def start_writer(self, *args: object) -> Service:
        """Start the writer, and wait until it has subscribed."""
        writer = self.camera.start("std_buffer_writer", *self._options, *args)
        assert self.source.wait_for_subscribers(1, 60)
        return writer

    def start_reader(self, *args: object) -> Service:
        return self.replayed.start("std_buffer_reader", *self._options, *args)

    def start_driver(self) -> tuple[Service, str, str]:
        """Start the driver. Return it, its url, and where it sends images."""
        options = ("--stream_address", "tcp://127.0.0.1:0", "--port", 0)
        driver = self.replayed.start("std_buffer_driver", *options, ready=None)
        stream = driver.wait_for_line(r"images for consumers at (tcp://\S+)")[1]
        return driver, driver.wait_for_line(r"ready: listening on (ws://\S+)")[1], stream

    def client(self) -> ReplayClient:
        """Start the reader and the driver. Return a client of the driver."""
        self.start_reader()
        _, url, stream = self.start_driver()
        return self._close.enter_context(ReplayClient(url, stream))

    def publish(self, images: Sequence[Image]) -> None:
        """Publish images of the camera."""
        for image in images:
            self.source.publish(image.image_id, image.pixels, image.status)

    def store(self, images: Sequence[Image]) -> None:
        """Publish images, and wait until they are in the database."""
        for turn in dict.fromkeys(image.image_id // self.config.n_slots for image in images):
            # No two of them have the same slot.
            group = [image for image in images if image.image_id // self.config.n_slots == turn]
            self.publish(group)
            self.wait_for_ids([image.image_id for image in group])

    def wait_for_ids(self, ids: Sequence[int]) -> None:
        """Wait until these ids are in the database."""
        keys = [image_key(self.camera.detector_name, image_id) for image_id in ids]
        wait_until(lambda: self.redis.client.exists(*keys) == len(set(keys)), what=f"{len(keys)} keys")

    def ids(self) -> list[int]:
        """Return the ids of the sorted set."""
        return [int(i) for i in self.redis.client.zrange(ids_key(self.camera.detector_name), 0, -1)]

    def record(self, image_id: int) -> BufferedMetadata:
        value = self.redis.client.get(image_key(self.camera.detector_name, image_id))
        assert value is not None, image_id
        return BufferedMetadata.FromString(value)

    def close(self) -> None:
        self._close.close()
