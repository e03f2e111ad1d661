"""Images as messages of a live stream: array-1.0 and stins uncompressed, bsread compressed.

An encoder first copies or compresses an image out of its slot (`take`). It makes the message (`parts`) only
after the slot is known to have held that image all the time, so overwritten images are never decoded or sent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from stddaq.config import DetectorConfig
from stddaq.config.live_streams import LiveStreamSetting
from stddaq.dataplane.metadata import ImageMetadata, compression_of, is_good
from stddaq.errors import CompressionError, ConfigError
from stddaq.streaming.header_keys import HeaderKeys
from stddaq.streaming.viewer_queue import ImageBuffers
from stddaq.text import mismatch, shown
from stddaq.wire.array10 import HeaderMaker
from stddaq.wire.std_daq import image_metadata_pb2 as pb

if TYPE_CHECKING:
    from stddaq.wire.compression import Buffer

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
        self._headers = HeaderMaker(config.image_shape, config.pixel_type)
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
        # Not at the top: uncompressed streams do without NumPy.
        import numpy as np

        from stddaq.wire.compressed_image import decompress_image_into

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


class RunEncoder(Array10Encoder):
    """stins: the pixels as of array-1.0; `RunSeries` makes the headers."""

    def use(self, setting: LiveStreamSetting) -> None:
        for key, only in (("type", "forward"), ("socket", "push"), ("header", []), ("frame", "image_id")):
            if (got := getattr(setting, key)) != only:
                raise ConfigError(mismatch(key, f"{json.dumps(only)} for a stream of type stins", shown(got)))
        super().use(setting)


def make_encoder(stream_type: StreamType, config: DetectorConfig, pool: ImageBuffers, suffix: str) -> Encoder:
    """Return the encoder of a stream of `stream_type`, of the images in the ring buffer of `suffix`."""
    if stream_type == "bsread":
        # Not at the top: it imports NumPy, which the other types do not need.
        from stddaq.streaming.bsread_encoder import BsreadEncoder

        return BsreadEncoder(config)
    if compression_of(suffix):
        # `_decoded` would import it while images wait.
        import stddaq.wire.compressed_image  # noqa: F401
    return (RunEncoder if stream_type == "stins" else Array10Encoder)(config, pool)


def status_name(metadata: ImageMetadata) -> str | None:
    """Return the name of the status of an image, or None if the image is good."""
    return None if is_good(metadata) else pb.ImageMetadataStatus.Name(metadata.status)
