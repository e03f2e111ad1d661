"""Rows, packets and bytes of a module."""

from __future__ import annotations

import pytest
from support.processes.deployment import make_config

from stddaq.config import DetectorConfig
from stddaq.errors import GeometryError
from stddaq.udp.geometry import GigaFrostGeometry, frame_bytes


# Columns: width, height; rows, packets, bytes of a packet; rows and bytes of the last one; slot.
@pytest.mark.parametrize(
    "row",
    [
        (2016, 2016, 4, 126, 6048, 4, 6048, 762048),
        (1200, 800, 8, 25, 7200, 8, 7200, 180000),
        (1008, 1008, 8, 32, 6048, 4, 3024, 190512),
        (528, 280, 18, 4, 7128, 16, 6336, 27720),
        (480, 128, 20, 2, 7200, 12, 4320, 11520),
        (504, 252, 17, 4, 6462, 12, 4536, 23922),
        (528, 252, 18, 4, 7128, 9, 3600, 24984),
        (48, 8, 2, 1, 72, 2, 72, 72),
    ],
    ids=lambda row: f"{row[0]}x{row[1]}",
)
def test_gigafrost_packets_are_those_of_the_camera(row: tuple[int, ...]) -> None:
    width, height, *expected = row
    geometry = GigaFrostGeometry.of(height, width)
    assert expected == [
        geometry.rows,
        geometry.n_packets,
        geometry.payload_bytes,
        geometry.last_rows,
        geometry.last_payload_bytes,
        geometry.frame_bytes,
    ]


def test_every_row_of_every_gigafrost_image_is_in_one_packet() -> None:
    for width in range(48, 2017, 24):
        for height in range(4, 2017, 4):
            geometry = GigaFrostGeometry.of(height, width)
            full = geometry.n_packets - 1
            assert full * geometry.rows + geometry.last_rows == height // 4
            assert 1 <= geometry.last_rows <= geometry.rows
            assert geometry.payload_bytes <= 7400
            # The last packet ends inside the slot, with its padding.
            assert full * geometry.row_step_bytes + geometry.last_payload_bytes <= geometry.frame_bytes
            if width % 48 == 0 and geometry.rows < height // 4:
                assert geometry.rows % 2 == 0


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((32, 40), "image_pixel_width: expected a multiple of 24 from 48 to 2016 for gigafrost, got 40"),
        ((32, 24), "image_pixel_width: expected a multiple of 24 from 48 to 2016 for gigafrost, got 24"),
        ((32, 2040), "image_pixel_width: expected a multiple of 24 from 48 to 2016 for gigafrost, got 2040"),
        ((30, 48), "image_pixel_height: expected a multiple of 4 from 4 to 2016 for gigafrost, got 30"),
        ((2020, 48), "image_pixel_height: expected a multiple of 4 from 4 to 2016 for gigafrost, got 2020"),
    ],
    ids=str,
)
def test_images_that_a_gigafrost_cannot_send_are_refused(size: tuple[int, int], message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        GigaFrostGeometry.of(*size)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"detector_type": "eiger", "bit_depth": 8}, 131072),
        ({"detector_type": "eiger", "bit_depth": 16}, 262144),
        ({"detector_type": "eiger", "bit_depth": 32}, 524288),
        ({"detector_type": "jungfrau-raw"}, 1048576),
        ({"detector_type": "jungfrau-converted"}, 1048576),
        ({"detector_type": "gigafrost", "image_pixel_height": 280, "image_pixel_width": 528}, 27720),
    ],
    ids=str,
)
def test_slots_of_frame_rings_have_the_size_of_a_frame(keys: dict[str, object], expected: int) -> None:
    assert frame_bytes(DetectorConfig.parse(make_config(**keys))) == expected


def test_detectors_without_packets_have_no_frames() -> None:
    with pytest.raises(GeometryError, match="expected a detector that sends UDP packets, got pco"):
        frame_bytes(DetectorConfig.parse(make_config(detector_type="pco")))
