"""The 64 bytes that announce a frame."""

from __future__ import annotations

import numpy as np
import pytest

from stddaq.udp.frame_message import (
    EIGER_FRAME,
    FRAME_MESSAGE_BYTES,
    GIGAFROST_FRAME,
    JUNGFRAU_FRAME,
    parse_frame,
)


def message(layout: np.dtype, **fields: int) -> bytes:
    array = np.zeros((), layout)
    for name, value in fields.items():
        array[name] = value
    return array.tobytes()


def test_a_gigafrost_frame_has_the_bytes_of_std_daq() -> None:
    assert message(
        GIGAFROST_FRAME,
        id=5,
        module=3,
        link=1,
        correction_mode=5,
        quadrant=1,
        scan_id=7,
        module_width=24,
        module_height=2,
        scan_time=0x55667788,
        sync_time=0x11223344,
        frame_timestamp=0x0102030405,
        exposure_time=0x0A0B0C,
    ) == bytes.fromhex(
        "0500000000000000 0000000000000000 0300 00 01 05 01 00 00 07000000 18000000 02000000"
        "88776655 44332211 0504030201000000 0c0b0a0000000000 00000000"
    )


def test_an_eiger_frame_has_the_bytes_of_std_daq() -> None:
    expected = bytes.fromhex("4873000000000000 0000000000000000 0200 2000 0000 0100") + bytes(40)
    assert message(EIGER_FRAME, id=29512, module=2, bit_depth=32, pos_x=1) == expected


def test_a_jungfrau_frame_has_the_bytes_of_std_daq() -> None:
    expected = bytes.fromhex(
        "1100000000000000 0000000000000000 0000 0000000000000000 6400000000000000"
        "0304008000000000 0000000000000000"
    ) + bytes(14)
    assert message(JUNGFRAU_FRAME, id=17, frame_number=100, daq_rec=0x80000403) == expected


@pytest.mark.parametrize("layout", [EIGER_FRAME, GIGAFROST_FRAME, JUNGFRAU_FRAME])
def test_a_message_with_an_id_alone_is_completed_with_zeros(layout: np.dtype) -> None:
    parsed = parse_frame((5).to_bytes(8, "little"), layout)
    assert parsed is not None
    assert parsed.tobytes() == message(layout, id=5)


@pytest.mark.parametrize("n_bytes", [0, 7, 65, 1000])
def test_messages_of_other_sizes_are_no_frames(n_bytes: int) -> None:
    assert parse_frame(bytes(n_bytes), EIGER_FRAME) is None


def test_messages_keep_the_bytes_that_no_field_names() -> None:
    original = bytes(range(FRAME_MESSAGE_BYTES))
    parsed = parse_frame(original, EIGER_FRAME)
    assert parsed is not None
    assert parsed.tobytes() == original
