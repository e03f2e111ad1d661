"""The index of the decision records is complete."""

from __future__ import annotations

import re
from pathlib import Path

DECISIONS = Path(__file__).parents[2] / "docs" / "explanations" / "decisions"


def test_index_links_every_decision_under_its_title() -> None:
    records = {
        path.name: path.read_text().splitlines()[0]
        for path in sorted(DECISIONS.glob("[0-9][0-9][0-9][0-9]-*.md"))
    }
    index = (DECISIONS / "index.md").read_text()
    rows = re.findall(r"^\| (\d+) \| \[(.*)\]\((.*)\) \|$", index, re.MULTILINE)
    assert {file: f"# {number}. {title}" for number, title, file in rows} == records
