"""bsread: images as multipart ZeroMQ messages, from camera servers and to viewers of live streams.

The parts of a message are a main header (JSON), a data header (JSON), and for each channel its value and its
timestamp; a missing value (null) is two empty parts. `MessageEncoder` makes messages, `MessageDecoder` splits
them; `encode_value` and `decode_value_into` convert the values. Messages from peers are checked before memory
is reserved for them. Every mistake raises a `BsreadError` with its kind.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stddaq.errors import CompressionError, StdDaqError
from stddaq.text import mismatch
from stddaq.validation import explain_first
from stddaq.wire.compression import (
    Buffer,
    ByteOrder,
    check_bitshuffle_lz4,
    check_lz4,
    compress_bitshuffle_lz4,
    compress_lz4,
    decompress_bitshuffle_lz4,
    decompress_bitshuffle_lz4_into,
    decompress_lz4_into,
)

__all__ = [
    "BsreadError",
    "Channel",
    "Compression",
    "MainHeader",
    "Malformation",
    "Message",
    "MessageDecoder",
    "MessageEncoder",
    "compress_bitshuffle_lz4",
    "decode_timestamp",
    "decode_value",
    "decode_value_into",
    "decompress_bitshuffle_lz4",
    "encode_value",
]

Compression = Literal["none", "lz4", "bitshuffle_lz4"]
ValueType = Literal[
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float32",
    "float64",
    "string",
]
# What can be wrong: the number of parts, a header, the hash of the data header, the size of a value, a
# compressed value, a timestamp.
Malformation = Literal["parts", "main_header", "data_header", "hash", "size", "blob", "timestamp"]
MALFORMATIONS: tuple[Malformation, ...] = get_args(Malformation)

# The header of a thousand channels has about 100 kB.
MAX_HEADER_BYTES = 2**20
MAX_CHANNELS = 10_000
_MAX_NAME = 256
_MAX_DIMENSIONS = 8
_NS_PER_S = 10**9
_TIMESTAMP = {"little": struct.Struct("<qq"), "big": struct.Struct(">qq")}

_Header = TypeVar("_Header", bound=BaseModel)


class BsreadError(StdDaqError):
    """A message is not bsread. `kind` says what is wrong with it, for counters."""

    def __init__(self, kind: Malformation, message: str) -> None:
        super().__init__(message)
        self.kind: Malformation = kind


def _without_null(value: object) -> object:
    return "none" if value is None else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class Channel(BaseModel):
    """The description of a channel in the data header."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: Annotated[str, Field(max_length=_MAX_NAME)]
    """May be empty: std_daq (C++) names only the channels of PCO cameras."""
    shape: Annotated[
        tuple[Annotated[int, Field(ge=1, lt=2**32)], ...],
        Field(strict=False, min_length=1, max_length=_MAX_DIMENSIONS),
    ] = (1,)
    """Fastest dimension first: (width, height) of an image."""
    type: Annotated[ValueType, BeforeValidator(_lower)] = "float64"
    encoding: ByteOrder = "little"
    compression: Annotated[Compression, BeforeValidator(_without_null)] = "none"

    @classmethod
    def of_image(
        cls,
        name: str,
        shape: tuple[int, int],
        dtype: np.dtype,
        compression: Compression = "none",
    ) -> Channel:
        """Return the channel of images of `shape` (height, width) and `dtype`."""
        byte_order: ByteOrder = "big" if dtype.str[0] == ">" else "little"
        return cls.model_validate(
            {
                "name": name,
                "shape": shape[::-1],
                "type": dtype.name,
                "encoding": byte_order,
                "compression": compression,
            }
        )

    @cached_property
    def dtype(self) -> np.dtype:
        """Type of an element, in the channel's byte order; uint8 for a string."""
        name = "uint8" if self.type == "string" else self.type
        return np.dtype(name).newbyteorder("<" if self.encoding == "little" else ">")

    @cached_property
    def array_shape(self) -> tuple[int, ...]:
        """Slowest dimension first: (height, width) of an image."""
        return self.shape[::-1]

    @cached_property
    def n_bytes(self) -> int:
        """Size of an uncompressed value in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class _GlobalTimestamp(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    sec: Annotated[int, Field(ge=0, lt=2**63)]
    ns: Annotated[int, Field(ge=0, lt=_NS_PER_S)]


class MainHeader(BaseModel):
    """The first part of a message."""

    model_config = ConfigDict(strict=True, frozen=True)

    htype: Annotated[str, Field(pattern=r"^bsr_m-1\.[0-9]{1,3}$")]
    pulse_id: Annotated[int, Field(ge=0, lt=2**64)]
    global_timestamp: _GlobalTimestamp
    hash: Annotated[str, Field(max_length=64)]
    dh_compression: Annotated[Compression, BeforeValidator(_without_null)] = "none"


class _DataHeader(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    htype: Annotated[str, Field(pattern=r"^bsr_d-1\.[0-9]{1,3}$")]
    channels: Annotated[tuple[Channel, ...], Field(strict=False, max_length=MAX_CHANNELS)]


@dataclass(frozen=True, slots=True)
class Message:
    """A message: `values[i]` and `timestamps[i]` are the parts of `channels[i]`, still encoded."""

    header: MainHeader
    channels: tuple[Channel, ...]
    values: tuple[Buffer, ...]
    timestamps: tuple[Buffer, ...]


class MessageDecoder:
    """Splits the messages of a stream. Parses a data header once, until it changes."""

    def __init__(self) -> None:
        self._header_bytes, self._compression, self._hash = b"", "none", ""
        self._channels: tuple[Channel, ...] = ()

    def decode(self, parts: Sequence[Buffer]) -> Message:
        """Return a message; its values stay encoded. Raise `BsreadError`. About 5 us."""
        if len(parts) < 2:
            raise BsreadError("parts", mismatch("message", "2 parts or more", str(len(parts))))
        header = _parse_header(MainHeader, "main_header", bytes(parts[0][: MAX_HEADER_BYTES + 1]))
        channels = self._parse_channels(header, bytes(parts[1][: MAX_HEADER_BYTES + 1]))
        if len(parts) != 2 + 2 * len(channels):
            expected = f"{2 + 2 * len(channels)} parts for {len(channels)} channels"
            raise BsreadError("parts", mismatch("message", expected, str(len(parts))))
        return Message(header, channels, tuple(parts[2::2]), tuple(parts[3::2]))

    def _parse_channels(self, header: MainHeader, content: bytes) -> tuple[Channel, ...]:
        if (content, header.hash, header.dh_compression) != (
            self._header_bytes,
            self._hash,
            self._compression,
        ):
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if found != header.hash.lower():
                raise BsreadError(
                    "hash", mismatch("hash of the data header", f"{header.hash!a} as announced", found)
                )
            plain = _plain_header(content, header.dh_compression)
            self._channels = _parse_header(_DataHeader, "data_header", plain).channels
            self._header_bytes, self._hash = content, header.hash
            self._compression = header.dh_compression
        return self._channels


class MessageEncoder:
    """Makes the messages of a stream with fixed channels."""

    def __init__(self, channels: Sequence[Channel], dh_compression: Compression = "none") -> None:
        self.channels = tuple(channels)
        content: dict[str, Any] = {"htype": "bsr_d-1.1"}
        content["channels"] = [channel.model_dump(mode="json") for channel in channels]
        text = json.dumps(content, separators=(",", ":")).encode()
        self.data_header = bytes(encode_value(_header_channel(len(text), dh_compression), _as_array(text)))
        self.hash = hashlib.md5(self.data_header, usedforsecurity=False).hexdigest()
        self._rest_of_header = f'"hash":"{self.hash}"' + (
            "" if dh_compression == "none" else f',"dh_compression":"{dh_compression}"'
        )

    def message(self, pulse_id: int, sec: int, ns: int, values: Sequence[Buffer | None]) -> list[Buffer]:
        """Return all parts, with a value for each channel as `encode_value` returns it; None is null.

        The timestamp is `sec` seconds and `ns` nanoseconds since 1970.
        """
        main = (
            f'{{"htype":"bsr_m-1.1","pulse_id":{pulse_id},'
            f'"global_timestamp":{{"sec":{sec},"ns":{ns}}},{self._rest_of_header}}}'
        )
        parts: list[Buffer] = [main.encode(), self.data_header]
        for channel, value in zip(self.channels, values, strict=True):
            if value is None:
                parts += (b"", b"")
            else:
                parts += (value, _TIMESTAMP[channel.encoding].pack(sec, ns))
        return parts


def encode_value(channel: Channel, value: np.ndarray) -> Buffer:
    """Return a value as the channel describes it. A contiguous value is not copied, unless compressed.

    `value` has the channel's shape (slowest dimension first) and type; its bytes get the channel's order.
    """
    value = np.ascontiguousarray(value, channel.dtype)
    if channel.compression == "bitshuffle_lz4":
        return compress_bitshuffle_lz4(value)
    if channel.compression == "lz4":
        return compress_lz4(value, channel.encoding)
    return value.data.cast("B")


def check_value(channel: Channel, value: Buffer) -> None:
    """Raise `BsreadError` unless the sizes in a value (not null) are those of the channel."""
    try:
        if channel.compression == "bitshuffle_lz4":
            check_bitshuffle_lz4(value, channel.n_bytes, channel.dtype.itemsize)
        elif channel.compression == "lz4":
            check_lz4(value, channel.n_bytes, channel.encoding)
        elif (found := memoryview(value).nbytes) != channel.n_bytes:
            raise BsreadError("size", mismatch("value", f"{channel.n_bytes} bytes as announced", str(found)))
    except CompressionError as error:
        raise BsreadError("blob", str(error)) from error


def decode_value_into(channel: Channel, value: Buffer, array: np.ndarray) -> None:
    """Decode a value into `array`, C-contiguous, in native byte order, of the channel's shape and type.

    Uncompressed pixels are copied once, compressed ones decoded in place. Raise `BsreadError`; the array then
    has undefined content.
    """
    if array.shape != channel.array_shape or array.dtype != channel.dtype.newbyteorder("="):
        expected = f"{array.shape} {array.dtype.name}"
        raise BsreadError("size", mismatch("value", expected, f"{channel.array_shape} {channel.type}"))
    try:
        if channel.compression == "bitshuffle_lz4":
            decompress_bitshuffle_lz4_into(value, array)
        elif channel.compression == "lz4":
            decompress_lz4_into(value, array, channel.encoding)
        else:
            check_value(channel, value)
            np.copyto(array, np.frombuffer(value, channel.dtype).reshape(array.shape))
            return
    except CompressionError as error:
        raise BsreadError("blob", str(error)) from error
    if channel.dtype != array.dtype:
        array.byteswap(inplace=True)


def decode_value(channel: Channel, value: Buffer, max_bytes: int) -> np.ndarray | None:
    """Return a value as a new array, or None for null. Raise `BsreadError`, also above `max_bytes`."""
    if not memoryview(value).nbytes:
        return None
    if channel.n_bytes > max_bytes:
        raise BsreadError("size", mismatch("value", f"up to {max_bytes} bytes", str(channel.n_bytes)))
    check_value(channel, value)
    array = np.empty(channel.array_shape, channel.dtype.newbyteorder("="))
    decode_value_into(channel, value, array)
    return array


def decode_timestamp(channel: Channel, timestamp: Buffer) -> tuple[int, int]:
    """Return the timestamp of a value (not null): seconds and nanoseconds since 1970. Raise `BsreadError`."""
    layout = _TIMESTAMP[channel.encoding]
    if memoryview(timestamp).nbytes != layout.size:
        found = memoryview(timestamp).nbytes
        raise BsreadError("timestamp", mismatch("timestamp", f"{layout.size} bytes", str(found)))
    sec, ns = layout.unpack(timestamp)
    if sec < 0 or not 0 <= ns < _NS_PER_S:
        expected = f"s from 0, ns from 0 to {_NS_PER_S - 1}"
        raise BsreadError("timestamp", mismatch("timestamp", expected, f"{sec} s and {ns} ns"))
    return sec, ns


def _plain_header(content: bytes, compression: Compression) -> bytes:
    """Return the JSON of a data header, decompressed if necessary."""
    if compression == "none" or len(content) < 12:
        return content
    announced = content[:8] if compression == "bitshuffle_lz4" else content[:4]
    # psi-bsread writes the size of an lz4 header in little-endian, whatever the channels use.
    n_bytes = int.from_bytes(announced, "big" if compression == "bitshuffle_lz4" else "little")
    if not 0 < n_bytes <= MAX_HEADER_BYTES:
        expected = f"1 to {MAX_HEADER_BYTES} bytes"
        raise BsreadError("data_header", mismatch("data header", expected, str(n_bytes)))
    try:
        value = decode_value(_header_channel(n_bytes, compression), content, MAX_HEADER_BYTES)
    except BsreadError as error:
        raise BsreadError("data_header", f"data header: {error}") from error
    return b"" if value is None else value.tobytes()


def _header_channel(n_bytes: int, compression: Compression) -> Channel:
    return Channel(name="header", shape=(n_bytes,), type="uint8", compression=compression)


def _as_array(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def _parse_header(model: type[_Header], kind: Malformation, content: bytes) -> _Header:
    if len(content) > MAX_HEADER_BYTES:
        raise BsreadError(kind, mismatch("header", f"up to {MAX_HEADER_BYTES} bytes", "more"))
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise BsreadError(kind, explain_first(error, "header")) from error
