"""Two servers on this machine: forwarding from the ring buffer of one detector into that of another."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from support.processes.deployment import Deployment, Service, console_script, free_port, wait_until
from support.processes.namespaces import Network
from support.processes.recording import Image, Rig, assert_saved, images_of, pixels_of
from support.processes.stream_readers import StreamReader

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.forwarding.parts import parts_of


class Servers(Closing):
    """The services of both servers, and a source in this process; a context manager.

    Attributes:
        senders, receivers: by the number of the pair.
    """

    def __init__(self, first: Deployment, second: Deployment, network: Network | None = None) -> None:
        """With a `network`, the services of each server run in its namespace."""
        self.first, self.second = first, second
        self._prefixes = {first: network.on_first, second: network.on_second} if network else {}
        self.config = DetectorConfig.parse(first.config)
        self._stack = contextlib.ExitStack()
        self.senders: dict[int, Service] = {}
        self.receivers: dict[int, Service] = {}
        self.metadata: Service | None = None
        self.sync: Service
        host = network.first_address if network else "127.0.0.1"
        self.addresses = {part.index: f"tcp://{host}:{free_port()}" for part in parts_of(self.config)}
        self.metadata_address = f"tcp://{host}:{free_port()}"

    def _start(self, deployment: Deployment, service: str, *args: object) -> Service:
        prefix = self._prefixes.get(deployment, ())
        return deployment.run(*prefix, console_script(service), deployment.config_path, *args, ready="ready")

    def start_sync(self, *options: object) -> Service:
        """Start the synchroniser. By default nothing is given up while a service stands still."""
        options = options or ("--timeout", 60)
        if self.config.sender_sends_full_images:
            self.sync = self._start(self.second, "std_data_sync_metadata", self.metadata_address, *options)
        else:
            self.sync = self._start(self.second, "std_data_sync_stream", *options)
        return self.sync

    def start_metadata(self, *options: object) -> Service:
        """Start the metadata stream of whole images."""
        self.metadata = self._start(self.first, "std_metadata_stream", self.metadata_address, *options)
        return self.metadata

    def start_receiver(self, pair: int) -> Service:
        service = self._start(self.second, "std_stream_receive", self.addresses[pair], pair)
        self.receivers[pair] = service
        return service

    def start_sender(self, pair: int) -> Service:
        service = self._start(self.first, "std_stream_send", self.addresses[pair], pair)
        self.senders[pair] = service
        return service

    def start(self, *sync_options: object) -> None:
        """Start all services; wait until each pair is connected."""
        self.start_sync(*sync_options)
        for pair in self.addresses:
            self.start_sender(pair)
            self.start_receiver(pair)
        if self.config.sender_sends_full_images:
            self.start_metadata()
        self.wait_for_pairs()

    def wait_for_pairs(self, pairs: Iterable[int] | None = None) -> None:
        """Wait until the senders have their receivers and the source its senders."""
        pairs = list(self.addresses if pairs is None else pairs)
        senders = [self.senders[pair] for pair in pairs] + ([self.metadata] if self.metadata else [])
        wait_for_connections(senders, "n_receivers")
        wait_until(lambda: self.source.count_subscribers() >= len(senders), what="subscriptions of senders")

    def publish(self, images: Iterable[Image]) -> None:
        """Publish images on the first server."""
        for image in images:
            self.source.publish(image.image_id, image.pixels, image.status)

    def fail_pair(self, side: str, number: signal.Signals) -> Callable[[], None]:
        """Kill or stop one end of pair 1, of "senders" or "receivers". Return what brings it back."""
        failing = getattr(self, side)[1]
        if number == signal.SIGKILL:
            failing.kill()
        else:
            failing.send(number)

        def bring_back() -> None:
            if number == signal.SIGKILL:
                getattr(self, f"start_{side[:-1]}")(1)
            else:
                # The peer of a hanging process notices it by its heartbeats.
                other = self.senders if side == "receivers" else self.receivers
                other[1].wait_for_line("has disconnected", timeout=30)
                failing.send(signal.SIGCONT)
            self.wait_for_pairs()
            wait_for_connections([self.receivers[1]], "n_senders")

        return bring_back

    @property
    def source(self) -> ImagePublisher:
        """Return the publisher of the first server, which is made on first use."""
        if not hasattr(self, "_source"):
            self._source = self._stack.enter_context(ImagePublisher(self.config))
        return self._source

    def close(self) -> None:
        self._stack.close()


def wait_for_connections(services: Sequence[Service], name: str) -> None:
    """Wait until a statistics line that each service writes from now on counts one connection."""
    starts = [len(service.stdout) for service in services]
    for service, start in zip(services, starts, strict=True):
        service.wait_for_line(rf"\b{name}=1\b", start=start)


def record_through_a_restart(servers: Servers, directory: Path) -> None:
    """Record on the second server more images than its ring holds, whose ids restart. Fail if one is lost."""
    with Rig(servers.second, directory) as rig:
        rig.start_driver().start_writers()
        images = [*images_of(range(1, 1100)), *images_of(range(5), salt=1)]
        rig.client.start(directory, n_image=len(images))
        rig.client.wait_until_ready(60)
        for start in range(0, len(images), 100):
            # A writer that is late must not lose images to those that follow.
            rig.wait_for_count(start)
            servers.publish(images[start : start + 100])
        account = rig.end()
    assert_saved(account, images)
    assert account["n_restarts"] == 1
    assert not any(account[key] for key in ("n_dropped", "n_skipped", "n_overwritten", "n_damaged"))


def assert_all_arrive(servers: Servers, reader: StreamReader) -> None:
    """Publish images 31 to 40. Fail if one is missing or wrong on the second server."""
    servers.publish(images_of(range(31, 41)))
    images = reader.receive(10)
    assert [image.image_id for image in images] == list(range(31, 41))
    assert all(np.array_equal(image.pixels, pixels_of(image.image_id)) for image in images)


MakeServers = Callable[..., Servers]
