"""The code blocks of the pages that users read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
# What is no code, and need not say why it is not executed.
ILLUSTRATIONS = ("output", "synopsis", "diagram")
_BLOCK = re.compile(
    r"(?:^<!-- not executed: (?P<reason>.+?) -->\n+)?^```(?P<info>.*)\n(?P<text>(?:.*\n)*?)^```$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        info: what follows the backquotes: empty (a shell), a language, or `text` and one of `ILLUSTRATIONS`.
        reason: why it is not executed, or empty.
    """

    page: str
    line: int
    info: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_illustration(self) -> bool:
        return self.info in {f"text {kind}" for kind in ILLUSTRATIONS}

    @property
    def is_executed(self) -> bool:
        # A brace starts a directive of the site.
        return not (self.reason or self.is_illustration or self.info.startswith("{"))


def pages() -> list[str]:
    """Return the paths of all pages, relative to the root of the repository."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def blocks_of(page: str) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    text = (ROOT / page).read_text()
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("info")) + 1
        yield Block(page, line, found["info"], found["text"], found["reason"] or "")
