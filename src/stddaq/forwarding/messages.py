"""What the metadata of an image carries from server to server: see `Forwarding` in its schema.

`sequence` and `number` belong to a ring buffer and a stream of the first server, and mean nothing on the
second one, whose ring has the same name. They travel in `Forwarding`.
"""

from __future__ import annotations

from stddaq.dataplane.metadata import ImageMetadata, parse
from stddaq.wire.std_daq.image_metadata_pb2 import Forwarding

# C++ services read metadata into a buffer of this size.
MAX_METADATA_BYTES = 512
# As many messages of a metadata stream as they queue.
QUEUED_MESSAGES = 50_000


def parse_forwarded(message: bytes) -> ImageMetadata | None:
    """Return the metadata of a message from the other server, or None if it is none."""
    metadata = parse(message) if len(message) <= MAX_METADATA_BYTES else None
    if metadata is None:
        return None
    if metadata.sequence or metadata.number:
        keep_number(metadata)
    return metadata


def serialise(metadata: ImageMetadata) -> bytes:
    """Return the message of an image; without its restart if it would be longer than `MAX_METADATA_BYTES`.

    A restart only says which images were lost.
    """
    message = metadata.SerializeToString()
    if len(message) > MAX_METADATA_BYTES and metadata.forwarding.restart_number:
        for name in ("restart_number", "restart_id", "id_before_restart"):
            metadata.forwarding.ClearField(name)
        message = metadata.SerializeToString()
    return message


def keep_number(metadata: ImageMetadata) -> None:
    """Move the number of the image in its ring to where it travels."""
    metadata.forwarding.number = metadata.forwarding.number or metadata.sequence
    metadata.sequence = metadata.number = 0


class Restarts:
    """Where the image ids have restarted last. It goes with every image, whichever ones are lost."""

    def __init__(self) -> None:
        self._last_id = self._last_number = -1
        self._number = self._first_id = self._id_before = 0

    def follow(self, image_id: int, number: int) -> None:
        """Add an image of the source, by its running number; 0: none."""
        if image_id <= self._last_id:
            # If announcements were lost, so was the exact place.
            is_known = number and number == self._last_number + 1
            self._number, self._first_id, self._id_before = (
                (number, image_id, self._last_id) if is_known else (0, 0, 0)
            )
        self._last_id, self._last_number = image_id, number

    def tell(self, forwarding: Forwarding) -> None:
        """Add the restart to what goes with an image."""
        if self._number:
            forwarding.restart_number = self._number
            forwarding.restart_id, forwarding.id_before_restart = self._first_id, self._id_before
