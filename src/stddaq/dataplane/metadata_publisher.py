"""The publishing end of a metadata stream: binds it, counts subscribers, never waits for one."""

from __future__ import annotations

import time

import zmq

from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.dataplane.connections import new_subscriptions, open_socket
from stddaq.dataplane.endpoints import metadata_stream
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.dataplane.metadata import ImageMetadata

# How long `close` waits for announcements on their way to subscribers.
DELIVERY_TIMEOUT_MS = 1000


class MetadataPublisher(Closing):
    """Publishes the metadata stream of one suffix, or of several that are the same; a context manager.

    Attributes:
        socket: XPUB socket; becomes readable when the subscriptions change.
        endpoint: where it is bound; that of the first suffix.
    """

    def __init__(self, config: DetectorConfig, suffix: str, *same: str) -> None:
        """Bind the stream. Raises `EndpointError` when another service publishes there."""
        self.endpoint = metadata_stream(config.detector_name, suffix)
        self._n_subscribers = 0
        self._context = zmq.Context()
        # To subscribers an XPUB is a PUB; it also receives the subscriptions.
        self.socket = open_socket(self._context, zmq.XPUB)
        self.socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._bindings = list[Binding]()
        try:
            for name in (suffix, *same):
                self._bindings.append(Binding(self.socket, metadata_stream(config.detector_name, name)))
        except BaseException:
            for binding in self._bindings:
                binding.close()
            self._context.destroy()
            raise

    def count_subscribers(self) -> int:
        """Read the subscriptions that have arrived, and return how many there are.

        Images published from now on are sent to all of them. Call it at least once a second: it also binds
        the stream again if its socket file was removed.
        """
        for binding in self._bindings:
            binding.check()
        self._n_subscribers += new_subscriptions(self.socket)
        return self._n_subscribers

    def wait_for_subscribers(self, count: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds for `count` subscriptions. Return whether they have arrived."""
        deadline = time.monotonic() + timeout
        while self.count_subscribers() < count:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self.socket.poll(max(1, int(remaining * 1000))):
                return self.count_subscribers() >= count
        return True

    def send(self, metadata: ImageMetadata) -> None:
        """Announce one image. 2 us."""
        self.socket.send(metadata.SerializeToString())

    def close(self) -> None:
        """Deliver announcements on their way, for up to a second, and release the socket."""
        self.socket.linger = DELIVERY_TIMEOUT_MS
        for binding in self._bindings:
            binding.close()
        self._context.term()
