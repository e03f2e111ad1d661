"""The metadata stream: one `ImageMetadata` per image, and which of them a subscriber accepts.

The messages are those of proto/std_daq. `MetadataRules` keeps a message that does not fit the configuration
(another geometry, a size larger than a slot, an unknown enum) out of every buffer and file.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from stddaq.config import DetectorConfig, PixelType
from stddaq.text import mismatch
from stddaq.wire.std_daq import image_metadata_pb2 as pb

if TYPE_CHECKING:
    import numpy as np

ImageMetadata = pb.ImageMetadata
UNDEFINED = pb.undefined
GOOD_IMAGE = pb.good_image
MISSING_PACKETS = pb.missing_packets
ID_MISSMATCH = pb.id_missmatch

# Compression of the images in a ring buffer, by its suffix. Others are not compressed.
COMPRESSION_OF_SUFFIX = {"h5bitshuffle-lz4": pb.h5bitshuffle_lz4, "blosc2": pb.blosc2}
# Metadata streams whose images are in the ring buffer of another suffix.
RING_OF_STREAM = {"filter": "image", "delay-filter": "image", "delay": "image"}

# 2001 in ns since 1970. Earlier timestamps come from a GigaFRoST whose clock is not set.
_EARLIEST_NS = 10**18

_DTYPE_CODE: dict[PixelType, int] = {"uint8": 1, "uint16": 2, "uint32": 4, "float32": 24}
_PIXEL_TYPE = {code: name for name, code in _DTYPE_CODE.items()}


def dtype_code(pixel_type: PixelType) -> int:
    """Return the `ImageMetadataDtype` of a pixel type."""
    return _DTYPE_CODE[pixel_type]


def dtype_of(code: int) -> np.dtype:
    """Return the pixel type of an `ImageMetadataDtype`, little-endian."""
    import numpy as np

    return np.dtype(_PIXEL_TYPE[code]).newbyteorder("<")


def ring_suffix(stream_suffix: str) -> str:
    """Return the suffix of the ring buffer that holds the images of the metadata stream `stream_suffix`."""
    return RING_OF_STREAM.get(stream_suffix, stream_suffix)


def is_ring(suffix: str) -> bool:
    """Return whether the images of a metadata stream are in the ring buffer of the same suffix."""
    return ring_suffix(suffix) == suffix


def compression_of(suffix: str) -> int:
    """Return the `ImageMetadataCompression` of the images of a ring buffer or stream."""
    return COMPRESSION_OF_SUFFIX.get(ring_suffix(suffix), pb.none)


def parse(message: bytes) -> pb.ImageMetadata | None:
    """Return the decoded message, or None if it is not an `ImageMetadata`."""
    try:
        return ImageMetadata.FromString(message)
    except DecodeError:
        return None


def is_good(metadata: pb.ImageMetadata) -> bool:
    """Return whether the source calls the image good.

    `undefined` also means good in a message without sequence number: std_daq services (C++) may leave the
    status out. Stages of stddaq use it for images that they could not make.
    """
    return metadata.status == GOOD_IMAGE or not (metadata.status or metadata.sequence)


def taken_ns(metadata: pb.ImageMetadata) -> int:
    """Return when an image was taken, in ns since 1970; 0 if the detector does not say."""
    kind = metadata.WhichOneof("image_metadata")
    if kind == "pco" and metadata.pco.global_timestamp_sec:
        return metadata.pco.global_timestamp_sec * 10**9 + metadata.pco.global_timestamp_ns % 10**9
    if kind == "gf" and _EARLIEST_NS <= metadata.gf.frame_timestamp < 2**63:
        return metadata.gf.frame_timestamp
    return 0


class MetadataRules:
    """The values that the metadata of a detector's images may have in the stream of one suffix.

    A field that the source left unset (zero in proto3) agrees with the configuration. A compressed stream may
    contain uncompressed images, which compression did not make smaller: compression `none`, size of the slot.
    """

    def __init__(self, config: DetectorConfig, suffix: str) -> None:
        self.height, self.width = config.image_shape
        self.image_bytes = config.image_bytes
        self.dtype = dtype_code(config.pixel_type)
        self.compression = compression_of(suffix)
        # Fields that `accepts` looks up in one call, and their values if the source sets all of them. Of a
        # compressed image the size is not among them.
        fields = ("status", "height", "width", "dtype", "compression", "size")
        values = (self.height, self.width, self.dtype, self.compression, self.image_bytes)
        n_known = len(values) - bool(self.compression)
        self._known = attrgetter(*fields[: n_known + 1])
        self._usual = {(status, *values[:n_known]) for status in range(ID_MISSMATCH + 1)}

    def accepts(self, metadata: pb.ImageMetadata) -> bool:
        """Return whether the image can be recorded. 0.3 us if every field is set."""
        return (
            self._known(metadata) in self._usual
            and (not self.compression or 0 < metadata.size <= self.image_bytes)
        ) or self.problem(metadata) is None

    def problem(self, metadata: pb.ImageMetadata) -> str | None:
        """Return what is wrong with the message, as an error text; None if it is accepted."""
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
        for name, got, fits, expected in checks:
            if not fits:
                return mismatch(f"image {metadata.image_id}: {name}", str(expected), str(got))
        return None
