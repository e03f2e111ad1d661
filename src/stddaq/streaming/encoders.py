"""Images as messages of a live stream: array-1.0 uncompressed, bsread compressed.

An encoder takes an image out of its slot first (`take`), and makes the message when it is clear that the
slot held that very image all the while (`parts`): what was overwritten is never decoded, and never sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, Protocol

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.dataplane.metadata import GOOD_IMAGE, ImageMetadata
from stddaq.streaming.subscribers import ImageBuffers
from stddaq.wire.array10 import HeaderMaker
from stddaq.wire.bsread import Channel, MessageEncoder
from stddaq.wire.compression import (
    Buffer,
    CompressionError,
    compress_bitshuffle_lz4,
    decompress_bitshuffle_lz4_into,
)
from stddaq.wire.std_daq import image_metadata_pb2 as pb

StreamType = Literal["array-1.0", "bsread"]
# 2001 in ns since 1970: a GigaFRoST whose clock is not set counts from anywhere else.
_EARLIEST_NS = 10**18


class Encoder(Protocol):
    """Makes the messages of one live stream."""

    def take(self, metadata: ImageMetadata, slot: memoryview) -> memoryview:
        """Take an image out of its slot (uint8), whatever is there."""
        ...

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        """The message of an image, and the buffer of the pool that it uses. Gives `taken` up.

        Raises `CompressionError` when a compressed image cannot be decoded.
        """
        ...

    def discard(self, metadata: ImageMetadata, taken: memoryview) -> None:
        """Give up what was taken of an image that is not sent."""
        ...


class Array10Encoder:
    """array-1.0: pixels are copied once, compressed images decoded."""

    def __init__(self, config: DetectorConfig, pool: ImageBuffers) -> None:
        self._headers = HeaderMaker(config.image_shape, config.dtype)
        self._config, self._pool = config, pool

    def take(self, metadata: ImageMetadata, slot: memoryview) -> memoryview:
        """See `Encoder`."""
        if metadata.compression:
            return memoryview(bytes(slot[: metadata.size]))
        taken = self._pool.take()
        taken[:] = slot
        return taken

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        """See `Encoder`."""
        image = self._decoded(metadata, taken) if metadata.compression else taken
        return (self._headers.header(metadata.image_id, status_name(metadata)), image), image

    def _decoded(self, metadata: ImageMetadata, taken: memoryview) -> memoryview:
        image = self._pool.take()
        pixels = np.frombuffer(image, self._config.dtype).reshape(self._config.image_shape)
        try:
            _decoder(metadata.compression)(taken, pixels)
        except CompressionError:
            self._pool.give_back(image)
            raise
        return image

    def discard(self, metadata: ImageMetadata, taken: memoryview) -> None:
        """See `Encoder`."""
        if not metadata.compression:
            self._pool.give_back(taken)


class BsreadEncoder:
    """bsread: pixels are compressed out of their slots, blobs that bsread knows go out as they are."""

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self._name = config.detector_name
        self._encoder = self._encoder_of(self._name)

    def _encoder_of(self, name: str) -> MessageEncoder:
        shape, dtype = self._config.image_shape, self._config.dtype
        return MessageEncoder([Channel.of_image(name, shape, dtype, "bitshuffle_lz4")])

    def take(self, metadata: ImageMetadata, slot: memoryview) -> memoryview:
        """See `Encoder`."""
        if metadata.compression:
            return memoryview(bytes(slot[: metadata.size]))
        return compress_bitshuffle_lz4(np.frombuffer(slot, self._config.dtype))

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        """See `Encoder`."""
        if metadata.compression not in (pb.none, pb.h5bitshuffle_lz4):
            image = np.empty(self._config.image_shape, self._config.dtype)
            _decoder(metadata.compression)(taken, image)
            taken = compress_bitshuffle_lz4(image)
        name = metadata.pco.bsread_name or self._config.detector_name
        if name != self._name:
            self._name, self._encoder = name, self._encoder_of(name)
        parts = self._encoder.message(metadata.image_id, *timestamp_of(metadata), [taken])
        status = status_name(metadata)
        if status is not None:
            parts[0] = bytes(parts[0][:-1]) + f',"status":"{status}"}}'.encode()
        return parts, None

    def discard(self, metadata: ImageMetadata, taken: memoryview) -> None:
        """See `Encoder`."""


def make_encoder(stream_type: StreamType, config: DetectorConfig, pool: ImageBuffers) -> Encoder:
    """The encoder of a stream of `stream_type`."""
    return Array10Encoder(config, pool) if stream_type == "array-1.0" else BsreadEncoder(config)


Decode = Callable[[memoryview, np.ndarray], None]


def _decoder(compression: int) -> Decode:
    """Decodes a blob into an image (height, width). Raises `CompressionError`."""
    return decompress_bitshuffle_lz4_into if compression == pb.h5bitshuffle_lz4 else _blosc2_decoder()


@cache
def _blosc2_decoder() -> Decode:
    import blosc2  # Takes a while, and most streams do without.

    def decode(blob: memoryview, image: np.ndarray) -> None:
        try:
            frame = blosc2.schunk_from_cframe(bytes(blob), copy=False)
            if frame.nbytes != image.nbytes:
                raise CompressionError(
                    f"found a Blosc2 frame of {frame.nbytes} bytes of data, allowed are {image.nbytes}"
                )
            frame.get_slice(out=image.reshape(-1).view(np.uint8))
        except (RuntimeError, ValueError) as error:
            raise CompressionError(f"found no Blosc2 frame that can be decoded: {error}") from error

    return decode


def status_name(metadata: ImageMetadata) -> str | None:
    """The status of an image that is not good, None of a good one."""
    if metadata.status == GOOD_IMAGE:
        return None
    return pb.ImageMetadataStatus.Name(metadata.status)


def timestamp_of(metadata: ImageMetadata) -> tuple[int, int]:
    """When the image was taken, (seconds, nanoseconds) since 1970; now, when the detector does not say."""
    kind = metadata.WhichOneof("image_metadata")
    if kind == "pco" and metadata.pco.global_timestamp_sec:
        return metadata.pco.global_timestamp_sec, metadata.pco.global_timestamp_ns % 10**9
    if kind == "gf" and _EARLIEST_NS <= metadata.gf.frame_timestamp < 2**63:
        return divmod(metadata.gf.frame_timestamp, 10**9)
    return divmod(time.time_ns(), 10**9)
