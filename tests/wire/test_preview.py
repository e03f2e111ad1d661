"""Messages of the preview service."""

from __future__ import annotations

import numpy as np
import pytest
from support.processes.previews import decoded

from stddaq.wire.preview import MAX_HEADER_BYTES, frame, planes, split


@pytest.mark.parametrize("text", ["", "a", "ab", "abc", "abcdefgh", "\u00e9"])
def test_payload_starts_at_a_multiple_of_eight_bytes(text: str) -> None:
    message = frame({"text": text}, b"payload!")
    assert (len(message) - 8) % 8 == 0
    header, payload = split(memoryview(message))
    assert (header, bytes(payload)) == ({"text": text}, b"payload!")


def test_counts_are_the_same_after_decoding() -> None:
    counts = np.random.default_rng(3).integers(0, 65536, (37, 53)).astype(np.uint16)
    np.testing.assert_array_equal(decoded({"size": counts.shape}, planes(counts)), counts)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\1\0\0",
        b"\4\0\0\0{}",
        (MAX_HEADER_BYTES + 4).to_bytes(4, "little") + b" " * (MAX_HEADER_BYTES + 8),
        b"\4\0\0\0[1 ]",
        b"\4\0\0\0nope",
        b"\4\0\0\0\xff\xff\xff\xff",
    ],
)
def test_malformed_message_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        split(memoryview(message))
