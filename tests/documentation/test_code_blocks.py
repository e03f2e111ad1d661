"""Every code block of the documentation is executed, or says why not."""

from __future__ import annotations

import re
from pathlib import Path

from support.data.code_blocks import ILLUSTRATIONS, Block, blocks_of, pages

SESSION = re.compile(r'PageSession\(\s*"([^"]+)"')
TESTS = sorted(Path(__file__).parent.glob("test_*.py"))
# Languages of blocks that tests execute; none is a shell.
LANGUAGES = {"", "python", "json", "yaml"}
# A new one needs a reason why no test can execute it.
MOST_NOT_EXECUTED = 11


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks_of(page)]


def test_every_block_is_code_an_illustration_or_a_directive() -> None:
    allowed = LANGUAGES | {f"text {kind}" for kind in ILLUSTRATIONS}
    other = [block for block in all_blocks() if block.info not in allowed and not block.info.startswith("{")]
    assert [f"{block}: {block.info}" for block in other] == []


def test_every_page_with_code_has_a_session() -> None:
    executed = [name for path in TESTS for name in SESSION.findall(path.read_text())]
    # One session executes all blocks of its page.
    assert sorted(set(executed)) == sorted(executed)
    assert set(executed) == {block.page for block in all_blocks() if block.is_executed}


def test_few_blocks_are_not_executed() -> None:
    not_executed = [block for block in all_blocks() if block.reason]
    assert len(not_executed) <= MOST_NOT_EXECUTED, [f"{block}: {block.reason}" for block in not_executed]


def test_every_fence_belongs_to_a_block() -> None:
    for page in pages():
        text = (Path(__file__).parents[2] / page).read_text()
        assert len(re.findall("^ *```", text, re.MULTILINE)) == 2 * len(list(blocks_of(page))), page
