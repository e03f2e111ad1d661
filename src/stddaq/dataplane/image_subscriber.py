"""The receiving end of the data plane: the announcements of a source, and the images in its ring buffer.

Live streams and processing stages receive through `ImageSubscriber`; forwarders and users' services can.
Writers get their announcements from the driver and use the `RingReader` alone. The subscriber never writes to
the ring and never delays the source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import zmq

from stddaq.config import DetectorConfig
from stddaq.daemon import metrics
from stddaq.daemon.metrics import Registry
from stddaq.dataplane import connections, endpoints
from stddaq.dataplane.image import Image
from stddaq.dataplane.ipc_sockets import Connection
from stddaq.dataplane.metadata import ImageMetadata, is_ring, parse
from stddaq.dataplane.ring_layout import CODE_SHIFT
from stddaq.dataplane.ring_reader import RingReader
from stddaq.dataplane.stream_counts import StreamCounts

# A reader that is further behind has the numbers of an earlier ring.
_MOST_RINGS = 10


class ImageSubscriber:
    """A subscription to a metadata stream, with the ring buffer of its images.

    Attributes:
        socket: SUB socket, for pollers while nothing `is_waiting`.
        counts: what was received, dropped, skipped and malformed.
        reader: the ring buffer, and the verdict whether a slot held its image.
    """

    def __init__(self, config: DetectorConfig, suffix: str, ring_suffix: str | None = None) -> None:
        """Attach to the ring buffer and subscribe. Raises `EndpointError` and `GeometryError`.

        `ring_suffix`: the ring of the images, if `suffix` does not name it.
        """
        stream = endpoints.metadata_stream(config.detector_name, suffix)
        self.suffix = suffix
        self.counts = StreamCounts()
        self._n_slots = config.n_slots
        self.reader = RingReader(config, ring_suffix or suffix)
        self._context = zmq.Context()
        self.socket = connections.open_socket(self._context, zmq.SUB)
        self.socket.subscribe(b"")
        self._connection = Connection(self.socket, stream)
        self._waiting: deque[bytes] = deque()
        # In a stream without ring of its own the sequence numbers are those of another stream's messages.
        self._sequence_is_number = is_ring(suffix)

    def receive(self, limit: int) -> Iterator[ImageMetadata]:
        """Yield the metadata of the images that have been announced, at most `limit` messages. 3 us each.

        The caller may stop early; what it has not received `is_waiting` then.
        """
        waiting, counts, accepts = self._waiting, self.counts, self.reader.rules.accepts
        sequence_is_number = self._sequence_is_number
        if not waiting:
            waiting.extend(self._connection.receive(limit))
        for _ in range(min(limit, len(waiting))):
            metadata = parse(waiting.popleft())
            if metadata is None:
                counts.receive_malformed()
                continue
            number = metadata.number or (metadata.sequence if sequence_is_number else 0)
            counts.receive(metadata.image_id, number)
            if accepts(metadata):
                yield metadata
            else:
                counts.refuse()
                self.reader.refuse(metadata)

    def newest(self, limit: int) -> ImageMetadata | None:
        """Return the metadata of the last of at most `limit` announcements that have arrived, or None.

        The others are dropped uncounted, 0.4 us each. Do not mix it with `receive`.
        """
        for message in reversed(self._connection.receive(limit)):
            metadata = parse(message)
            if metadata is None:
                continue
            if self.reader.rules.accepts(metadata):
                return metadata
            self.reader.refuse(metadata)
        return None

    @property
    def lag(self) -> int:
        """Return how many images the source has published since the last one received; 0 without cursor."""
        newest, last = self.reader.ring.sequence, self.counts.last_number
        lag = newest - last
        # A ring that was made again starts from a much higher number.
        is_of_ring = newest >> CODE_SHIFT == last >> CODE_SHIFT and lag <= _MOST_RINGS * self._n_slots
        return lag if is_of_ring else 0

    def register(self, registry: Registry, n_waiting: Callable[[], int] = lambda: 0) -> None:
        """Add what is received to the metrics of the service, which has received `n_waiting` more images."""
        self.counts.register(registry, self.suffix)

        def lag() -> int:
            return self.lag + n_waiting()

        registry.add(metrics.RING_LAG_IMAGES, lag)
        registry.add(metrics.RING_LAG_RATIO, lambda: lag() / self._n_slots)

    @property
    def is_waiting(self) -> bool:
        """Return whether messages wait here, out of the socket's queue."""
        return bool(self._waiting)

    def check(self) -> None:
        """Log why the source refuses the connection, if it does. Call it once a second."""
        self._connection.check()

    def image(self, metadata: ImageMetadata) -> Image:
        """Return the announced image, with its pixels where they lie."""
        return Image(metadata, self.reader.ring)

    def close(self) -> None:
        """Unsubscribe and detach."""
        self._context.destroy(linger=0)
        self.reader.close()
