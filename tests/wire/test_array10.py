"""array-1.0: the header byte for byte, decoded messages, and malformed ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.wire.array10 import Array10Error, HeaderMaker, decode


def test_header_equals_the_specification_byte_for_byte() -> None:
    made = HeaderMaker((2016, 2016), "uint16").header(3)
    assert made == b'{"htype":"array-1.0", "shape":[2016,2016], "type":"uint16", "frame":3}'


def test_shape_in_the_header_is_height_then_width() -> None:
    assert b'"shape":[480,128]' in HeaderMaker((480, 128), "float32").header(3)


def test_only_damaged_images_have_a_status_after_the_specified_keys() -> None:
    made = HeaderMaker((2, 3), "uint8").header(7, "missing_packets")
    assert made == (
        b'{"htype":"array-1.0", "shape":[2,3], "type":"uint8", "frame":7, "status":"missing_packets"}'
    )


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4", "<f4"])
def test_decoded_image_is_the_encoded_one(dtype: str) -> None:
    pixels = np.arange(6).astype(dtype).reshape(2, 3)
    message = decode((HeaderMaker((2, 3), pixels.dtype.name).header(2**64 - 1), pixels.tobytes()))
    assert message.image_id == 2**64 - 1
    assert message.status is None
    assert message.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(message.pixels, pixels)


GOOD = b'{"htype":"array-1.0", "shape":[2,3], "type":"uint8", "frame":7}'


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([GOOD], "expected 2 parts, got 1"),
        ([GOOD, bytes(6), b""], "expected 2 parts, got 3"),
        ([GOOD, bytes(5)], "expected 6 bytes as the header says, got 5"),
        ([GOOD, bytes(7)], "expected 6 bytes as the header says, got 7"),
        ([b"", bytes(6)], "JSON"),
        ([b"[" * 70_000, bytes(6)], "JSON"),
        ([b"\xff\xfe", bytes(6)], "JSON"),
        ([b"[]", bytes(6)], "header: expected an object, got []"),
        ([GOOD.replace(b"array-1.0", b"array-2.0"), bytes(6)], "htype"),
        ([GOOD.replace(b"[2,3]", b"[6]"), bytes(6)], "shape"),
        ([GOOD.replace(b"[2,3]", b"[-2,-3]"), bytes(6)], "shape"),
        ([GOOD.replace(b"[2,3]", b"[0,3]"), b""], "shape"),
        ([GOOD.replace(b"uint8", b"object"), bytes(6)], "type"),
        ([GOOD.replace(b":7", b":-7"), bytes(6)], "frame"),
        ([GOOD.replace(b":7", b':"7"'), bytes(6)], "frame"),
    ],
)
def test_message_that_is_not_array10_is_refused_with_the_reason(parts: list[bytes], reason: str) -> None:
    with pytest.raises(Array10Error) as refused:
        decode(parts)
    assert reason in str(refused.value)


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_random_parts_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(Array10Error):
        decode(parts)
