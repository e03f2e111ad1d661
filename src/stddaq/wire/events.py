"""Events: the lines that the services of `stddaq up` print, as messages for the page.

A message is a JSON object in UTF-8. `epoch` and `seq` number the lines of one `stddaq up`, so that a
subscriber notices lines that were dropped, and those that it has received twice.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

Level = Literal["debug", "info", "warning", "error", "critical"]
LEVELS: tuple[Level, ...] = get_args(Level)
MAX_TEXT_LENGTH = 2000
# A log line of stddaq or of std_daq: what is before the level is known otherwise.
_LOG_LINE = re.compile(rf"\[[^\]]*\]\[[^\]]*\](?:\[[^\]]*\])?\[({'|'.join(LEVELS)})\] ?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a service. `time` is ISO 8601 with its zone, `id` the number or port of the service."""

    epoch: int
    seq: int
    time: str
    service: str
    id: str
    level: Level
    text: str

    def encode(self) -> bytes:
        """Return the message."""
        return json.dumps(asdict(self)).encode()


def event_of(line: str, epoch: int, seq: int, service: str, instance_id: str, level: Level = "info") -> Event:
    """Return the event of a line that a service has printed now. `level`: of lines that have none."""
    match = _LOG_LINE.fullmatch(line)
    text = line
    if match:
        level, text = match[1], match[2]  # pyright: ignore[reportAssignmentType]
    now = datetime.now(UTC).astimezone().isoformat(timespec="milliseconds")
    return Event(epoch, seq, now, service, instance_id, level, text[:MAX_TEXT_LENGTH])


def parse_event(message: bytes) -> Event:
    """Return the event in a message. Raise `ValueError`."""
    content = json.loads(message)
    if not isinstance(content, dict) or content.keys() != Event.__dataclass_fields__.keys():
        raise ValueError("expected an event, got another JSON value")
    event = Event(**content)
    texts = (event.time, event.service, event.id, event.text)
    numbers = (event.epoch, event.seq)
    is_right = all(isinstance(text, str) for text in texts) and all(type(n) is int for n in numbers)
    if not is_right or event.level not in LEVELS:
        raise ValueError("expected an event, got values of other types")
    return event
