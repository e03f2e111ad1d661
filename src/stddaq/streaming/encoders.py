"""Images as messages of a live stream: array-1.0 uncompressed, bsread compressed.

An encoder takes an image out of its slot first (`take`), and makes the message when it is clear that the
slot held that very image all the while (`parts`): what was overwritten is never decoded, and never sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.streaming.subscribers import ImageBuffers
from stddaq.wire.array10 import HeaderMaker
from stddaq.wire.bsread import Channel, MessageEncoder
from stddaq.wire.compression import (
    CompressionError,
    compress_bitshuffle_lz4,
    decompress_bitshuffle_lz4_into,
)
from stddaq.wire.metadata import GOOD_IMAGE, ImageMetadata, compression_of
from stddaq.wire.std_daq import image_metadata_pb2 as pb

StreamType = Literal["array-1.0", "bsread"]
Buffer = bytes | memoryview
# 2001 in ns since 1970: a GigaFRoST whose clock is not set counts from anywhere else.
_EARLIEST_NS = 10**18


class Encoder(Protocol):
    """Makes the messages of one live stream."""

    def take(self, slot: memoryview, size: int) -> memoryview:
        """Take an image of `size` bytes out of its slot (uint8), whatever is there."""
        ...

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        """The message of an image, and the buffer of the pool that it uses. Gives `taken` up.

        Raises `CompressionError` when a compressed image cannot be decoded.
        """
        ...

    def discard(self, taken: memoryview) -> None:
        """Give up what was taken of an image that is not sent."""
        ...


class _Array10FromPixels:
    """Uncompressed images as array-1.0; copied once."""

    def __init__(self, config: DetectorConfig, pool: ImageBuffers) -> None:
        self._headers = HeaderMaker(config.image_shape, config.dtype)
        self._pool = pool

    def take(self, slot: memoryview, size: int) -> memoryview:
        """See `Encoder`."""
        del size
        taken = self._pool.take()
        taken[:] = slot
        return taken

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        """See `Encoder`."""
        return (self._headers.header(metadata.image_id, status_name(metadata)), taken), taken

    def discard(self, taken: memoryview) -> None:
        """See `Encoder`."""
        self._pool.give_back(taken)


class _Compressed:
    """What is common where the source or the stream is compressed: nothing of it is in the pool."""

    def take(self, slot: memoryview, size: int) -> memoryview:
        """See `Encoder`."""
        return memoryview(bytes(slot[:size]))

    def discard(self, taken: memoryview) -> None:
        """See `Encoder`."""


Decode = Callable[[memoryview, np.ndarray], None]


class _Array10FromBlobs(_Compressed):
    """Compressed images as array-1.0."""

    def __init__(self, config: DetectorConfig, pool: ImageBuffers, decode: Decode) -> None:
        self._headers = HeaderMaker(config.image_shape, config.dtype)
        self._config, self._pool, self._decode = config, pool, decode

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        """See `Encoder`."""
        image = self._pool.take()
        try:
            self._decode(taken, np.frombuffer(image, self._config.dtype).reshape(self._config.image_shape))
        except BaseException:
            self._pool.give_back(image)
            raise
        return (self._headers.header(metadata.image_id, status_name(metadata)), image), image


class _BsreadFromBlobs(_Compressed):
    """Images that are compressed as bsread compresses them: the blob goes out as it is."""

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self._name = config.detector_name
        self._encoder = self._encoder_of(self._name)

    def _encoder_of(self, name: str) -> MessageEncoder:
        shape, dtype = self._config.image_shape, self._config.dtype
        return MessageEncoder([Channel.of_image(name, shape, dtype, "bitshuffle_lz4")])

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        """See `Encoder`."""
        name = metadata.pco.bsread_name or self._config.detector_name
        if name != self._name:
            self._name, self._encoder = name, self._encoder_of(name)
        parts = self._encoder.message(metadata.image_id, *timestamp_of(metadata), [taken])
        status = status_name(metadata)
        if status is not None:
            parts[0] = bytes(parts[0][:-1]) + f',"status":"{status}"}}'.encode()
        return parts, None


class _BsreadFromPixels(_BsreadFromBlobs):
    """Uncompressed images as bsread: compressed out of their slots."""

    def take(self, slot: memoryview, size: int) -> memoryview:
        """See `Encoder`."""
        del size
        return compress_bitshuffle_lz4(np.frombuffer(slot, self._config.dtype))


class _BsreadFromOtherBlobs(_BsreadFromBlobs):
    """Images of another compression as bsread: compressed anew."""

    def __init__(self, config: DetectorConfig, decode: Decode) -> None:
        super().__init__(config)
        self._decode = decode

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        """See `Encoder`."""
        image = np.empty(self._config.image_shape, self._config.dtype)
        self._decode(taken, image)
        return super().parts(metadata, compress_bitshuffle_lz4(image))


def make_encoder(
    stream_type: StreamType, image_suffix: str, config: DetectorConfig, pool: ImageBuffers
) -> Encoder:
    """The encoder from the ring buffer `image_suffix` to a stream of `stream_type`."""
    compression = compression_of(image_suffix)
    if stream_type == "array-1.0":
        if compression == pb.none:
            return _Array10FromPixels(config, pool)
        return _Array10FromBlobs(config, pool, _decoder(compression))
    if compression == pb.none:
        return _BsreadFromPixels(config)
    if compression == pb.h5bitshuffle_lz4:
        return _BsreadFromBlobs(config)
    return _BsreadFromOtherBlobs(config, _decoder(compression))


def _decoder(compression: int) -> Decode:
    return decompress_bitshuffle_lz4_into if compression == pb.h5bitshuffle_lz4 else _blosc2_decoder()


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
