"""Images as messages of a live stream: array-1.0 and stins uncompressed, bsread compressed.

An encoder first copies or compresses an image out of its slot (`take`). It makes the message (`parts`) only
after the slot is known to have held that image all the time, so overwritten images are never decoded or sent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from stddaq.config import DetectorConfig
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.dataplane.metadata import ImageMetadata, is_good, taken_ns
from stddaq.errors import ConfigError
from stddaq.streaming.header_keys import HeaderKeys
from stddaq.streaming.viewer_queue import ImageBuffers
from stddaq.text import mismatch, shown
from stddaq.wire.array10 import HeaderMaker
from stddaq.wire.bsread import Channel, MessageEncoder
from stddaq.wire.compressed_image import decompress_image_into
from stddaq.wire.compression import Buffer, CompressionError, compress_bitshuffle_lz4
from stddaq.wire.std_daq import image_metadata_pb2 as pb

StreamType = Literal["array-1.0", "bsread", "stins"]


class Encoder(Protocol):
    """Makes the messages of one live stream."""

    def use(self, setting: LiveStreamSetting) -> None:
        """Make messages by this setting from now on. Raise `ConfigError` if this type cannot."""
        ...

    def take(self, metadata: ImageMetadata, slot: memoryview) -> memoryview:
        """Copy or compress the content of a slot (uint8), whatever it is."""
        ...

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        """Return the message of an image, and the buffer of the pool that it uses, if any.

        `taken` is what `take` has returned; it must not be used any more. Raise `CompressionError` if a
        compressed image cannot be decoded.
        """
        ...

    def discard(self, metadata: ImageMetadata, taken: memoryview) -> None:
        """Release what `take` has returned for an image that is not sent."""
        ...


class Array10Encoder(Encoder):
    """array-1.0: copies pixels once, and decodes compressed images."""

    def __init__(self, config: DetectorConfig, pool: ImageBuffers) -> None:
        self._headers = HeaderMaker(config.image_shape, config.dtype)
        self._config, self._pool = config, pool
        self._setting = LiveStreamSetting(type="forward")
        self._keys = HeaderKeys(config, self._setting, None)

    def use(self, setting: LiveStreamSetting) -> None:
        if setting.channel is not None:
            raise ConfigError(mismatch("channel", "a stream of type bsread", "array-1.0"))
        is_same_scan = setting.scan_index == self._setting.scan_index
        self._keys = HeaderKeys(self._config, setting, self._keys.first_id if is_same_scan else None)
        self._setting = setting

    def take(self, metadata: ImageMetadata, slot: memoryview) -> memoryview:
        self._keys.begin(metadata.image_id)
        if metadata.compression:
            return memoryview(bytes(slot[: metadata.size]))
        taken = self._pool.take()
        taken[:] = slot
        return taken

    def parts(self, metadata: ImageMetadata, taken: memoryview) -> tuple[Sequence[Buffer], memoryview | None]:
        image = self._decoded(metadata, taken) if metadata.compression else taken
        keys = self._keys
        header = self._headers.header(
            keys.frame(metadata.image_id), status_name(metadata), keys.text(metadata)
        )
        return (header, image), image

    def _decoded(self, metadata: ImageMetadata, taken: memoryview) -> memoryview:
        image = self._pool.take()
        pixels = np.frombuffer(image, self._config.dtype).reshape(self._config.image_shape)
        try:
            decompress_image_into(metadata.compression, taken, pixels)
        except CompressionError:
            self._pool.give_back(image)
            raise
        return image

    def discard(self, metadata: ImageMetadata, taken: memoryview) -> None:
        if not metadata.compression:
            self._pool.give_back(taken)


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


class RunEncoder(Array10Encoder):
    """stins: the pixels as of array-1.0; `RunSeries` makes the headers."""

    def use(self, setting: LiveStreamSetting) -> None:
        for key, only in (("type", "forward"), ("socket", "push"), ("header", []), ("frame", "image_id")):
            if (got := getattr(setting, key)) != only:
                raise ConfigError(mismatch(key, f"{json.dumps(only)} for a stream of type stins", shown(got)))
        super().use(setting)


def make_encoder(stream_type: StreamType, config: DetectorConfig, pool: ImageBuffers) -> Encoder:
    """Return the encoder of a stream of `stream_type`."""
    if stream_type == "bsread":
        return BsreadEncoder(config)
    return (RunEncoder if stream_type == "stins" else Array10Encoder)(config, pool)


def status_name(metadata: ImageMetadata) -> str | None:
    """Return the name of the status of an image, or None if the image is good."""
    return None if is_good(metadata) else pb.ImageMetadataStatus.Name(metadata.status)


def timestamp_of(metadata: ImageMetadata) -> tuple[int, int]:
    """Return when an image was taken, (seconds, nanoseconds) since 1970; now if the detector does not say."""
    return divmod(taken_ns(metadata) or time.time_ns(), 10**9)
