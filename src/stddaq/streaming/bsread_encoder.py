"""Images as bsread messages of a live stream, compressed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.dataplane.metadata import ImageMetadata, taken_ns
from stddaq.errors import ConfigError
from stddaq.streaming.encoders import Encoder, status_name
from stddaq.text import mismatch
from stddaq.wire.bsread import Channel, MessageEncoder
from stddaq.wire.compressed_image import decompress_image_into
from stddaq.wire.compression import Buffer, compress_bitshuffle_lz4
from stddaq.wire.std_daq import image_metadata_pb2 as pb


class BsreadEncoder(Encoder):
    """bsread: compresses pixels out of their slots, and sends bitshuffle_lz4 blobs unchanged."""

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self._channel: str | None = None
        self._name = config.detector_name
        self._encoder = self._encoder_of(self._name)

    def use(self, setting: LiveStreamSetting) -> None:
        if setting.header or setting.frame != "image_id":
            raise ConfigError(mismatch("header, frame", "a stream of type array-1.0", "bsread"))
        self._channel = setting.channel

    def _encoder_of(self, name: str) -> MessageEncoder:
        shape, dtype = self._config.image_shape, self._config.dtype
        return MessageEncoder([Channel.of_image(name, shape, dtype, "bitshuffle_lz4")])

    def take(self, metadata: ImageMetadata, slot: memoryview) -> memoryview:
        if metadata.compression:
            return memoryview(bytes(slot[: metadata.size]))
        return compress_bitshuffle_lz4(np.frombuffer(slot, self._config.dtype))

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        if metadata.compression not in (pb.none, pb.h5bitshuffle_lz4):
            image = np.empty(self._config.image_shape, self._config.dtype)
            decompress_image_into(metadata.compression, taken, image)
            taken = compress_bitshuffle_lz4(image)
        name = self._channel or metadata.pco.bsread_name or self._config.detector_name
        if name != self._name:
            self._name, self._encoder = name, self._encoder_of(name)
        parts = self._encoder.message(metadata.image_id, *timestamp_of(metadata), [taken])
        status = status_name(metadata)
        if status is not None:
            parts[0] = bytes(parts[0][:-1]) + f',"status":"{status}"}}'.encode()
        return parts, None

    def discard(self, metadata: ImageMetadata, taken: memoryview) -> None:
        pass  # It uses no buffer of the pool.


def timestamp_of(metadata: ImageMetadata) -> tuple[int, int]:
    """Return when an image was taken, (seconds, nanoseconds) since 1970; now if the detector does not say."""
    return divmod(taken_ns(metadata) or time.time_ns(), 10**9)
