"""The messages that the page about symptoms quotes are those of the services."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "find-what-is-wrong.md"
# Of the operating system.
SYSTEM = {"No space left on device"}


def symptoms() -> list[str]:
    """Return what the first column of each table quotes."""
    rows = re.findall(r"^\| (.+?) \|.*\|.*\|$", PAGE.read_text(), re.MULTILINE)
    return [quoted for symptom in rows for quoted in re.findall("`([^`]+)`", symptom)]


def test_every_quoted_message_is_one_of_the_package() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    # Long messages are several literals.
    text = re.sub(r'"\s*\n\s*f?"', "", source)
    quoted = symptoms()
    assert len(quoted) >= 15
    unknown = [message for message in quoted if message not in text and message not in SYSTEM]
    assert unknown == []
