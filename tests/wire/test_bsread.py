"""bsread and its blobs, compared with psi-bsread and bitshuffle, and malformed messages."""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import suppress
from typing import Any, get_args

import bitshuffle
import numpy as np
import pytest
from bsread.data.compression import LZ4, BitshuffleLZ4
from hypothesis import given
from hypothesis import strategies as st

from stddaq.errors import CompressionError
from stddaq.wire.bsread import (
    MALFORMATIONS,
    MAX_HEADER_BYTES,
    BsreadError,
    Channel,
    Compression,
    MessageDecoder,
    MessageEncoder,
    check_value,
    decode_timestamp,
    decode_value,
    decode_value_into,
    encode_value,
)
from stddaq.wire.compression import (
    bitshuffle_lz4_bound,
    compress_bitshuffle_lz4,
    compress_bitshuffle_lz4_into,
    compress_bitshuffle_lz4_within,
    decompress_bitshuffle_lz4,
    default_block_bytes,
)

COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
DTYPES = ("<u1", "<u2", "<u4", "<u8", "<i2", "<f4", "<f8", ">u2", ">u4", ">i8", ">f4", ">f8")
MAX_BYTES = 2**20

shapes = st.tuples(st.integers(1, 80), st.integers(1, 80))
dtypes = st.sampled_from([np.dtype(name) for name in DTYPES])


def array_of(shape: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Return a reproducible array of few different values, which can be compressed."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 50, shape).astype(dtype)


def example(compression: Compression = "none", dh_compression: Compression = "none") -> list[bytes]:
    """Return the parts of a valid message with an image of 3 x 4 pixels."""
    channel = Channel.of_image("CAM:FPICTURE", (3, 4), np.dtype("<u2"), compression)
    encoder = MessageEncoder([channel], dh_compression)
    value = encode_value(channel, array_of((3, 4), channel.dtype))
    return [bytes(part) for part in encoder.message(7, 1_700_000_000, 5, [value])]


def test_headers_are_written_as_specified() -> None:
    parts = example()
    assert parts[1] == (
        b'{"htype":"bsr_d-1.1","channels":[{"name":"CAM:FPICTURE","shape":[4,3],"type":"uint16",'
        b'"encoding":"little","compression":"none"}]}'
    )
    digest = hashlib.md5(parts[1]).hexdigest().encode()
    assert parts[0] == (
        b'{"htype":"bsr_m-1.1","pulse_id":7,"global_timestamp":{"sec":1700000000,"ns":5},"hash":"'
        + digest
        + b'"}'
    )
    assert parts[3] == struct.pack("<qq", 1_700_000_000, 5)


@given(shapes, dtypes, st.sampled_from(COMPRESSIONS), st.sampled_from(COMPRESSIONS), st.integers(0, 99))
def test_every_value_survives_a_round_trip(
    shape: tuple[int, int], dtype: np.dtype, compression: Compression, dh_compression: Compression, seed: int
) -> None:
    channel = Channel.of_image("X", shape, dtype, compression)
    array = array_of(shape, dtype, seed)
    parts = MessageEncoder([channel], dh_compression).message(
        2**64 - 1, 1, 999_999_999, [encode_value(channel, array)]
    )
    message = MessageDecoder().decode(parts)
    assert message.channels == (channel,)
    assert message.header.pulse_id == 2**64 - 1
    assert decode_timestamp(channel, message.timestamps[0]) == (1, 999_999_999)
    check_value(channel, message.values[0])
    found = decode_value(channel, message.values[0], MAX_BYTES)
    assert found is not None
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)


def test_defaults_of_a_channel_are_those_of_the_specification() -> None:
    header = b'{"htype":"bsr_d-1.1","channels":[{"name":"X"},{"name":"Y","type":"Int16","compression":null}]}'
    digest = hashlib.md5(header).hexdigest()
    main = json.loads(example()[0]) | {"hash": digest}
    parts = [json.dumps(main).encode(), header, struct.pack("<d", 1.5), bytes(16), b"", b""]
    message = MessageDecoder().decode(parts)
    first, second = message.channels
    assert (first.type, first.shape, first.encoding, first.compression) == ("float64", (1,), "little", "none")
    assert (second.type, second.compression) == ("int16", "none")
    np.testing.assert_array_equal(decode_value(first, message.values[0], 8), [1.5])
    assert decode_value(second, message.values[1], 8) is None


@given(shapes, dtypes, st.sampled_from([0, 1, 2, 16]))
def test_blobs_equal_those_of_bitshuffle(shape: tuple[int, int], dtype: np.dtype, blocks: int) -> None:
    array = array_of(shape, dtype)
    block_bytes = blocks * 8 * dtype.itemsize
    blob = compress_bitshuffle_lz4(array, block_bytes)
    block = (block_bytes or default_block_bytes(dtype.itemsize)) // dtype.itemsize
    head = struct.pack(">qi", array.nbytes, block * dtype.itemsize)
    assert bytes(blob) == head + bitshuffle.compress_lz4(array, block).tobytes()
    data = np.frombuffer(blob, np.uint8)[12:].copy()
    np.testing.assert_array_equal(bitshuffle.decompress_lz4(data, shape, dtype, block), array)


@given(shapes, dtypes)
def test_blobs_of_stddaq_and_psi_bsread_can_be_exchanged(shape: tuple[int, int], dtype: np.dtype) -> None:
    array = array_of(shape, dtype)
    name = dtype.str.replace("|", "<")
    peers: dict[Compression, Any] = {"bitshuffle_lz4": BitshuffleLZ4, "lz4": LZ4}
    for compression, theirs in peers.items():
        channel = Channel.of_image("X", shape, dtype, compression)
        if compression == "lz4" and channel.encoding == "big":
            continue  # psi-bsread writes this size in little-endian and reads it in big-endian.
        ours = bytes(encode_value(channel, array))
        np.testing.assert_array_equal(theirs.unpack_data(ours, name, list(channel.shape)), array)
        found = decode_value(channel, theirs.pack_data(array, dtype), MAX_BYTES)
        np.testing.assert_array_equal(found, array)


def test_default_block_is_that_of_bitshuffle() -> None:
    for itemsize, dtype in ((1, "u1"), (2, "u2"), (4, "u4"), (8, "u8")):
        array = array_of((200, 300), np.dtype(dtype))
        block = default_block_bytes(itemsize) // itemsize
        assert bitshuffle.compress_lz4(array).tobytes() == bitshuffle.compress_lz4(array, block).tobytes()


@pytest.mark.parametrize("block_bytes", [-16, 1, 8, 24, 2**31])
def test_impossible_block_is_refused(block_bytes: int) -> None:
    with pytest.raises(CompressionError, match="expected a multiple of 16"):
        compress_bitshuffle_lz4(np.zeros(100, "<u2"), block_bytes)


def test_blob_is_never_longer_than_its_bound_and_never_written_into_less() -> None:
    noise = np.frombuffer(np.random.default_rng(1).bytes(100_001), np.uint8)
    bound = bitshuffle_lz4_bound(noise.nbytes, 1)
    assert len(noise) < len(compress_bitshuffle_lz4(noise)) <= bound
    with pytest.raises(CompressionError, match=r"buffer: expected \d+ contiguous bytes"):
        compress_bitshuffle_lz4_into(noise, np.empty(bound - 1, np.uint8))


@given(
    st.integers(0, 40_000),
    st.sampled_from(["u1", "<u2", "<u4"]),
    st.floats(0, 1),
    st.integers(-20_000, 20_000),
    st.sampled_from([0, 64, 4096]),
)
def test_blob_in_a_limited_buffer_is_the_same_or_does_not_fit(
    size: int, dtype: str, share_of_noise: float, spare: int, block_bytes: int
) -> None:
    array = np.zeros(size, dtype)
    noisy = int(size * share_of_noise)
    array[:noisy] = np.random.default_rng(size).integers(0, np.iinfo(array.dtype).max, noisy, array.dtype)
    expected = bytes(compress_bitshuffle_lz4(array, block_bytes))
    memory = np.full(max(0, len(expected) + spare) + 100, 0xAA, np.uint8)
    n = compress_bitshuffle_lz4_within(array, memory[:-100], block_bytes)
    assert n == (len(expected) if spare >= 0 else None)
    assert n is None or bytes(memory[:n]) == expected
    assert (memory[-100:] == 0xAA).all()


def changed(parts: list[bytes], index: int, **fields: Any) -> list[bytes]:
    """Return the message with other fields in one of its headers, and the matching hash."""
    content = json.loads(parts[index])
    target = content["channels"][0] if index == 1 and "channels" not in fields else content
    for key, value in fields.items():
        if value is None:
            del target[key]
        else:
            target[key] = value
    return with_header(parts, index, json.dumps(content).encode())


def with_header(parts: list[bytes], index: int, content: bytes) -> list[bytes]:
    parts = [*parts[:index], content, *parts[index + 1 :]]
    if index == 1:
        main = json.loads(parts[0]) | {"hash": hashlib.md5(content).hexdigest()}
        parts[0] = json.dumps(main).encode()
    return parts


PARTS = example()
MALFORMED: dict[str, tuple[str, list[bytes]]] = {
    "no parts": ("parts", []),
    "one part": ("parts", PARTS[:1]),
    "no value": ("parts", PARTS[:2]),
    "no timestamp": ("parts", PARTS[:3]),
    "one part more": ("parts", [*PARTS, b""]),
    "two parts more": ("parts", [*PARTS, b"", b""]),
    "main header empty": ("main_header", with_header(PARTS, 0, b"")),
    "main header no JSON": ("main_header", with_header(PARTS, 0, b"\xff{")),
    "main header a list": ("main_header", with_header(PARTS, 0, b"[1]")),
    "main header nested": ("main_header", with_header(PARTS, 0, b"[" * 100_000)),
    "main header huge": ("main_header", with_header(PARTS, 0, b" " * (MAX_HEADER_BYTES + 1))),
    "other protocol": ("main_header", changed(PARTS, 0, htype="array-1.0")),
    "pulse id missing": ("main_header", changed(PARTS, 0, pulse_id=None)),
    "pulse id negative": ("main_header", changed(PARTS, 0, pulse_id=-1)),
    "pulse id too large": ("main_header", changed(PARTS, 0, pulse_id=2**64)),
    "pulse id of digits": (
        "main_header",
        with_header(PARTS, 0, PARTS[0].replace(b":7,", b":" + b"7" * 9999 + b",")),
    ),
    "pulse id a float": ("main_header", changed(PARTS, 0, pulse_id=7.0)),
    "pulse id true": ("main_header", changed(PARTS, 0, pulse_id=True)),
    "pulse id NaN": ("main_header", changed(PARTS, 0, pulse_id=float("nan"))),
    "no timestamp in header": ("main_header", changed(PARTS, 0, global_timestamp=None)),
    "ns of a second": ("main_header", changed(PARTS, 0, global_timestamp={"sec": 1, "ns": 10**9})),
    "sec negative": ("main_header", changed(PARTS, 0, global_timestamp={"sec": -1, "ns": 0})),
    "compression unknown": ("main_header", changed(PARTS, 0, dh_compression="zip")),
    "hash of another": ("hash", changed(PARTS, 0, hash="0" * 32)),
    "hash no text": ("main_header", changed(PARTS, 0, hash=5)),
    "data header no JSON": ("data_header", with_header(PARTS, 1, b"{")),
    "data header nested": ("data_header", with_header(PARTS, 1, b'{"channels":' * 50_000)),
    "data header not compressed": ("data_header", changed(PARTS, 0, dh_compression="lz4")),
    "data header not shuffled": ("data_header", changed(PARTS, 0, dh_compression="bitshuffle_lz4")),
    "channels no list": ("data_header", changed(PARTS, 1, channels=7)),
    "channel without name": ("data_header", changed(PARTS, 1, name=None)),
    "name half a surrogate": ("data_header", changed(PARTS, 1, name="\ud800")),
    "type unknown": ("data_header", changed(PARTS, 1, type="uint24")),
    "encoding unknown": ("data_header", changed(PARTS, 1, encoding="middle")),
    "compression of channel unknown": ("data_header", changed(PARTS, 1, compression="zip")),
    "shape of zero": ("data_header", changed(PARTS, 1, shape=[4, 0])),
    "shape negative": ("data_header", changed(PARTS, 1, shape=[4, -3])),
    "shape empty": ("data_header", changed(PARTS, 1, shape=[])),
    "shape of floats": ("data_header", changed(PARTS, 1, shape=[4.0, 3.0])),
    "shape of many dimensions": ("data_header", changed(PARTS, 1, shape=[1] * 9)),
}


@pytest.mark.parametrize(("kind", "parts"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_message_is_refused_with_its_kind(kind: str, parts: list[bytes]) -> None:
    with pytest.raises(BsreadError) as refused:
        MessageDecoder().decode(parts)
    assert refused.value.kind == kind
    assert ", got " in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_data_header_is_checked_again_when_only_its_hash_changes() -> None:
    decoder = MessageDecoder()
    decoder.decode(PARTS)
    with pytest.raises(BsreadError) as refused:
        decoder.decode(changed(PARTS, 0, hash="0" * 32))
    assert refused.value.kind == "hash"
    decoder.decode(PARTS)


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_messages_of_random_parts_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(BsreadError) as refused:
        MessageDecoder().decode(parts)
    assert refused.value.kind in MALFORMATIONS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.sampled_from(["htype", "pulse_id", "global_timestamp", "hash", "dh_compression"]),
    st.sampled_from(["name", "shape", "type", "encoding", "compression"]),
    json_values,
    json_values,
    st.sampled_from(COMPRESSIONS),
)
def test_no_header_field_causes_an_unexpected_exception(
    main_key: str, channel_key: str, main_value: Any, channel_value: Any, compression: Compression
) -> None:
    parts = example(compression)
    data = json.loads(parts[1])
    data["channels"][0][channel_key] = channel_value
    parts = with_header(parts, 1, json.dumps(data).encode())
    main = json.loads(parts[0]) | {main_key: main_value}
    for candidate in (parts, with_header(parts, 0, json.dumps(main).encode())):
        with suppress(BsreadError):
            message = MessageDecoder().decode(candidate)
            decode_value(message.channels[0], message.values[0], MAX_BYTES)
            decode_timestamp(message.channels[0], message.timestamps[0])


@given(st.sampled_from(COMPRESSIONS), st.data())
def test_no_damage_of_a_value_causes_an_unexpected_exception(
    compression: Compression, data: st.DataObject
) -> None:
    channel = Channel.of_image("X", (20, 300), np.dtype("<u2"), compression)
    array = array_of((20, 300), channel.dtype)
    value = bytearray(encode_value(channel, array))
    for _ in range(data.draw(st.integers(0, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    value = value[: data.draw(st.integers(0, len(value)) | st.just(len(value)))]
    with suppress(BsreadError):
        found = decode_value(channel, value, MAX_BYTES)
        assert found is None or found.shape == array.shape


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_value_of_absurd_size_uses_no_memory(compression: Compression) -> None:
    channel = Channel(name="X", shape=(2**32 - 1,) * 8, type="float64", compression=compression)
    for announced in (0, 2**31 - 1, 2**62):
        blob = struct.pack(">qi", announced, 8192) + bytes(100)
        with pytest.raises(BsreadError):
            check_value(channel, blob)
        with pytest.raises(BsreadError):
            decode_value(channel, blob, MAX_BYTES)


@pytest.mark.parametrize("length", [0, 8, 15, 17, 100])
def test_timestamp_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BsreadError, match=f"timestamp: expected 16 bytes, got {length}"):
        decode_timestamp(Channel(name="X"), bytes(length))


def test_value_is_not_decoded_into_an_array_of_another_shape() -> None:
    channel = Channel.of_image("X", (3, 4), np.dtype("<u2"))
    with pytest.raises(BsreadError, match=r"value: expected \(4, 3\) uint16, got \(3, 4\) uint16"):
        decode_value_into(channel, bytes(24), np.zeros((4, 3), "<u2"))


def test_array_of_another_shape_is_not_decoded() -> None:
    blob = compress_bitshuffle_lz4(np.zeros((3, 4), "<u2"))
    with pytest.raises(CompressionError, match="bitshuffle_lz4 blob: expected 30 bytes of data, got 24"):
        decompress_bitshuffle_lz4(blob, (3, 5), np.dtype("<u2"))
