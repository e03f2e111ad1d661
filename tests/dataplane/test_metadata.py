"""The protobuf messages as the specification has them, and the checks of a consumer."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.dataplane import metadata
from stddaq.dataplane.metadata import MetadataRules
from stddaq.wire.std_daq import image_buffer_pb2, image_metadata_pb2, writer_action_pb2
from stddaq.wire.std_daq.image_metadata_pb2 import GFImageMetadata, ImageMetadata

UINT64, INT32, BOOL, STRING, MESSAGE, UINT32, ENUM = 4, 5, 8, 9, 11, 13, 14

SPECIFIED = {
    ImageMetadata: {
        1: ("image_id", UINT64),
        2: ("height", UINT64),
        3: ("width", UINT64),
        4: ("size", UINT64),
        5: ("dtype", ENUM),
        6: ("status", ENUM),
        7: ("compression", ENUM),
        8: ("gf", MESSAGE),
        9: ("jf", MESSAGE),
        10: ("eg", MESSAGE),
        11: ("pco", MESSAGE),
    },
    image_metadata_pb2.GFImageMetadata: {
        1: ("scan_id", UINT32),
        2: ("scan_time", UINT32),
        3: ("sync_time", UINT32),
        4: ("frame_timestamp", UINT64),
        5: ("exposure_time", UINT64),
        6: ("store_image", BOOL),
    },
    image_metadata_pb2.JFImageMetadata: {1: ("daq_rec", UINT64)},
    image_metadata_pb2.EGImageMetadata: {1: ("exptime", UINT64)},
    image_metadata_pb2.PcoImageMetadata: {
        1: ("global_timestamp_sec", UINT64),
        2: ("global_timestamp_ns", UINT64),
        3: ("bsread_name", STRING),
    },
    writer_action_pb2.WriterAction: {
        1: ("create_file", MESSAGE),
        2: ("record_image", MESSAGE),
        3: ("close_file", MESSAGE),
        4: ("confirm_last_image", MESSAGE),
    },
    writer_action_pb2.CreateWriterFile: {1: ("path", STRING), 2: ("writer_id", INT32)},
    writer_action_pb2.RecordImage: {1: ("image_metadata", MESSAGE)},
    writer_action_pb2.CloseWriterFile: {},
    writer_action_pb2.ConfirmLastImage: {},
    writer_action_pb2.WriterResponse: {1: ("code", ENUM), 2: ("reason", STRING)},
    image_buffer_pb2.BufferedMetadata: {1: ("metadata", MESSAGE), 2: ("offset", UINT64)},
    image_buffer_pb2.RequestNextImage: {1: ("image_id", UINT64), 2: ("new_request", BOOL)},
    image_buffer_pb2.NextImageResponse: {1: ("no_image", MESSAGE), 2: ("ack", MESSAGE)},
    image_buffer_pb2.NoImageResponse: {},
    image_buffer_pb2.AckResponse: {1: ("image_id", UINT64)},
}
ENUMS = {
    image_metadata_pb2.ImageMetadataDtype: {
        "unknown": 0,
        "uint8": 1,
        "uint16": 2,
        "uint32": 4,
        "uint64": 8,
        "int8": 11,
        "int16": 12,
        "int32": 14,
        "int64": 18,
        "float16": 22,
        "float32": 24,
        "float64": 28,
    },
    image_metadata_pb2.ImageMetadataStatus: {
        "undefined": 0,
        "good_image": 1,
        "missing_packets": 2,
        "id_missmatch": 3,
    },
    image_metadata_pb2.ImageMetadataCompression: {"none": 0, "h5bitshuffle_lz4": 1, "blosc2": 2},
    writer_action_pb2.ResponseCode: {"UNKNOWN": 0, "SUCCESS": 1, "FAILURE": 2},
}


@pytest.mark.parametrize("message", SPECIFIED, ids=lambda message: message.__name__)
def test_fields_below_100_are_those_of_the_specification(message: type[Message]) -> None:
    descriptor = message.DESCRIPTOR
    assert descriptor.file.package == "std_daq_protocol"
    assert {f.number: (f.name, f.type) for f in descriptor.fields if f.number < 100} == SPECIFIED[message]


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.DESCRIPTOR.name)
def test_enum_values_are_those_of_the_specification(enum: object) -> None:
    assert dict(enum.items()) == ENUMS[enum]  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def test_detector_metadata_and_actions_are_oneofs() -> None:
    def members(message: type[Message], name: str) -> list[str]:
        return [f.name for f in message.DESCRIPTOR.oneofs_by_name[name].fields if f.number < 100]

    assert members(ImageMetadata, "image_metadata") == ["gf", "jf", "eg", "pco"]
    assert members(writer_action_pb2.WriterAction, "action") == [
        "create_file",
        "record_image",
        "close_file",
        "confirm_last_image",
    ]
    assert members(image_buffer_pb2.NextImageResponse, "action") == ["no_image", "ack"]


# Image 3 of a GigaFRoST, 2016 x 2016 pixels of two bytes, written by hand from the table: a tag is
# number * 8 + wire type (0 varint, 2 length-delimited).
EXAMPLE = bytes.fromhex("0803 10e00f 18e00f 208090f003 2802 3001 420c 0801 1002 1803 2004 2805 3001")


def test_message_is_these_bytes() -> None:
    message = ImageMetadata(
        image_id=3,
        height=2016,
        width=2016,
        size=2016 * 2016 * 2,
        dtype=image_metadata_pb2.uint16,
        status=image_metadata_pb2.good_image,
        gf=GFImageMetadata(
            scan_id=1, scan_time=2, sync_time=3, frame_timestamp=4, exposure_time=5, store_image=True
        ),
    )
    assert message.SerializeToString() == EXAMPLE
    assert metadata.parse(EXAMPLE) == message


def test_a_peer_that_does_not_know_field_100_reads_the_rest() -> None:
    # The original consumer skips field 100 (tag a0 06), like any unknown field.
    with_sequence = EXAMPLE + bytes.fromhex("a006 05")
    parsed = metadata.parse(with_sequence)
    assert parsed is not None
    assert parsed.sequence == 5
    parsed.ClearField("sequence")
    assert parsed.SerializeToString() == EXAMPLE


def test_field_of_a_later_version_is_skipped() -> None:
    parsed = metadata.parse(EXAMPLE + bytes.fromhex("f83f 01"))  # Field 1023.
    assert parsed is not None
    assert parsed.image_id == 3


@given(st.binary(max_size=100))
def test_any_bytes_parse_to_a_message_or_none(message: bytes) -> None:
    parsed = metadata.parse(message)
    assert parsed is None or isinstance(parsed, ImageMetadata)


@pytest.mark.parametrize("message", [b"\xff", EXAMPLE[:-1], b"\x42\x05x", b"\x08" + b"\xff" * 11])
def test_malformed_message_parses_to_none(message: bytes) -> None:
    assert metadata.parse(message) is None


@pytest.mark.parametrize(
    ("suffix", "ring", "compression"),
    [
        ("image", "image", 0),
        ("filter", "image", 0),
        ("delay-filter", "image", 0),
        ("delay", "image", 0),
        ("h5bitshuffle-lz4", "h5bitshuffle-lz4", 1),
        ("blosc2", "blosc2", 2),
    ],
)
def test_suffix_determines_ring_and_compression(suffix: str, ring: str, compression: int) -> None:
    assert metadata.ring_suffix(suffix) == ring
    assert metadata.compression_of(suffix) == compression


@pytest.mark.parametrize(
    ("detector_type", "bit_depth", "code"),
    [
        ("eiger", 8, 1),
        ("eiger", 16, 2),
        ("eiger", 32, 4),
        ("gigafrost", 16, 2),
        ("jungfrau-converted", 16, 24),
    ],
)
def test_pixel_type_has_the_specified_code(detector_type: str, bit_depth: int, code: int) -> None:
    config = DetectorConfig.parse(make_config(detector_type=detector_type, bit_depth=bit_depth))
    assert metadata.dtype_code(config.pixel_type) == code


CONFIG = DetectorConfig.parse(make_config(image_pixel_height=4, image_pixel_width=6))


def fitting(suffix: str = "image", **changes: int) -> ImageMetadata:
    """Return metadata of an image of CONFIG, with changes."""
    fields = {
        "image_id": 17,
        "height": 4,
        "width": 6,
        "size": 48,
        "dtype": 2,
        "status": 1,
        "compression": metadata.compression_of(suffix),
    }
    return ImageMetadata(**(fields | changes))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("suffix", "changes"),
    [
        ("image", {}),
        ("image", {"status": 0}),
        ("image", {"status": 3}),
        ("image", {"height": 0, "width": 0, "dtype": 0, "size": 0}),
        ("image", {"image_id": 2**64 - 1}),
        ("blosc2", {"size": 1}),
        ("blosc2", {"size": 48}),
        ("blosc2", {"compression": 0}),
        ("h5bitshuffle-lz4", {"size": 30, "height": 0}),
    ],
)
def test_image_that_fits_is_accepted(suffix: str, changes: dict[str, int]) -> None:
    rules, message = MetadataRules(CONFIG, suffix), fitting(suffix, **changes)
    assert rules.accepts(message)
    assert rules.problem(message) is None


@pytest.mark.parametrize(
    ("suffix", "changes", "problem"),
    [
        ("image", {"height": 5}, "image 17: height: expected 4, got 5"),
        ("image", {"height": 2**63}, f"image 17: height: expected 4, got {2**63}"),
        ("image", {"width": 4}, "image 17: width: expected 6, got 4"),
        ("image", {"dtype": 4}, "image 17: dtype: expected 2, got 4"),
        ("image", {"dtype": 99}, "image 17: dtype: expected 2, got 99"),
        ("image", {"status": 4}, "image 17: status: expected 0 to 3, got 4"),
        ("image", {"status": -1}, "image 17: status: expected 0 to 3, got -1"),
        ("image", {"compression": 1}, "image 17: compression: expected 0, got 1"),
        ("image", {"size": 49}, "image 17: size: expected 48, got 49"),
        ("image", {"size": 47}, "image 17: size: expected 48, got 47"),
        ("blosc2", {"compression": 0, "size": 47}, "image 17: compression: expected 2, got 0"),
        ("blosc2", {"compression": 1}, "image 17: compression: expected 2, got 1"),
        ("blosc2", {"size": 0}, "image 17: size: expected 1 to 48, got 0"),
        ("blosc2", {"size": 49}, "image 17: size: expected 1 to 48, got 49"),
    ],
)
def test_image_that_does_not_fit_is_refused_with_the_reason(
    suffix: str, changes: dict[str, int], problem: str
) -> None:
    rules, message = MetadataRules(CONFIG, suffix), fitting(suffix, **changes)
    assert not rules.accepts(message)
    assert rules.problem(message) == problem


around = st.integers(0, 50) | st.integers(0, 2**64 - 1)
enum_values = st.integers(0, 30) | st.integers(-(2**31), 2**31 - 1)


@given(
    st.sampled_from(("image", "blosc2", "h5bitshuffle-lz4")),
    around,
    around,
    around,
    enum_values,
    enum_values,
    enum_values,
)
def test_the_quick_check_and_the_explaining_check_agree(
    suffix: str, height: int, width: int, size: int, dtype: int, status: int, compression: int
) -> None:
    message = fitting(
        suffix, height=height, width=width, size=size, dtype=dtype, status=status, compression=compression
    )
    rules = MetadataRules(CONFIG, suffix)
    assert rules.accepts(message) == (rules.problem(message) is None)
