"""Events: the level of a line, and messages that are not valid."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stddaq.wire.events import LEVELS, MAX_TEXT_LENGTH, event_of, parse_event


@pytest.mark.parametrize("level", LEVELS)
def test_level_and_text_of_a_log_line_are_found(level: str) -> None:
    for head in ("[11-26 21:19:47.123][std_det_writer][v1.2]", "[2024-01-01 00:00:00.0][std_det_writer]"):
        event = event_of(f"{head}[{level}] [event] ready: a [b] c", 5, 7, "std_det_writer", "0")
        assert (event.level, event.text) == (level, "[event] ready: a [b] c")
        assert parse_event(event.encode()) == event


@pytest.mark.parametrize("line", ["", "Traceback (most recent call last):", "[a][b][loud] text", "[a] b"])
def test_other_lines_are_information(line: str) -> None:
    event = event_of(line, 5, 7, "up", "")
    assert (event.level, event.text) == ("info", line)


@given(st.text(max_size=3000))
def test_any_line_becomes_a_message(line: str) -> None:
    event = event_of(line, 1, 2, "up", "")
    assert len(event.text) <= MAX_TEXT_LENGTH
    assert parse_event(event.encode()) == event


@pytest.mark.parametrize(
    "change", [{"seq": "1"}, {"seq": True}, {"level": "loud"}, {"text": None}, {"more": 1}, {"time": 5}]
)
def test_message_of_another_form_is_refused(change: dict[str, Any]) -> None:
    content = asdict(event_of("x", 1, 2, "up", "")) | change
    with pytest.raises(ValueError, match="expected an event"):
        parse_event(json.dumps(content).encode())


@pytest.mark.parametrize("message", [b"", b"[]", b"1", b"\xff", b"{}"])
def test_message_that_is_no_event_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_event(message)
