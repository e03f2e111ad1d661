"""`std_buffer_reader`: publishes stored images again, one for each request, as the source of a detector.

The detector is `REPLAY-<name>`; everything behind its ring buffer and metadata stream works as with a camera.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import zmq
from google.protobuf.message import DecodeError

from stddaq.buffer.arguments import BufferArgumentParser, directory_of, open_index
from stddaq.buffer.leases import Leases
from stddaq.buffer.stored_images import StoredImages
from stddaq.client.buffer_files import BufferFiles, DamagedImageError
from stddaq.client.buffer_index import (
    BufferIndex,
    DamagedRecordError,
    ImageBufferError,
    ImageBufferUnreachableError,
    parse_record,
)
from stddaq.client.buffer_offsets import OffsetCheck
from stddaq.closing import Closing
from stddaq.config import DetectorConfig
from stddaq.daemon import log, metrics
from stddaq.daemon import main as daemon
from stddaq.daemon.metrics import Registry
from stddaq.daemon.statistics import Period, StatisticsLine
from stddaq.dataplane.connections import open_socket
from stddaq.dataplane.endpoints import replay_requests
from stddaq.dataplane.image_publisher import ImagePublisher
from stddaq.dataplane.ipc_sockets import Binding
from stddaq.dataplane.metadata import GOOD_IMAGE, ImageMetadata, MetadataRules, is_good
from stddaq.text import mismatch
from stddaq.wire.image_buffer import MAX_ID, REPLAY_PREFIX, BufferedMetadata, camera_of
from stddaq.wire.std_daq import image_buffer_pb2
from stddaq.wire.std_daq import image_metadata_pb2 as pb

NAME = "std_buffer_reader"
SOURCE = "replay"
# Less than the timeout of a driver.
SEARCH_TIMEOUT_S = 0.6

Request = image_buffer_pb2.RequestNextImage
Response = image_buffer_pb2.NextImageResponse


class BufferReader(Closing):
    """A running reader: its sockets, the ring buffer, and its loop."""

    def __init__(self, config: DetectorConfig, index: BufferIndex, directory: Path) -> None:
        """Raise `EndpointError` or `GeometryError`."""
        self._config, self._index = config, index
        self._images, self._files = StoredImages(index), BufferFiles(directory)
        self._offsets = OffsetCheck(index)
        self._leases = Leases(index)
        self._rules = MetadataRules(config, "image")
        self._n_expired = self._n_damaged = 0
        # In words: the frames of an error's traceback would keep the slot, and so the ring.
        self._problem = ""
        self._publisher = ImagePublisher(config)
        self._statistics = StatisticsLine(config, self._registry(), self._pairs)
        self._context = zmq.Context()
        self._socket = open_socket(self._context, zmq.REP)
        self.endpoint = replay_requests(config.detector_name)
        try:
            self._binding = Binding(self._socket, self.endpoint)
        except BaseException:
            self._context.destroy()
            self._publisher.close()
            raise

    def serve(self, stop: daemon.StopRequest) -> None:
        """Answer requests until asked to stop."""
        poller = zmq.Poller()
        for readable in (self._socket, self._publisher.socket, stop.fileno()):
            poller.register(readable, zmq.POLLIN)
        while not stop.poll():
            poller.poll(int(self._statistics.due_in * 1000) + 1)
            self._publisher.count_subscribers()
            self._binding.check()
            self._answer_next()
            try:
                self._leases.attend()
            except ImageBufferUnreachableError as error:
                self._problem = str(error)
            if self._statistics.write_if_due() and self._problem:
                log.logger.error("images cannot be replayed: %s", self._problem)
                self._problem = ""

    def _answer_next(self) -> None:
        try:
            message = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
        try:
            answer = self._answer(Request.FromString(message))
        except DecodeError:
            answer = Response()
            answer.failure.reason = "expected a RequestNextImage, got another message"
        with contextlib.suppress(zmq.Again):  # The driver has disconnected.
            self._socket.send(answer.SerializeToString(), zmq.NOBLOCK)

    def _answer(self, request: Request) -> Response:
        answer = Response()
        try:
            self._carry_out(request, answer)
        except ImageBufferError as error:
            self._images.forget()
            answer.failure.reason = str(error)
            self._problem = str(error)
        self._n_expired += answer.n_skipped
        self._n_damaged += answer.n_damaged
        return answer

    def _carry_out(self, request: Request, answer: Response) -> None:
        """Publish the next image that can be read, and fill the answer."""
        first, lease = request.image_id, self._leases.of(request.driver)
        last = min(request.last_image_id, MAX_ID) if request.HasField("last_image_id") else MAX_ID
        if request.new_request:
            self._images.forget()
            log.event("replay from id %d", first)
            lease.take(first, last)
            if (newest := self._index.newest()) is not None:
                answer.newest_image_id = newest
        is_limited = request.HasField("last_image_id")
        deadline = time.monotonic() + SEARCH_TIMEOUT_S if is_limited else math.inf
        while True:
            found = self._images.find(first, last, deadline)
            answer.n_skipped += found.n_skipped
            if found.is_end and is_limited and found.image_id > request.image_id:
                # A replay that follows asks again: what is counted now is not counted then.
                answer.searching.image_id = found.image_id
                return
            if found.is_end:
                answer.no_image.SetInParent()
                if is_limited and last != MAX_ID:
                    lease.end()
                return
            first = found.image_id
            if found.value is not None:
                first += 1
                try:
                    metadata = self._publish(parse_record(found.value, found.image_id))
                except (DamagedImageError, DamagedRecordError) as error:
                    answer.n_damaged += 1
                    self._problem = str(error)
                else:
                    lease.use(first, last)
                    answer.ack.image_id = metadata.image_id
                    answer.ack.metadata.CopyFrom(metadata)
                    return
            if time.monotonic() > deadline:
                answer.searching.image_id = first
                return

    def _publish(self, record: BufferedMetadata) -> ImageMetadata:
        """Publish an image. Raise `DamagedImageError`."""
        image_id = record.metadata.image_id
        metadata = ImageMetadata()
        metadata.CopyFrom(record.metadata)
        metadata.compression, metadata.size = pb.none, self._config.image_bytes
        if problem := self._rules.problem(metadata):
            raise DamagedImageError(f"does not fit the configuration: {problem}")
        self._offsets.check(record)
        # What a damaged image leaves in the slot is not announced.
        self._files.read_into(record, self._publisher.begin(image_id))
        if is_good(metadata):
            metadata.status = GOOD_IMAGE
        self._publisher.commit_processed(metadata, self._config.image_bytes, pb.none)
        return metadata

    def _registry(self) -> Registry:
        registry = Registry(self._config.detector_name, NAME)
        self._publisher.register(registry)
        registry.add(metrics.IMAGES_EXPIRED, lambda: self._n_expired)
        registry.add(metrics.IMAGES_UNREADABLE, lambda: self._n_damaged)
        return registry

    def _pairs(self, period: Period) -> dict[str, object]:
        return {
            "source": SOURCE,
            **period.rate(metrics.IMAGES_PUBLISHED),
            "n_subscribers": self._publisher.count_subscribers(),
            "n_expired_images": period.count(metrics.IMAGES_EXPIRED),
            "n_damaged_images": period.count(metrics.IMAGES_UNREADABLE),
        }

    def close(self) -> None:
        """Release the sockets, the ring buffer and the leases."""
        self._binding.close()
        self._context.destroy(linger=0)
        self._publisher.close()
        self._files.close()
        with contextlib.suppress(ImageBufferUnreachableError):  # It expires.
            self._leases.end()


def main(argv: Sequence[str] | None = None) -> int:
    """The command `std_buffer_reader`."""
    parser = BufferArgumentParser(
        NAME, "Publish the stored images of a camera again, as the source of the detector REPLAY-<name>."
    )
    return daemon.run(parser, _serve, argv)


def _serve(config: DetectorConfig, args: argparse.Namespace, stop: daemon.StopRequest) -> None:
    camera = camera_of(config.detector_name)
    if camera == config.detector_name:
        log.logger.warning(
            mismatch(
                "detector_name",
                f"{REPLAY_PREFIX}{camera}",
                camera,
                "whatever records or shows the camera takes the replayed images for new ones",
            )
        )
    with ExitStack() as stack:
        index = stack.enter_context(open_index(args, camera))
        directory = directory_of(args, camera)
        reader = stack.enter_context(BufferReader(config, index, directory))
        log.ready("images of %s in %s and %s, at %s", camera, directory, index.address, reader.endpoint)
        reader.serve(stop)
