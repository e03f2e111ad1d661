"""The metadata stream: one `ImageMetadata` per image, and what a consumer accepts of it.

The messages are those of proto/std_daq. `MetadataRules` is what keeps a message that does not fit the
configuration (another geometry, size larger than a slot, unknown enum) out of every buffer and file.
"""

from __future__ import annotations

import numpy as np
from google.protobuf.message import DecodeError

from stddaq.config import DetectorConfig
from stddaq.text import mismatch
from stddaq.wire.std_daq import image_metadata_pb2 as pb

ImageMetadata = pb.ImageMetadata
UNDEFINED = pb.undefined
GOOD_IMAGE = pb.good_image
MISSING_PACKETS = pb.missing_packets
ID_MISSMATCH = pb.id_missmatch

# Suffixes of ring buffers, and how the images in them are compressed.
COMPRESSION_OF_SUFFIX = {"h5bitshuffle-lz4": pb.h5bitshuffle_lz4, "blosc2": pb.blosc2}
# Metadata streams whose images lie in another ring buffer than the one of their own name.
RING_OF_STREAM = {"filter": "image", "delay": "image"}

_DTYPE_CODE = {"<u1": 1, "|u1": 1, "<u2": 2, "<u4": 4, "<f4": 24}


def dtype_code(dtype: np.dtype) -> int:
    """The `ImageMetadataDtype` of a pixel type."""
    return _DTYPE_CODE[dtype.str]


def ring_suffix(stream_suffix: str) -> str:
    """The suffix of the ring buffer that holds the images of the metadata stream `stream_suffix`."""
    return RING_OF_STREAM.get(stream_suffix, stream_suffix)


def is_ring(suffix: str) -> bool:
    """Whether a metadata stream's images lie in a ring buffer of its own name."""
    return ring_suffix(suffix) == suffix


def compression_of(suffix: str) -> int:
    """The `ImageMetadataCompression` of the images of a ring buffer or stream."""
    return COMPRESSION_OF_SUFFIX.get(ring_suffix(suffix), pb.none)


def parse(message: bytes) -> pb.ImageMetadata | None:
    """The decoded message, or None when it is not an `ImageMetadata`."""
    try:
        return ImageMetadata.FromString(message)
    except DecodeError:
        return None


class MetadataRules:
    """What the metadata of an image of this detector and suffix must say.

    A field that the source left unset (zero, as proto3 has it) is taken to agree with the configuration.
    Of a compressed stream, an image that compression did not make smaller may lie in its slot as it is, with
    compression `none` and the size of the slot.
    """

    def __init__(self, config: DetectorConfig, suffix: str) -> None:
        self.height, self.width = config.image_shape
        self.image_bytes = config.image_bytes
        self.dtype = dtype_code(config.dtype)
        self.compression = compression_of(suffix)

    def accepts(self, metadata: pb.ImageMetadata) -> bool:
        """Whether the image can be recorded. 0.3 us for the usual, fully set message."""
        return (
            metadata.height == self.height
            and metadata.width == self.width
            and metadata.dtype == self.dtype
            and metadata.compression == self.compression
            and 0 <= metadata.status <= ID_MISSMATCH
            and (
                metadata.size == self.image_bytes
                if not self.compression
                else 0 < metadata.size <= self.image_bytes
            )
        ) or self.problem(metadata) is None

    def problem(self, metadata: pb.ImageMetadata) -> str | None:
        """What is wrong, as found and allowed; None when nothing is."""
        allowed_size = f"1 to {self.image_bytes}" if self.compression else str(self.image_bytes)
        size_fits = (
            0 < metadata.size <= self.image_bytes
            if self.compression
            else metadata.size in (0, self.image_bytes)
        )
        compression_fits = metadata.compression == self.compression or (
            metadata.compression == pb.none and metadata.size == self.image_bytes
        )
        checks = (
            ("height", metadata.height, metadata.height in (0, self.height), self.height),
            ("width", metadata.width, metadata.width in (0, self.width), self.width),
            ("dtype", metadata.dtype, metadata.dtype in (0, self.dtype), self.dtype),
            ("compression", metadata.compression, compression_fits, self.compression),
            ("status", metadata.status, 0 <= metadata.status <= ID_MISSMATCH, f"0 to {ID_MISSMATCH}"),
            ("size", metadata.size, size_fits, allowed_size),
        )
        for name, found, fits, allowed in checks:
            if not fits:
                return mismatch(f"image {metadata.image_id}: {name}", str(allowed), str(found))
        return None
