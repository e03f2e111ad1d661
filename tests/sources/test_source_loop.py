"""Malformed requests to a source."""

from __future__ import annotations

import pytest

from stddaq.wire.simulator_messages import RequestError, parse_request


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "expected a JSON object, got \\[\\]"),
        (b"5", "got 5"),
        (b"{}", "command: expected one of trigger, configure.*, got nothing"),
        (b'{"command": 7}', "command: expected .*, got 7"),
        (b'{"command": []}', "command: expected .*, got \\[\\]"),
        (b'{"command": "fire"}', 'command: expected .*, got "fire"'),
        (b'{"command": "trigger", "n_images": 0}', "n_images: expected .*, got 0"),
        (b'{"command": "trigger", "n_images": "3"}', 'n_images: expected .*, got "3"'),
        (b'{"command": "trigger", "n_images": true}', "n_images: expected .*, got true"),
        (b'{"command": "trigger", "images": 3}', "images: unknown field"),
        (b'{"command": "configure", "rate": -1}', "rate: expected .*, got -1"),
        (b'{"command": "configure", "rate": NaN}', "rate: expected .*, got NaN"),
        (b'{"command": "configure", "rate": 1e999}', "rate: expected .*, got Infinity"),
        (b'{"command": "configure", "burst": 1.5}', "burst: expected .*, got 1.5"),
        (b'{"command": "rearm", "first_id": -1}', "first_id: expected .*, got -1"),
        (
            b'{"command": "rearm", "first_id": 18446744073709551616}',
            "first_id: expected .*, got 18446744073709551616",
        ),
    ],
)
def test_malformed_request_is_refused_with_the_reason(message: bytes, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        parse_request(message)
