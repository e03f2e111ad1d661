"""Commands of replays: what is accepted, and what is refused in which words."""

from __future__ import annotations

import json

import pytest

from stddaq.wire.driver_messages import CommandError
from stddaq.wire.replay_messages import StartReplay, parse_replay_command


def test_start_needs_only_an_id() -> None:
    command = parse_replay_command('{"command": "start", "start_image_id": 4294967296}')
    assert command == StartReplay(start_image_id=2**32)
    assert isinstance(command, StartReplay)
    assert command.interval_s == 0


@pytest.mark.parametrize(("fields", "interval"), [({"delay": 5}, 0.005), ({"rate": 50}, 0.02)])
def test_interval(fields: dict[str, int], interval: float) -> None:
    command = parse_replay_command(json.dumps({"command": "start", "start_image_id": 1, **fields}))
    assert isinstance(command, StartReplay)
    assert command.interval_s == interval


@pytest.mark.parametrize(
    ("frame", "kind", "words"),
    [
        ("{", "invalid_json", "no JSON"),
        ("[]", "invalid_message", "got []"),
        (b"{}", "invalid_message", "binary"),
        ("{}", "missing_field", "expected one of start, stop, pause, resume, status, last_result"),
        ('{"command": "record"}', "unknown_command", 'got "record"'),
        ('{"command": "start"}', "missing_field", "start_image_id"),
        (
            '{"command": "start", "start_image_id": "1"}',
            "invalid_field",
            "start_image_id: expected an integer",
        ),
        ('{"command": "start", "start_image_id": -1}', "invalid_field", "got -1"),
        ('{"command": "start", "start_image_id": 9007199254740992}', "invalid_field", "start_image_id"),
        (
            '{"command": "start", "start_image_id": 5, "end_image_id": 4}',
            "invalid_field",
            "end_image_id: expected an id from start_image_id on, 5 or higher, got 4",
        ),
        (
            '{"command": "start", "start_image_id": 5, "rate": 5, "delay": 1}',
            "invalid_field",
            "one of delay, rate and as_recorded",
        ),
        ('{"command": "start", "start_image_id": 5, "speed": 1}', "unknown_field", "expected one of"),
    ],
)
def test_refusals(frame: str | bytes, kind: str, words: str) -> None:
    with pytest.raises(CommandError, match=r"expected|unknown") as refused:
        parse_replay_command(frame)
    assert refused.value.error == kind
    assert words in str(refused.value)
