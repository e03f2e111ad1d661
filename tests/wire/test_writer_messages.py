"""Actions for writers: the encoding of images, and values that writers refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.wire.std_daq import image_metadata_pb2
from stddaq.wire.std_daq import writer_action_pb2 as pb
from stddaq.wire.writer_messages import (
    ActionError,
    check_action,
    encode_record_image,
    encode_record_images,
    images_of,
)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_an_encoded_image_equals_the_action_of_protobuf(image_id: int, restarts: int):
    metadata = image_metadata_pb2.ImageMetadata(image_id=image_id, height=4, width=6)
    encoded = encode_record_image(metadata.SerializeToString(), restarts)
    image = pb.RecordImage(image_metadata=metadata, restarts=restarts)
    assert pb.WriterAction.FromString(encoded) == pb.WriterAction(record_image=image)


@pytest.mark.parametrize("n_images", [1, 2, 500])
def test_images_of_one_message_are_those_of_single_messages_in_order(n_images: int) -> None:
    images = [
        pb.RecordImage(image_metadata=image_metadata_pb2.ImageMetadata(image_id=i, height=4), restarts=i // 3)
        for i in range(n_images)
    ]
    encoded = [
        encode_record_image(image.image_metadata.SerializeToString(), image.restarts) for image in images
    ]
    action = pb.WriterAction.FromString(encode_record_images(encoded))
    assert list(images_of(action)) == images
    assert action.HasField("record_images") == (n_images > 1)
    assert not images_of(pb.WriterAction(close_file=pb.CloseWriterFile()))


@pytest.mark.parametrize("n_unknown", [0, 100, 127, 128, 20_000])
def test_metadata_of_any_length_is_copied_with_its_unknown_fields(n_unknown: int):
    # Unknown fields, such as field 99 (length-delimited), reach the writers.
    unknown = b"\x9a\x06" + _varint(n_unknown) + b"x" * n_unknown
    metadata = image_metadata_pb2.ImageMetadata(image_id=7).SerializeToString() + unknown
    action = pb.WriterAction.FromString(encode_record_image(metadata, 0))
    assert action.record_image.image_metadata.SerializeToString() == metadata


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (pb.WriterAction(create_file=pb.CreateWriterFile(path="/a\0b")), "path: expected text without zero"),
        (pb.WriterAction(create_file=pb.CreateWriterFile(run_id="\0")), "run_id: expected"),
        (pb.WriterAction(create_file=pb.CreateWriterFile(source="\0")), "source: expected"),
        (pb.WriterAction(create_master_file=pb.CreateMasterFile(account="\0")), "account: expected"),
        (pb.WriterAction(create_master_file=pb.CreateMasterFile(nexus="\0")), "nexus: expected"),
        (
            pb.WriterAction(create_master_file=pb.CreateMasterFile(raw_files=["/a", "/b\0"])),
            r"raw_files\[1\]: expected",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_text_with_a_zero_byte_is_refused(action: pb.WriterAction, message: str):
    with pytest.raises(ActionError, match=message):
        check_action(action)


def test_an_unknown_division_is_refused():
    action = pb.WriterAction.FromString(
        pb.WriterAction(create_file=pb.CreateWriterFile()).SerializeToString()
    )
    check_action(action)
    unknown = pb.CreateWriterFile.FromString(b"\xb0\x06\x05")  # Field 102 (division) has the value 5.
    with pytest.raises(ActionError, match=r"division: expected one of \[0, 1\], got 5"):
        check_action(pb.WriterAction(create_file=unknown))
