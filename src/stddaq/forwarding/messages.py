"""What the metadata of an image carries from server to server: see `Forwarding` in its schema.

`sequence` and `number` belong to a ring buffer and a stream of the first server, and mean nothing on the
second one, whose ring has the same name. They travel in `Forwarding`.
"""

from __future__ import annotations

from stddaq.dataplane.metadata import ImageMetadata, parse

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


def keep_number(metadata: ImageMetadata) -> None:
    """Move the number of the image in its ring to where it travels."""
    metadata.forwarding.number = metadata.forwarding.number or metadata.sequence
    metadata.sequence = metadata.number = 0
