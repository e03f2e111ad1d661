"""The format of an image buffer is that of std_daq, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from stddaq.wire.image_buffer import (
    BufferedMetadata,
    ImageMetadata,
    camera_of,
    file_name,
    first_id_of,
    ids_key,
    image_key,
)
from stddaq.wire.std_daq import image_metadata_pb2 as pb


@pytest.mark.parametrize(
    ("image_id", "name"),
    [
        (0, "0000000/0000.dat"),
        (999, "0000000/0000.dat"),
        (1000, "0000000/1000.dat"),
        (1500, "0000000/1000.dat"),
        (1234567, "1000000/1234000.dat"),
        (12345678, "12000000/12345000.dat"),
        (2**24 - 1, "16000000/16777000.dat"),
        (2**32, "4294000000/4294967000.dat"),
    ],
)
def test_file_of_an_image(image_id: int, name: str) -> None:
    assert file_name(image_id) == name
    assert first_id_of(Path("root/CAM1") / name) == image_id // 1000 * 1000


@pytest.mark.parametrize(
    "name", ["0000000/0001.dat", "1000000/0000.dat", "0000000/0000.txt", "x/y.dat", "a.dat"]
)
def test_other_files_are_not_of_the_buffer(name: str) -> None:
    assert first_id_of(Path("root") / name) is None


def test_keys() -> None:
    assert image_key("CAM1", 1001) == "camera:CAM1:1001"
    assert ids_key("CAM1") == "camera:CAM1:ids"
    assert camera_of("REPLAY-CAM1") == "CAM1"
    assert camera_of("CAM1") == "CAM1"


def test_value_is_that_of_the_specification() -> None:
    metadata = ImageMetadata(
        image_id=1001,
        height=32,
        width=64,
        size=85,
        dtype=pb.uint16,
        status=pb.good_image,
        compression=pb.blosc2,
    )
    metadata.gf.scan_id = 3
    record = BufferedMetadata(metadata=metadata, offset=80)
    expected = "0a1308e907102018402055280230013802420208031050"
    assert record.SerializeToString().hex() == expected
    # The extension follows the fields of std_daq.
    record.checksum = 7
    assert record.SerializeToString().hex().startswith(expected)
