"""Two servers on this machine: forwarding from the ring buffer of one detector into that of another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence

from support.processes.deployment import Deployment, Service, free_port, wait_until

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.forwarding.parts import parts_of


class Servers(Closing):
    """The services of both servers, and a source in this process; a context manager.

    Attributes:
        senders, receivers: by the number of the pair.
    """

    def __init__(self, first: Deployment, second: Deployment) -> None:
        self.first, self.second = first, second
        self.config = DetectorConfig.parse(first.config)
        self._stack = contextlib.ExitStack()
        self.senders: dict[int, Service] = {}
        self.receivers: dict[int, Service] = {}
        self.metadata: Service | None = None
        self.sync: Service
        self.addresses = {part.index: f"tcp://127.0.0.1:{free_port()}" for part in parts_of(self.config)}
        self.metadata_address = f"tcp://127.0.0.1:{free_port()}"

    def start_sync(self, *options: object) -> Service:
        """Start the synchroniser. By default nothing is given up while a service stands still."""
        options = options or ("--timeout", 60)
        if self.config.sender_sends_full_images:
            self.sync = self.second.start("std_data_sync_metadata", self.metadata_address, *options)
        else:
            self.sync = self.second.start("std_data_sync_stream", *options)
        return self.sync

    def start_metadata(self, *options: object) -> Service:
        """Start the metadata stream of whole images."""
        self.metadata = self.first.start("std_metadata_stream", self.metadata_address, *options)
        return self.metadata

    def start_receiver(self, pair: int) -> Service:
        service = self.second.start("std_stream_receive", self.addresses[pair], pair)
        self.receivers[pair] = service
        return service

    def start_sender(self, pair: int) -> Service:
        service = self.first.start("std_stream_send", self.addresses[pair], pair)
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


MakeServers = Callable[..., Servers]
