"""Print the section of CHANGELOG.md about a version: release_notes.py X.Y.Z. Fails if there is none."""

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def notes(changelog: str, version: str) -> str:
    """Return the text below `## X.Y.Z`, up to the next version; empty if there is none."""
    found = re.search(rf"(?ms)^## \[?{re.escape(version)}\]?\b[^\n]*\n(.*?)(?=^## |\Z)", changelog)
    return found[1].strip() if found else ""


if __name__ == "__main__":
    text = notes(CHANGELOG.read_text(), sys.argv[1])
    if not text:
        sys.exit(f"CHANGELOG.md: expected a section {sys.argv[1]}, got none")
    print(text)
