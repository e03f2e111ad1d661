"""bsread: images as multipart ZeroMQ messages, from camera servers and to subscribers of live streams.

Parts of a message: main header (JSON), data header (JSON), then for each channel its value and its timestamp;
a value that is missing (null) is two empty parts. `MessageEncoder` makes messages, `MessageDecoder` takes
them apart; `encode_value` and `decode_value_into` are for the values. What a peer has sent is judged before
memory is used for it, and every mistake is a `BsreadError` that says which kind it is.
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

from stddaq.errors import StdDaqError
from stddaq.text import shown
from stddaq.wire.compression import (
    Buffer,
    ByteOrder,
    CompressionError,
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
# What can be wrong with a message: number of parts, a header, the data header's hash, the size of a value,
# a compressed value, a timestamp.
Malformation = Literal["parts", "main_header", "data_header", "hash", "size", "blob", "timestamp"]
MALFORMATIONS: tuple[Malformation, ...] = get_args(Malformation)

# A header of a thousand channels has about 100 kB.
MAX_HEADER_BYTES = 2**20
MAX_CHANNELS = 10_000
_MAX_NAME = 256
_MAX_DIMENSIONS = 8
_NS_PER_S = 10**9
_TIMESTAMP = {"little": struct.Struct("<qq"), "big": struct.Struct(">qq")}

_Header = TypeVar("_Header", bound=BaseModel)


class BsreadError(StdDaqError):
    """A message that is not bsread. `kind` names what is wrong, for counters."""

    def __init__(self, kind: Malformation, message: str) -> None:
        super().__init__(message)
        self.kind: Malformation = kind


def _without_null(value: object) -> object:
    return "none" if value is None else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class Channel(BaseModel):
    """One channel as the data header describes it."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=_MAX_NAME)]
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
        """The channel of images of `shape` (height, width) and `dtype`."""
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
        """Type of one element, in the channel's byte order; a string is uint8."""
        name = "uint8" if self.type == "string" else self.type
        return np.dtype(name).newbyteorder("<" if self.encoding == "little" else ">")

    @cached_property
    def array_shape(self) -> tuple[int, ...]:
        """Slowest dimension first: (height, width) of an image."""
        return self.shape[::-1]

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of one uncompressed value."""
        return math.prod(self.shape) * self.dtype.itemsize


class _GlobalTimestamp(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    sec: Annotated[int, Field(ge=0, lt=2**63)]
    ns: Annotated[int, Field(ge=0, lt=_NS_PER_S)]


class MainHeader(BaseModel):
    """What stands before every message."""

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
    """One message: `values[i]` and `timestamps[i]` are the parts of `channels[i]`, as sent."""

    header: MainHeader
    channels: tuple[Channel, ...]
    values: tuple[Buffer, ...]
    timestamps: tuple[Buffer, ...]


class MessageDecoder:
    """Takes the messages of a stream apart. Data headers that do not change are parsed once."""

    def __init__(self) -> None:
        self._header_bytes, self._compression, self._hash = b"", "none", ""
        self._channels: tuple[Channel, ...] = ()

    def decode(self, parts: Sequence[Buffer]) -> Message:
        """Headers and channels of a message; values stay as they are. Raises `BsreadError`. About 5 us."""
        if len(parts) < 2:
            raise BsreadError("parts", f"found a message of {len(parts)} parts, allowed are 2 or more")
        header = _parse_header(MainHeader, "main_header", bytes(parts[0][: MAX_HEADER_BYTES + 1]))
        channels = self._parse_channels(header, bytes(parts[1][: MAX_HEADER_BYTES + 1]))
        if len(parts) != 2 + 2 * len(channels):
            raise BsreadError(
                "parts",
                f"found a message of {len(parts)} parts, "
                f"allowed for {len(channels)} channels are {2 + 2 * len(channels)}",
            )
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
                    "hash", f"found a data header of hash {found}, announced is {header.hash!a}"
                )
            plain = _plain_header(content, header.dh_compression)
            self._channels = _parse_header(_DataHeader, "data_header", plain).channels
            self._header_bytes, self._hash = content, header.hash
            self._compression = header.dh_compression
        return self._channels


class MessageEncoder:
    """Makes the messages of a stream whose channels stay the same."""

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
        """All parts, with one value for each channel as `encode_value` gives it; None is a null value.

        The message was taken `sec` seconds and `ns` nanoseconds after 1970.
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
    """A value as the channel describes it. Uncompressed and contiguous ones are not copied.

    `value` has the channel's shape (slowest first) and type; its bytes are brought into the channel's order.
    """
    value = np.ascontiguousarray(value, channel.dtype)
    if channel.compression == "bitshuffle_lz4":
        return compress_bitshuffle_lz4(value)
    if channel.compression == "lz4":
        return compress_lz4(value, channel.encoding)
    return value.data.cast("B")


def check_value(channel: Channel, value: Buffer) -> None:
    """Raise `BsreadError` unless the sizes in a value, not null, are those that the channel announces."""
    try:
        if channel.compression == "bitshuffle_lz4":
            check_bitshuffle_lz4(value, channel.n_bytes, channel.dtype.itemsize)
        elif channel.compression == "lz4":
            check_lz4(value, channel.n_bytes, channel.encoding)
        elif (found := memoryview(value).nbytes) != channel.n_bytes:
            raise BsreadError("size", f"found a value of {found} bytes, announced are {channel.n_bytes}")
    except CompressionError as error:
        raise BsreadError("blob", str(error)) from error


def decode_value_into(channel: Channel, value: Buffer, array: np.ndarray) -> None:
    """Put a value into `array`, C-contiguous, native byte order, of the channel's shape (slowest first).

    Uncompressed pixels are copied once, compressed ones decoded in place. Raises `BsreadError`; what the
    array holds is undefined then.
    """
    if array.shape != channel.array_shape or array.dtype != channel.dtype.newbyteorder("="):
        raise BsreadError(
            "size",
            f"found a value of {channel.array_shape} {channel.type}, "
            f"allowed is {array.shape} {array.dtype.name}",
        )
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
    """A value as a new array, None when it is null. Raises `BsreadError`, also for more than `max_bytes`."""
    if not memoryview(value).nbytes:
        return None
    if channel.n_bytes > max_bytes:
        raise BsreadError("size", f"found a value of {channel.n_bytes} bytes, allowed are {max_bytes}")
    check_value(channel, value)
    array = np.empty(channel.array_shape, channel.dtype.newbyteorder("="))
    decode_value_into(channel, value, array)
    return array


def decode_timestamp(channel: Channel, timestamp: Buffer) -> tuple[int, int]:
    """(seconds, nanoseconds) since 1970 of a value that is not null. Raises `BsreadError`."""
    layout = _TIMESTAMP[channel.encoding]
    if memoryview(timestamp).nbytes != layout.size:
        found = memoryview(timestamp).nbytes
        raise BsreadError("timestamp", f"found a timestamp of {found} bytes, allowed are {layout.size}")
    sec, ns = layout.unpack(timestamp)
    if sec < 0 or not 0 <= ns < _NS_PER_S:
        raise BsreadError("timestamp", f"found a timestamp of {sec} s and {ns} ns")
    return sec, ns


def _plain_header(content: bytes, compression: Compression) -> bytes:
    """The JSON of a data header, which may be compressed."""
    if compression == "none" or len(content) < 12:
        return content
    announced = content[:8] if compression == "bitshuffle_lz4" else content[:4]
    # psi-bsread writes the size of a compressed header in little-endian, as everything that is no channel.
    n_bytes = int.from_bytes(announced, "big" if compression == "bitshuffle_lz4" else "little")
    if not 0 < n_bytes <= MAX_HEADER_BYTES:
        raise BsreadError(
            "data_header", f"found a data header of {n_bytes} bytes, allowed are up to {MAX_HEADER_BYTES}"
        )
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
        raise BsreadError(kind, f"found a header of more than {MAX_HEADER_BYTES} bytes")
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "header"
        found = shown(first["input"]) if "input" in first and first["type"] != "json_invalid" else ""
        raise BsreadError(kind, f"{where}: found {found or 'no JSON'}: {first['msg']}") from error
